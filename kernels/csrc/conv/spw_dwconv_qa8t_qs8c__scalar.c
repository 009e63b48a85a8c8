// Depthwise convolution of int8: every channel has its own window.
#include "epilogue_scalar.h"

static void convolve(const struct spw_conv_run *run, int float_output) {
  const int8_t *weights = run->weights;
  for (size_t index = 0; index < run->quads; ++index) {
    for (int pixel = 0; pixel < run->pixels; ++pixel) {
      const int8_t *activation = (const int8_t *)run->activation + run->quad[index].input + 4 * pixel;
      int32_t sum[4];
      for (int lane = 0; lane < 4; ++lane) {
        sum[lane] = run->initial[lane];
        for (size_t tap = 0; tap < run->taps; ++tap)
          sum[lane] =
              spw_multiply_add(sum[lane], weights[4 * tap + (size_t)lane], activation[run->offsets[tap] + lane]);
      }
      spw_finish_qa8(run, 0, (size_t)(run->quad[index].output + 4 * pixel), sum, float_output);
    }
  }
}

void spw_dwconv_clamp_qa8t_qa8t_qs8c__scalar(const struct spw_conv_run *run) { convolve(run, 0); }

void spw_dwconv_clamp_f32_qa8t_qs8c__scalar(const struct spw_conv_run *run) { convolve(run, 1); }
