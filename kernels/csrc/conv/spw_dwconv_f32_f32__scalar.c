// Depthwise convolution of float.
#include "epilogue_scalar.h"

void spw_dwconv_clamp_f32_f32_f32__scalar(const struct spw_conv_run *run) {
  const float *weights = run->weights;
  for (size_t index = 0; index < run->quads; ++index) {
    for (int pixel = 0; pixel < run->pixels; ++pixel) {
      const char *address = (const char *)run->activation + run->quad[index].input + 16 * pixel;
      float sum[4];
      for (int lane = 0; lane < 4; ++lane) {
        sum[lane] = run->bias[lane];
        for (size_t tap = 0; tap < run->taps; ++tap)
          sum[lane] =
              fmaf(weights[4 * tap + (size_t)lane], ((const float *)(address + run->offsets[tap]))[lane], sum[lane]);
      }
      spw_finish_f32(run, 0, (size_t)(run->quad[index].output + 4 * pixel), sum);
    }
  }
}
