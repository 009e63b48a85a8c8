// Dense convolution of halves in float, one pixel at a time. The order of additions is part of the definition.
#include "half_scalar.h"

void spw_conv_clamp_f16_f16_f16__scalar(const struct spw_conv_run *run) {
  for (size_t index = 0; index < run->quads; ++index) {
    for (int pixel = 0; pixel < run->pixels; ++pixel) {
      const char *address = (const char *)run->activation + run->quad[index].input + 8 * pixel;
      for (int pack = 0; pack < run->packs; ++pack) {
        float sum[4];
        for (int out = 0; out < 4; ++out) sum[out] = run->bias[4 * pack + out];
        for (size_t tap = 0; tap < run->taps; ++tap) {
          const spw_half *activation = (const spw_half *)(address + run->offsets[tap]);
          for (int in = 0; in < 4; ++in) {
            const spw_half *row = (const spw_half *)run->weights + (4 * tap + (size_t)in) * 4 * (size_t)run->packs;
            for (int out = 0; out < 4; ++out) sum[out] = fmaf(row[4 * pack + out], activation[in], sum[out]);
          }
        }
        spw_finish_widened(run, 4 * pack, (size_t)(run->quad[index].output + 4 * pixel), sum);
      }
    }
  }
}
