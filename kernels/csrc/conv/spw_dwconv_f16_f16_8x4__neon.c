// Depthwise convolution of halves in float: 8 pixels x 4 channels.
#include "widened_neon.h"

SPW_ALWAYS_INLINE void tile(const struct spw_conv_run *run, const struct spw_quad *quads_of_tile, const int quads) {
  float32x4_t sum[2][4];
  const char *pixels[2];
  SPW_UNROLL for (int quad = 0; quad < quads; ++quad) {
    pixels[quad] = (const char *)run->activation + quads_of_tile[quad].input;
    SPW_UNROLL for (int pixel = 0; pixel < 4; ++pixel) sum[quad][pixel] = vld1q_f32(run->bias);
  }
  const float16_t *weights = run->weights;
  for (size_t tap = 0; tap < run->taps; ++tap, weights += 4) {
    const float32x4_t weight = spw_load_widened(weights);
    SPW_UNROLL for (int quad = 0; quad < quads; ++quad) {
      const float16_t *from = (const float16_t *)(pixels[quad] + run->offsets[tap]);
      float32x4_t activation[4];
      spw_load_widened_pair(from, activation);
      spw_load_widened_pair(from + 8, activation + 2);
      // sum[lane] = fma(weight[lane], activation[lane], sum[lane])
      SPW_UNROLL for (int pixel = 0; pixel < 4; ++pixel) sum[quad][pixel] =
          vfmaq_f32(sum[quad][pixel], weight, activation[pixel]);
    }
  }
  SPW_UNROLL for (int quad = 0; quad < quads; ++quad)
      spw_finish_quad_widened(run, 0, quads_of_tile[quad].output, sum[quad], run->pixels);
}

void spw_dwconv_clamp_f16_f16_f16_8x4__neon(const struct spw_conv_run *run) {
  const struct spw_quad *quad = run->quad, *end = quad + run->quads;
  for (; end - quad >= 2; quad += 2) tile(run, quad, 2);
  if (quad < end) tile(run, quad, 1);
}
