// Dense convolution of float, one pixel at a time. The order of additions is part of the definition.
#include "epilogue_scalar.h"

void spw_conv_clamp_f32_f32_f32__scalar(const struct spw_conv_run *run) {
  for (size_t index = 0; index < run->quads; ++index) {
    for (int pixel = 0; pixel < run->pixels; ++pixel) {
      const char *address = (const char *)run->activation + run->quad[index].input + 16 * pixel;
      for (int pack = 0; pack < run->packs; ++pack) {
        float sum[4];
        for (int out = 0; out < 4; ++out) sum[out] = run->bias[4 * pack + out];
        for (size_t tap = 0; tap < run->taps; ++tap) {
          const float *block = (const float *)run->weights + 16 * (tap * (size_t)run->packs + (size_t)pack);
          const float *activation = (const float *)(address + run->offsets[tap]);
          for (int in = 0; in < 4; ++in)
            for (int out = 0; out < 4; ++out) sum[out] = fmaf(block[4 * in + out], activation[in], sum[out]);
        }
        spw_finish_f32(run, 4 * pack, (size_t)(run->quad[index].output + 4 * pixel), sum);
      }
    }
  }
}
