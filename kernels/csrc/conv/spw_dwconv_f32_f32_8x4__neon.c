// Depthwise convolution of float: 8 pixels x 4 channels.
#include "epilogue_neon.h"

SPW_ALWAYS_INLINE void tile(const struct spw_conv_run *run, const struct spw_quad *quads_of_tile, const int quads) {
  float32x4_t sum[2][4];
  const char *pixel[2];
  for (int quad = 0; quad < quads; ++quad) {
    pixel[quad] = (const char *)run->activation + quads_of_tile[quad].input;
    for (int lane = 0; lane < 4; ++lane) sum[quad][lane] = vld1q_f32(run->bias);
  }
  const float *weights = run->weights;
  for (size_t tap = 0; tap < run->taps; ++tap, weights += 4) {
    for (int quad = 0; quad < quads; ++quad) {
      const float *first = (const float *)(pixel[quad] + run->offsets[tap]);
      for (int lane = 0; lane < 4; ++lane)
        sum[quad][lane] = vfmaq_f32(sum[quad][lane], vld1q_f32(weights), vld1q_f32(first + 4 * lane));
    }
  }
  for (int quad = 0; quad < quads; ++quad)
    for (int lane = 0; lane < 4; ++lane)
      if (lane < run->pixels)
        spw_finish_pixel_f32(run, 0, (size_t)(quads_of_tile[quad].output + 4 * lane), sum[quad][lane]);
}

void spw_dwconv_clamp_f32_f32_f32_8x4__neon(const struct spw_conv_run *run) {
  size_t index = 0;
  for (; index + 2 <= run->quads; index += 2) tile(run, run->quad + index, 2);
  if (index < run->quads) tile(run, run->quad + index, 1);
}
