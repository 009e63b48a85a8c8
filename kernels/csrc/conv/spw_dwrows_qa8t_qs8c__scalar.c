// Depthwise convolution of int8 by rows: every channel has its own square window.
#include "epilogue_scalar.h"

static void convolve(const struct spw_conv_run *run, int float_output) {
  const int size = run->operator->kernel_width, stride = run->operator->stride_width;
  const int8_t *weights = run->weights;
  for (int row = 0; row < run->rows; ++row) {
    for (int column = 0; column < run->columns; ++column) {
      const int8_t *window =
          (const int8_t *)run->activation + (size_t)(row * stride) * run->row_bytes + 4 * (column * stride);
      int32_t sum[4];
      for (int lane = 0; lane < 4; ++lane) {
        sum[lane] = run->initial[lane];
        for (int y = 0; y < size; ++y)
          for (int x = 0; x < size; ++x)
            sum[lane] = spw_multiply_add(sum[lane], weights[4 * (y * size + x) + lane],
                                         window[(size_t)y * run->row_bytes + (size_t)(4 * x + lane)]);
      }
      spw_finish_qa8(run, 0, 4 * ((size_t)row * (size_t)run->columns + (size_t)column), sum, float_output);
    }
  }
}

void spw_dwrows_clamp_qa8t_qa8t_qs8c__scalar(const struct spw_conv_run *run) { convolve(run, 0); }

void spw_dwrows_clamp_f32_qa8t_qs8c__scalar(const struct spw_conv_run *run) { convolve(run, 1); }
