// What follows the accumulators, a quad of pixels at a time; each function names the scalar line that it replaces.
#ifndef SPW_CONV_EPILOGUE_NEON_H
#define SPW_CONV_EPILOGUE_NEON_H

#ifndef __ARM_NEON
#error "compile for a processor with NEON"
#endif

#include <arm_neon.h>
#include <string.h>

#include "kernel.h"

#define SPW_ALWAYS_INLINE static inline __attribute__((always_inline))

// Before a loop of constant length over accumulators: rolled up, it would force them out of their registers.
#define SPW_UNROLL _Pragma("GCC unroll 8")

// Constants of a run, read once: the compiler has to assume that every store of a byte changes the descriptors.
struct spw_epilogue_qa8 {
  const int8_t *residual;
  void *output;
  size_t plane;
  int32_t pixels;
  float residual_scale;
  int8x16_t residual_zero_point, clamp_min, clamp_max;
  int16x8_t output_zero_point;
  float32x4_t float_min, float_max;
  float32x4_t scale[2], bias[2];
};

SPW_ALWAYS_INLINE struct spw_epilogue_qa8 spw_begin_qa8(const struct spw_conv_run *run, const int packs) {
  const struct spw_conv2d *operator= run->operator;
  struct spw_epilogue_qa8 epilogue = {
      .residual = run->residual,
      .output = run->output,
      .plane = run->plane,
      .pixels = run->pixels,
      .residual_scale = operator->residual_scale,
      .residual_zero_point = vdupq_n_s8((int8_t)operator->residual_zero_point),
      .clamp_min = vdupq_n_s8((int8_t)operator->clamp_min),
      .clamp_max = vdupq_n_s8((int8_t)operator->clamp_max),
      .output_zero_point = vdupq_n_s16((int16_t)operator->output_zero_point),
      .float_min = vdupq_n_f32(operator->float_min),
      .float_max = vdupq_n_f32(operator->float_max),
  };
  SPW_UNROLL for (int pack = 0; pack < packs; ++pack) {
    epilogue.scale[pack] = vld1q_f32(run->scale + 4 * pack);
    epilogue.bias[pack] = vld1q_f32(run->bias + 4 * pack);
  }
  return epilogue;
}

// Only an image narrower than 4 pixels has quads that are not full. No memcpy here: a call would push every accumulator
// out of its register.
SPW_ALWAYS_INLINE void spw_store_bytes(int8_t *output, int8x16_t value, int32_t pixels) {
  if (pixels >= 4) {
    vst1q_s8(output, value);
    return;
  }
  if (pixels & 1) vst1q_lane_s32((int32_t *)output, vreinterpretq_s32_s8(value), 0);
  if (pixels == 3) value = vextq_s8(value, value, 4);
  if (pixels & 2) vst1q_lane_s64((int64_t *)(output + pixels % 2 * 4), vreinterpretq_s64_s8(value), 0);
}

SPW_ALWAYS_INLINE int8x16_t spw_load_bytes(const int8_t *input, int32_t pixels) {
  if (pixels >= 4) return vld1q_s8(input);
  int8x16_t value = vdupq_n_s8(0);
  if (pixels & 2) {
    value = vreinterpretq_s8_s64(vld1q_lane_s64((const int64_t *)(input + pixels % 2 * 4), vdupq_n_s64(0), 0));
    if (pixels & 1) value = vextq_s8(value, value, 12);
  }
  if (pixels & 1) value = vreinterpretq_s8_s32(vld1q_lane_s32((const int32_t *)input, vreinterpretq_s32_s8(value), 0));
  return value;
}

