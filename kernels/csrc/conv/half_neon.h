// What follows the accumulators of half precision; each function names the scalar line that it replaces.
#ifndef SPW_CONV_HALF_NEON_H
#define SPW_CONV_HALF_NEON_H

#ifndef __ARM_FEATURE_FP16_VECTOR_ARITHMETIC
#error "compile for a processor with fp16"
#endif

#include "epilogue_neon.h"

SPW_ALWAYS_INLINE float16x8_t spw_low_halves(float16x8_t left, float16x8_t right) {
  return vreinterpretq_f16_u64(vzip1q_u64(vreinterpretq_u64_f16(left), vreinterpretq_u64_f16(right)));
}

SPW_ALWAYS_INLINE float16x8_t spw_high_halves(float16x8_t left, float16x8_t right) {
  return vreinterpretq_f16_u64(vzip2q_u64(vreinterpretq_u64_f16(left), vreinterpretq_u64_f16(right)));
}

// 8 values as halves: the bias of 2 packs, or of one and zeros.
SPW_ALWAYS_INLINE float16x8_t spw_half_bias(const float *bias, const int packs) {
  const float16x4_t low = vcvt_f16_f32(vld1q_f32(bias));
  return vcombine_f16(low, packs > 1 ? vcvt_f16_f32(vld1q_f32(bias + 4)) : vdup_n_f16(0));
}

// Constants of a run, read once: the compiler has to assume that stores change the descriptors.
struct spw_epilogue_f16 {
  const float16_t *residual;
  float16_t *output;
  size_t plane;
  float16x8_t low, high;
};

SPW_ALWAYS_INLINE struct spw_epilogue_f16 spw_begin_f16(const struct spw_conv_run *run) {
  return (struct spw_epilogue_f16){
      .residual = run->residual,
      .output = run->output,
      .plane = run->plane,
      .low = vdupq_n_f16((float16_t)run->operator->float_min),
      .high = vdupq_n_f16((float16_t)run->operator->float_max),
  };
}

// spw_finish_f16() for 2 pixels of one pack, of which `pixels` exist.
SPW_ALWAYS_INLINE void spw_finish_pair_f16(const struct spw_epilogue_f16 *epilogue, size_t at, float16x8_t value,
                                           const int pixels) {
  if (pixels < 1) return;
  const float16_t *residual = epilogue->residual + at;
  if (epilogue->residual)
    value = vaddq_f16(value, pixels > 1 ? vld1q_f16(residual) : vcombine_f16(vld1_f16(residual), vdup_n_f16(0)));
  value = vminnmq_f16(vmaxnmq_f16(value, epilogue->low), epilogue->high);
  if (pixels > 1) {
    vst1q_f16(epilogue->output + at, value);
  } else {
    vst1_f16(epilogue->output + at, vget_low_f16(value));
  }
}

#endif
