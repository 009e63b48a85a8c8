// Dense convolution of halves in float: 8 pixels x 8 output channels in 16 accumulators.
#include "widened_neon.h"

// sum[out] = fma(row[out], activation[in], sum[out])
#define ADD_INPUT(in)                                                                                              \
  {                                                                                                                \
    float32x4_t row[2];                                                                                            \
    if (packs == 2) spw_load_widened_pair(weights + 4 * all_packs * (in), row);                                    \
    else row[0] = spw_load_widened(weights + 4 * (in));                                                            \
    SPW_UNROLL for (int pack = 0; pack < packs; ++pack) SPW_UNROLL for (int pixel = 0; pixel < 4 * quads; ++pixel) \
        sum[pack][pixel] = vfmaq_laneq_f32(sum[pack][pixel], row[pack], activation[pixel], in);                    \
  }

SPW_ALWAYS_INLINE void tile(const struct spw_conv_run *run, const struct spw_quad *quads_of_tile, const int quads,
                            const int packs, const int first_pack, const int all_packs) {
  float32x4_t sum[2][8];
  const char *pixels[2];
  SPW_UNROLL for (int quad = 0; quad < quads; ++quad) pixels[quad] =
      (const char *)run->activation + quads_of_tile[quad].input;
  SPW_UNROLL for (int pack = 0; pack < packs; ++pack) SPW_UNROLL for (int pixel = 0; pixel < 4 * quads; ++pixel)
      sum[pack][pixel] = vld1q_f32(run->bias + 4 * (first_pack + pack));
  const float16_t *weights = (const float16_t *)run->weights + 4 * first_pack;
  for (size_t tap = 0; tap < run->taps; ++tap, weights += 16 * all_packs) {
    float32x4_t activation[8];
    SPW_UNROLL for (int quad = 0; quad < quads; ++quad) {
      const float16_t *from = (const float16_t *)(pixels[quad] + run->offsets[tap]);
      spw_load_widened_pair(from, activation + 4 * quad);
      spw_load_widened_pair(from + 8, activation + 4 * quad + 2);
    }
    ADD_INPUT(0)
    ADD_INPUT(1)
    ADD_INPUT(2)
    ADD_INPUT(3)
  }
  SPW_UNROLL for (int quad = 0; quad < quads; ++quad) SPW_UNROLL for (int pack = 0; pack < packs; ++pack)
      spw_finish_quad_widened(run, first_pack + pack, quads_of_tile[quad].output, sum[pack] + 4 * quad, run->pixels);
}

SPW_ALWAYS_INLINE void convolve(const struct spw_conv_run *run, const int packs, const int first_pack,
                                const int all_packs) {
  const struct spw_quad *quad = run->quad, *end = quad + run->quads;
  for (; end - quad >= 2; quad += 2) tile(run, quad, 2, packs, first_pack, all_packs);
  if (quad < end) tile(run, quad, 1, packs, first_pack, all_packs);
}

void spw_conv_clamp_f16_f16_f16_8x8__neon(const struct spw_conv_run *run) {
  for (int pack = 0; pack + 2 <= run->packs; pack += 2) convolve(run, 2, pack, run->packs);
  if (run->packs == 1) convolve(run, 1, 0, 1);
}
