// Linear layer in half precision on one vector: a partial sum for each input channel of a pack, in blocks as in the
// convolution.
#include "half_scalar.h"

void spw_gemv_clamp_f16_f16_f16__scalar_fp16(const struct spw_conv_run *run) {
  const spw_half *activation = run->activation;
  for (int pack = 0; pack < run->packs; ++pack) {
    spw_half total[4];
    for (int out = 0; out < 4; ++out) total[out] = (spw_half)run->bias[4 * pack + out];
    for (size_t first = 0; first < run->taps; first += SPW_HALF_BLOCK) {
      spw_half partial[4][4] = {{0}};
      for (size_t tap = first; tap < run->taps && tap < first + SPW_HALF_BLOCK; ++tap)
        for (int in = 0; in < 4; ++in)
          for (int out = 0; out < 4; ++out)
            partial[in][out] = spw_half_multiply_add(
                partial[in][out],
                ((const spw_half *)
                     run->weights)[((4 * tap + (size_t)in) * (size_t)run->packs + (size_t)pack) * 4 + (size_t)out],
                activation[4 * tap + (size_t)in]);
      for (int out = 0; out < 4; ++out)
        total[out] = spw_half_add(total[out], spw_half_add(spw_half_add(partial[0][out], partial[1][out]),
                                                           spw_half_add(partial[2][out], partial[3][out])));
    }
    spw_finish_f16(run, 4 * pack, 0, total);
  }
}
