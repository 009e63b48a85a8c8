// Linear layer of float on one vector. Four partial sums, one for each input channel of a pack, keep the vector unit's
// pipeline full; the order in which they are added up is part of the definition.
#include "epilogue_scalar.h"

void spw_gemv_clamp_f32_f32_f32__scalar(const struct spw_conv_run *run) {
  for (int pack = 0; pack < run->packs; ++pack) {
    float partial[4][4] = {{0}};
    for (size_t tap = 0; tap < run->taps; ++tap) {
      const float *block = (const float *)run->weights + 16 * (tap * (size_t)run->packs + (size_t)pack);
      const float *activation = (const float *)run->activation + 4 * tap;
      for (int in = 0; in < 4; ++in)
        for (int out = 0; out < 4; ++out)
          partial[in][out] = fmaf(block[4 * in + out], activation[in], partial[in][out]);
    }
    float sum[4];
    for (int out = 0; out < 4; ++out)
      sum[out] =
          ((partial[0][out] + partial[1][out]) + (partial[2][out] + partial[3][out])) + run->bias[4 * pack + out];
    spw_finish_f32(run, 4 * pack, 0, sum);
  }
}
