// Dense convolution in half precision, one pixel at a time. The order of additions is part of the definition: sums of
// SPW_HALF_BLOCK taps each, added up from the bias on, so that rounding errors grow with the length of a block and the
// number of blocks and not with their product.
#include "half_scalar.h"

void spw_conv_clamp_f16_f16_f16__scalar_fp16(const struct spw_conv_run *run) {
  for (size_t index = 0; index < run->quads; ++index) {
    for (int pixel = 0; pixel < run->pixels; ++pixel) {
      const char *address = (const char *)run->activation + run->quad[index].input + 8 * pixel;
      for (int pack = 0; pack < run->packs; ++pack) {
        spw_half total[4], sum[4];
        for (int out = 0; out < 4; ++out) total[out] = (spw_half)run->bias[4 * pack + out];
        for (size_t first = 0; first < run->taps; first += SPW_HALF_BLOCK) {
          for (int out = 0; out < 4; ++out) sum[out] = 0;
          for (size_t tap = first; tap < run->taps && tap < first + SPW_HALF_BLOCK; ++tap) {
            const spw_half *activation = (const spw_half *)(address + run->offsets[tap]);
            for (int in = 0; in < 4; ++in) {
              const spw_half *row = (const spw_half *)run->weights + (4 * tap + (size_t)in) * 4 * (size_t)run->packs;
              for (int out = 0; out < 4; ++out)
                sum[out] = spw_half_multiply_add(sum[out], row[4 * pack + out], activation[in]);
            }
          }
          for (int out = 0; out < 4; ++out) total[out] = spw_half_add(total[out], sum[out]);
        }
        spw_finish_f16(run, 4 * pack, (size_t)(run->quad[index].output + 4 * pixel), total);
      }
    }
  }
}
