// Linear layer of halves on one vector, in float: a partial sum for each input channel of a pack.
#include "half_scalar.h"

void spw_gemv_clamp_f16_f16_f16__scalar(const struct spw_conv_run *run) {
  const spw_half *activation = run->activation;
  for (int pack = 0; pack < run->packs; ++pack) {
    float partial[4][4] = {{0}};
    for (size_t tap = 0; tap < run->taps; ++tap) {
      for (int in = 0; in < 4; ++in) {
        const spw_half *row = (const spw_half *)run->weights + (4 * tap + (size_t)in) * 4 * (size_t)run->packs;
        for (int out = 0; out < 4; ++out)
          partial[in][out] = fmaf(row[4 * pack + out], activation[4 * tap + (size_t)in], partial[in][out]);
      }
    }
    float sum[4];
    for (int out = 0; out < 4; ++out)
      sum[out] =
          ((partial[0][out] + partial[1][out]) + (partial[2][out] + partial[3][out])) + run->bias[4 * pack + out];
    spw_finish_widened(run, 4 * pack, 0, sum);
  }
}
