// Convolution of int8, one pixel at a time: what the vector kernels of this family compute.
#include "epilogue_scalar.h"

static void convolve(const struct spw_conv_run *run, int float_output) {
  for (size_t index = 0; index < run->spans; ++index) {
    for (int pixel = 0; pixel < run->span[index].pixels; ++pixel) {
      const int8_t *activation = (const int8_t *)run->activation + run->span[index].input + 4 * pixel;
      int32_t sum[4];
      for (int out = 0; out < 4; ++out) sum[out] = run->initial[out];
      for (size_t tap = 0; tap < run->taps; ++tap) {
        const int8_t *block = (const int8_t *)run->weights + 16 * tap;
        for (int out = 0; out < 4; ++out)
          for (int in = 0; in < 4; ++in)
            sum[out] = spw_multiply_add(sum[out], block[4 * out + in], activation[run->offsets[tap] + in]);
      }
      spw_finish_qa8(run, 0, (size_t)(run->span[index].output + 4 * pixel), sum, float_output);
    }
  }
}

void spw_conv_clamp_qa8t_qa8t_qs8c__scalar(const struct spw_conv_run *run) { convolve(run, 0); }

void spw_conv_clamp_f32_qa8t_qs8c__scalar(const struct spw_conv_run *run) { convolve(run, 1); }
