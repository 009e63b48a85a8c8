// Dense convolution of int8, one pixel at a time: what the vector kernels of this family compute.
#include "epilogue_scalar.h"

static void convolve(const struct spw_conv_run *run, int float_output) {
  for (size_t index = 0; index < run->quads; ++index) {
    for (int pixel = 0; pixel < run->pixels; ++pixel) {
      const int8_t *activation = (const int8_t *)run->activation + run->quad[index].input + 4 * pixel;
      for (int pack = 0; pack < run->packs; ++pack) {
        int32_t sum[4];
        for (int out = 0; out < 4; ++out) sum[out] = run->initial[4 * pack + out];
        for (size_t tap = 0; tap < run->taps; ++tap) {
          const int8_t *block = (const int8_t *)run->weights + 16 * (tap * (size_t)run->packs + (size_t)pack);
          for (int out = 0; out < 4; ++out)
            for (int in = 0; in < 4; ++in)
              sum[out] = spw_multiply_add(sum[out], block[4 * out + in], activation[run->offsets[tap] + in]);
        }
        spw_finish_qa8(run, 4 * pack, (size_t)(run->quad[index].output + 4 * pixel), sum, float_output);
      }
    }
  }
}

void spw_conv_clamp_qa8t_qa8t_qs8c__scalar(const struct spw_conv_run *run) { convolve(run, 0); }

void spw_conv_clamp_f32_qa8t_qs8c__scalar(const struct spw_conv_run *run) { convolve(run, 1); }
