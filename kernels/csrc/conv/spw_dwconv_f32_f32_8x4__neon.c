// Depthwise convolution of float: 8 pixels x 4 channels.
#include "epilogue_neon.h"

SPW_ALWAYS_INLINE void tile(const struct spw_conv_run *run, const struct spw_quad *quads_of_tile, const int quads) {
  float32x4_t sum[2][4];
  const char *pixel[2];
  SPW_UNROLL for (int quad = 0; quad < quads; ++quad) {
    pixel[quad] = (const char *)run->activation + quads_of_tile[quad].input;
    SPW_UNROLL for (int lane = 0; lane < 4; ++lane) sum[quad][lane] = vld1q_f32(run->bias);
  }
  const float *weights = run->weights;
  for (size_t tap = 0; tap < run->taps; ++tap, weights += 4) {
    SPW_UNROLL for (int quad = 0; quad < quads; ++quad) {
      const float *first = (const float *)(pixel[quad] + run->offsets[tap]);
      SPW_UNROLL for (int lane = 0; lane < 4; ++lane) sum[quad][lane] =
          vfmaq_f32(sum[quad][lane], vld1q_f32(weights), vld1q_f32(first + 4 * lane));
    }
  }
  SPW_UNROLL for (int quad = 0; quad < quads; ++quad)
      spw_finish_quad_f32(run, 0, quads_of_tile[quad].output, sum[quad], run->pixels);
}

void spw_dwconv_clamp_f32_f32_f32_8x4__neon(const struct spw_conv_run *run) {
  const struct spw_quad *quad = run->quad, *end = quad + run->quads;
  for (; end - quad >= 2; quad += 2) tile(run, quad, 2);
  if (quad < end) tile(run, quad, 1);
}
