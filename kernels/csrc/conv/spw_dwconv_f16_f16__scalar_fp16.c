// Depthwise convolution in half precision. A window is short: its sum begins with the bias.
#include "half_scalar.h"

void spw_dwconv_clamp_f16_f16_f16__scalar_fp16(const struct spw_conv_run *run) {
  const spw_half *weights = run->weights;
  for (size_t index = 0; index < run->quads; ++index) {
    for (int pixel = 0; pixel < run->pixels; ++pixel) {
      const char *address = (const char *)run->activation + run->quad[index].input + 8 * pixel;
      spw_half sum[4];
      for (int lane = 0; lane < 4; ++lane) {
        sum[lane] = (spw_half)run->bias[lane];
        for (size_t tap = 0; tap < run->taps; ++tap)
          sum[lane] = spw_half_multiply_add(sum[lane], weights[4 * tap + (size_t)lane],
                                            ((const spw_half *)(address + run->offsets[tap]))[lane]);
      }
      spw_finish_f16(run, 0, (size_t)(run->quad[index].output + 4 * pixel), sum);
    }
  }
}
