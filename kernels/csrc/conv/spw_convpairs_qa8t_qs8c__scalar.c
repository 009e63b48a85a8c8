// Convolution of int8 in pairs of packs (see pairs.h), one pixel at a time: what the vector kernel computes.
#include "epilogue_scalar.h"
#include "pairs.h"

static void convolve(const struct spw_conv_run *run, int float_output) {
  static const int order[4] = {0, 2, 1, 3};
  for (size_t index = 0; index < run->spans; ++index) {
    for (int pixel = 0; pixel < run->span[index].pixels; ++pixel) {
      const int8_t *activation = (const int8_t *)run->activation + run->span[index].input + 8 * pixel;
      for (int pack = 0; pack < run->packs; ++pack) {
        int32_t sum[4];
        for (int out = 0; out < 4; ++out) sum[out] = run->initial[4 * pack + out];
        for (size_t tap = 0; tap < run->taps; ++tap) {
          const int8_t *block =
              (const int8_t *)run->weights + SPW_PAIR_BLOCK * ((size_t)run->packs * tap + (size_t)pack);
          for (int row = 0; row < 4; ++row)
            for (int in = 0; in < 8; ++in)
              sum[order[row]] =
                  spw_multiply_add(sum[order[row]], block[8 * row + in], activation[run->offsets[tap] + in]);
        }
        spw_finish_qa8(run, 4 * pack, (size_t)(run->span[index].output + 4 * pixel), sum, float_output);
      }
    }
  }
}

void spw_convpairs_clamp_qa8t_qa8t_qs8c__scalar(const struct spw_conv_run *run) { convolve(run, 0); }

void spw_convpairs_clamp_f32_qa8t_qs8c__scalar(const struct spw_conv_run *run) { convolve(run, 1); }