// spw_finish_qa8() for 4 pixels; sum[pixel] holds their 4 channels.
SPW_ALWAYS_INLINE void spw_finish_quad_qa8(const struct spw_epilogue_qa8 *epilogue, const int pack, int32_t element,
                                           const int32x4_t sum[4], const int float_output) {
  const size_t at = (size_t)pack * epilogue->plane + (size_t)element;
  // value = fma(sum, scale, bias)
  float32x4_t value[4];
  SPW_UNROLL for (int pixel = 0; pixel < 4; ++pixel) value[pixel] =
      vfmaq_f32(epilogue->bias[pack], vcvtq_f32_s32(sum[pixel]), epilogue->scale[pack]);

  if (epilogue->residual) {
    // value = fma(residual - residual_zero_point, residual_scale, value)
    const int8x16_t bytes = spw_load_bytes(epilogue->residual + at, epilogue->pixels);
    const int16x8_t low = vsubl_s8(vget_low_s8(bytes), vget_low_s8(epilogue->residual_zero_point));
    const int16x8_t high = vsubl_high_s8(bytes, epilogue->residual_zero_point);
    const int32x4_t residual[4] = {vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)),
                                   vmovl_high_s16(high)};
    SPW_UNROLL for (int pixel = 0; pixel < 4; ++pixel) value[pixel] =
        vfmaq_n_f32(value[pixel], vcvtq_f32_s32(residual[pixel]), epilogue->residual_scale);
  }

  if (float_output) {
    float *output = (float *)epilogue->output + at;
    SPW_UNROLL for (int pixel = 0; pixel < 4; ++pixel) if (pixel < epilogue->pixels)
        vst1q_f32(output + 4 * pixel, vminnmq_f32(vmaxnmq_f32(value[pixel], epilogue->float_min), epilogue->float_max));
    return;
  }
  // output = clamp(saturate(round(value)) + output_zero_point, clamp_min, clamp_max)
  const int16x8_t low = vqmovn_high_s32(vqmovn_s32(vcvtnq_s32_f32(value[0])), vcvtnq_s32_f32(value[1]));
  const int16x8_t high = vqmovn_high_s32(vqmovn_s32(vcvtnq_s32_f32(value[2])), vcvtnq_s32_f32(value[3]));
  const int8x16_t bytes = vqmovn_high_s16(vqmovn_s16(vqaddq_s16(low, epilogue->output_zero_point)),
                                          vqaddq_s16(high, epilogue->output_zero_point));
  spw_store_bytes((int8_t *)epilogue->output + at, vminq_s8(vmaxq_s8(bytes, epilogue->clamp_min), epilogue->clamp_max),
                  epilogue->pixels);
}

// spw_finish_qa8() for the one pixel of a matrix-vector product.
SPW_ALWAYS_INLINE void spw_finish_vector_qa8(const struct spw_conv_run *run, int32x4_t sum, const int float_output) {
  struct spw_epilogue_qa8 epilogue = spw_begin_qa8(run, 1);
  epilogue.pixels = 1;
  const int32x4_t quad[4] = {sum, vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
  spw_finish_quad_qa8(&epilogue, 0, 0, quad, float_output);
}

// spw_finish_f32() for 4 pixels; sum[pixel] holds their 4 channels.
SPW_ALWAYS_INLINE void spw_finish_quad_f32(const struct spw_conv_run *run, const int pack, int32_t element,
                                           const float32x4_t sum[4], int32_t pixels) {
  const size_t at = (size_t)pack * run->plane + (size_t)element;
  const float32x4_t low = vdupq_n_f32(run->operator->float_min), high = vdupq_n_f32(run->operator->float_max);
  const float *residual = run->residual ? (const float *)run->residual + at : NULL;
  float *output = (float *)run->output + at;
  SPW_UNROLL for (int pixel = 0; pixel < 4; ++pixel) {
    if (pixel < pixels) {
      const float32x4_t value = residual ? vaddq_f32(sum[pixel], vld1q_f32(residual + 4 * pixel)) : sum[pixel];
      vst1q_f32(output + 4 * pixel, vminnmq_f32(vmaxnmq_f32(value, low), high));
    }
  }
}

#endif
