// What follows the accumulators, one value at a time: the definition that epilogue_neon.h meets bit for bit.
#ifndef SPW_CONV_EPILOGUE_SCALAR_H
#define SPW_CONV_EPILOGUE_SCALAR_H

#include <math.h>

#include "kernel.h"

// fcvtns: nearest, ties to even, saturating; what is not a number gives 0.
static inline int32_t spw_round_half_even(float value) {
  if (isnan(value)) return 0;
  if (value >= 2147483648.0f) return INT32_MAX;
  if (value < -2147483648.0f) return INT32_MIN;
  return (int32_t)rintf(value);
}

static inline int32_t spw_clamp_int(int32_t value, int32_t low, int32_t high) {
  return value < low ? low : value > high ? high : value;
}

// fmaxnm then fminnm.
static inline float spw_clamp_float(const struct spw_conv2d *operator, float value) {
  value = value > operator->float_min ? value : operator->float_min;
  return value > operator->float_max ? operator->float_max : value;
}

// Sums wrap around like the vector unit's; a compiler may not assume that they do not.
static inline int32_t spw_multiply_add(int32_t sum, int8_t weight, int8_t activation) {
  return (int32_t)((uint32_t)sum + (uint32_t)(weight * activation));
}

// Writes the 4 channels of one pixel. channel: first of them within the panel; element: of the pixel in its plane.
static inline void spw_finish_qa8(const struct spw_conv_run *run, int channel, size_t element, const int32_t sum[4],
                                  int float_output) {
  const struct spw_conv2d *operator= run->operator;
  const size_t at = (size_t)channel / 4 * run->plane + element;
  for (int lane = 0; lane < 4; ++lane) {
    float value = fmaf((float)sum[lane], run->scale[channel + lane], run->bias[channel + lane]);
    if (run->residual) {
      const int32_t residual = ((const int8_t *)run->residual)[at + lane] - operator->residual_zero_point;
      value = fmaf((float)residual, operator->residual_scale, value);
    }
    if (float_output) {
      ((float *)run->output)[at + lane] = spw_clamp_float(operator, value);
    } else {
      const int32_t narrow = spw_clamp_int(spw_round_half_even(value), INT16_MIN, INT16_MAX);
      ((int8_t *)run->output)[at + lane] =
          (int8_t)spw_clamp_int(narrow + operator->output_zero_point, operator->clamp_min, operator->clamp_max);
    }
  }
}

static inline void spw_finish_f32(const struct spw_conv_run *run, int channel, size_t element, const float sum[4]) {
  const size_t at = (size_t)channel / 4 * run->plane + element;
  for (int lane = 0; lane < 4; ++lane) {
    const float value = run->residual ? sum[lane] + ((const float *)run->residual)[at + lane] : sum[lane];
    ((float *)run->output)[at + lane] = spw_clamp_float(run->operator, value);
  }
}

#endif
