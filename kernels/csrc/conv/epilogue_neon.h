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

// Only an image narrower than 4 pixels has quads that are not full.
SPW_ALWAYS_INLINE void spw_store_bytes(void *output, int8x16_t value, int32_t pixels) {
  if (pixels == 4) vst1q_s8(output, value);
  else memcpy(output, &value, 4 * (size_t)pixels);
}

SPW_ALWAYS_INLINE int8x16_t spw_load_bytes(const void *input, int32_t pixels) {
  int8x16_t value = vdupq_n_s8(0);
  if (pixels == 4) value = vld1q_s8(input);
  else memcpy(&value, input, 4 * (size_t)pixels);
  return value;
}

// value = clamp(value, float_min, float_max)
SPW_ALWAYS_INLINE float32x4_t spw_clamp_vector(const struct spw_conv2d *operator, float32x4_t value) {
  value = vmaxnmq_f32(value, vdupq_n_f32(operator->float_min));
  return vminnmq_f32(value, vdupq_n_f32(operator->float_max));
}

// spw_finish_qa8() for 4 pixels; sum[pixel] holds their 4 channels.
SPW_ALWAYS_INLINE void spw_finish_quad_qa8(const struct spw_conv_run *run, int pack, int32_t element,
                                           const int32x4_t sum[4], int float_output) {
  const struct spw_conv2d *operator = run->operator;
  const size_t at = (size_t)pack * run->plane + (size_t)element;
  const float32x4_t scale = vld1q_f32(run->scale + 4 * pack), bias = vld1q_f32(run->bias + 4 * pack);
  float32x4_t value[4];
  for (int pixel = 0; pixel < 4; ++pixel) value[pixel] = vfmaq_f32(bias, vcvtq_f32_s32(sum[pixel]), scale);

  if (run->residual) {
    // value += (float)(residual - residual_zero_point) * residual_scale
    const int8x16_t bytes = spw_load_bytes((const int8_t *)run->residual + at, run->pixels);
    const int16x8_t zero_point = vdupq_n_s16((int16_t)operator->residual_zero_point);
    const int16x8_t low = vsubq_s16(vmovl_s8(vget_low_s8(bytes)), zero_point);
    const int16x8_t high = vsubq_s16(vmovl_high_s8(bytes), zero_point);
    const int32x4_t residual[4] = {vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)),
                                   vmovl_high_s16(high)};
    for (int pixel = 0; pixel < 4; ++pixel)
      value[pixel] = vaddq_f32(value[pixel], vmulq_n_f32(vcvtq_f32_s32(residual[pixel]), operator->residual_scale));
  }

  if (float_output) {
    for (int pixel = 0; pixel < run->pixels; ++pixel)
      vst1q_f32((float *)run->output + at + 4 * pixel, spw_clamp_vector(operator, value[pixel]));
    return;
  }
  // output = clamp(saturate(round(value)) + output_zero_point, clamp_min, clamp_max)
  const int16x8_t zero_point = vdupq_n_s16((int16_t)operator->output_zero_point);
  const int16x8_t low = vqmovn_high_s32(vqmovn_s32(vcvtnq_s32_f32(value[0])), vcvtnq_s32_f32(value[1]));
  const int16x8_t high = vqmovn_high_s32(vqmovn_s32(vcvtnq_s32_f32(value[2])), vcvtnq_s32_f32(value[3]));
  int8x16_t bytes = vqmovn_high_s16(vqmovn_s16(vqaddq_s16(low, zero_point)), vqaddq_s16(high, zero_point));
  bytes = vmaxq_s8(bytes, vdupq_n_s8((int8_t)operator->clamp_min));
  bytes = vminq_s8(bytes, vdupq_n_s8((int8_t)operator->clamp_max));
  spw_store_bytes((int8_t *)run->output + at, bytes, run->pixels);
}

// spw_finish_qa8() for the one pixel of a matrix-vector product.
SPW_ALWAYS_INLINE void spw_finish_vector_qa8(const struct spw_conv_run *run, int pack, int32x4_t sum,
                                             int float_output) {
  struct spw_conv_run one = *run;
  one.pixels = 1;
  const int32x4_t quad[4] = {sum, vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
  spw_finish_quad_qa8(&one, pack, 0, quad, float_output);
}

// spw_finish_f32() for one pixel; element: of the pixel in its plane.
SPW_ALWAYS_INLINE void spw_finish_pixel_f32(const struct spw_conv_run *run, int pack, size_t element,
                                            float32x4_t sum) {
  const size_t at = (size_t)pack * run->plane + element;
  if (run->residual) sum = vaddq_f32(sum, vld1q_f32((const float *)run->residual + at));
  vst1q_f32((float *)run->output + at, spw_clamp_vector(run->operator, sum));
}

#endif
