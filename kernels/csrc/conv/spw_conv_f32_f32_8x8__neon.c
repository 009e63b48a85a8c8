// Dense convolution of float: 8 pixels x 8 output channels in 16 accumulators.
#include "epilogue_neon.h"

// sum[out] = fma(block[4 * in + out], activation[in], sum[out])
SPW_ALWAYS_INLINE void add_block(float32x4_t sum[4], const float *block, const float32x4_t activation[4]) {
  SPW_UNROLL for (int lane = 0; lane < 4; ++lane) sum[lane] =
      vfmaq_laneq_f32(sum[lane], vld1q_f32(block), activation[lane], 0);
  SPW_UNROLL for (int lane = 0; lane < 4; ++lane) sum[lane] =
      vfmaq_laneq_f32(sum[lane], vld1q_f32(block + 4), activation[lane], 1);
  SPW_UNROLL for (int lane = 0; lane < 4; ++lane) sum[lane] =
      vfmaq_laneq_f32(sum[lane], vld1q_f32(block + 8), activation[lane], 2);
  SPW_UNROLL for (int lane = 0; lane < 4; ++lane) sum[lane] =
      vfmaq_laneq_f32(sum[lane], vld1q_f32(block + 12), activation[lane], 3);
}

SPW_ALWAYS_INLINE void tile(const struct spw_conv_run *run, const struct spw_quad *quads_of_tile, const int quads,
                            const int packs) {
  float32x4_t sum[2][2][4];
  const char *pixel[2];
  SPW_UNROLL for (int quad = 0; quad < quads; ++quad) {
    pixel[quad] = (const char *)run->activation + quads_of_tile[quad].input;
    SPW_UNROLL for (int pack = 0; pack < packs; ++pack) SPW_UNROLL for (int lane = 0; lane < 4; ++lane)
        sum[quad][pack][lane] = vld1q_f32(run->bias + 4 * pack);
  }
  const float *block = run->weights;
  for (size_t tap = 0; tap < run->taps; ++tap, block += 16 * packs) {
    float32x4_t activation[2][4];
    SPW_UNROLL for (int quad = 0; quad < quads; ++quad) {
      const float *first = (const float *)(pixel[quad] + run->offsets[tap]);
      SPW_UNROLL for (int lane = 0; lane < 4; ++lane) activation[quad][lane] = vld1q_f32(first + 4 * lane);
    }
    SPW_UNROLL for (int pack = 0; pack < packs; ++pack) SPW_UNROLL for (int quad = 0; quad < quads; ++quad)
        add_block(sum[quad][pack], block + 16 * pack, activation[quad]);
  }
  SPW_UNROLL for (int quad = 0; quad < quads; ++quad) SPW_UNROLL for (int pack = 0; pack < packs; ++pack)
      spw_finish_quad_f32(run, pack, quads_of_tile[quad].output, sum[quad][pack], run->pixels);
}

SPW_ALWAYS_INLINE void convolve(const struct spw_conv_run *run, const int packs) {
  const struct spw_quad *quad = run->quad, *end = quad + run->quads;
  for (; end - quad >= 2; quad += 2) tile(run, quad, 2, packs);
  if (quad < end) tile(run, quad, 1, packs);
}

void spw_conv_clamp_f32_f32_f32_8x8__neon(const struct spw_conv_run *run) {
  if (run->packs == 2) convolve(run, 2);
  else convolve(run, 1);
}
