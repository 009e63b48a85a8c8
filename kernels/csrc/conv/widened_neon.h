// Halves on processors without fp16: widened as they are loaded, computed in float, rounded as they are stored.
#ifndef SPW_CONV_WIDENED_NEON_H
#define SPW_CONV_WIDENED_NEON_H

#ifndef __ARM_NEON
#error "compile for a processor with NEON"
#endif

#include "epilogue_neon.h"

SPW_ALWAYS_INLINE float32x4_t spw_load_widened(const float16_t *from) { return vcvt_f32_f16(vld1_f16(from)); }

SPW_ALWAYS_INLINE void spw_load_widened_pair(const float16_t *from, float32x4_t to[2]) {
  const float16x8_t halves = vld1q_f16(from);
  to[0] = vcvt_f32_f16(vget_low_f16(halves));
  to[1] = vcvt_high_f32_f16(halves);
}

// spw_finish_widened() for 4 pixels; sum[pixel] holds their 4 channels.
SPW_ALWAYS_INLINE void spw_finish_quad_widened(const struct spw_conv_run *run, const int pack, int32_t element,
                                               const float32x4_t sum[4], int32_t pixels) {
  const size_t at = (size_t)pack * run->plane + (size_t)element;
  const float32x4_t low = vdupq_n_f32(run->operator->float_min), high = vdupq_n_f32(run->operator->float_max);
  const float16_t *residual = run->residual ? (const float16_t *)run->residual + at : NULL;
  float16_t *output = (float16_t *)run->output + at;
  SPW_UNROLL for (int pixel = 0; pixel < 4; ++pixel) {
    if (pixel < pixels) {
      const float32x4_t value = residual ? vaddq_f32(sum[pixel], spw_load_widened(residual + 4 * pixel)) : sum[pixel];
      vst1_f16(output + 4 * pixel, vcvt_f16_f32(vminnmq_f32(vmaxnmq_f32(value, low), high)));
    }
  }
}

#endif
