// Linear layer of float on one vector: a partial sum for each input channel of a pack, as in the scalar twin.
#include "epilogue_neon.h"

SPW_ALWAYS_INLINE void multiply(const struct spw_conv_run *run, const int packs) {
  float32x4_t partial[2][4];
  SPW_UNROLL for (int pack = 0; pack < packs; ++pack) SPW_UNROLL for (int in = 0; in < 4; ++in) partial[pack][in] =
      vdupq_n_f32(0);
  const float *activation = run->activation, *block = run->weights;
  for (size_t tap = 0; tap < run->taps; ++tap, activation += 4, block += 16 * packs) {
    const float32x4_t four = vld1q_f32(activation);
    // partial[in][out] = fma(block[4 * in + out], activation[in], partial[in][out])
    SPW_UNROLL for (int pack = 0; pack < packs; ++pack) {
      partial[pack][0] = vfmaq_laneq_f32(partial[pack][0], vld1q_f32(block + 16 * pack), four, 0);
      partial[pack][1] = vfmaq_laneq_f32(partial[pack][1], vld1q_f32(block + 16 * pack + 4), four, 1);
      partial[pack][2] = vfmaq_laneq_f32(partial[pack][2], vld1q_f32(block + 16 * pack + 8), four, 2);
      partial[pack][3] = vfmaq_laneq_f32(partial[pack][3], vld1q_f32(block + 16 * pack + 12), four, 3);
    }
  }
  SPW_UNROLL for (int pack = 0; pack < packs; ++pack) {
    const float32x4_t sum =
        vaddq_f32(vaddq_f32(partial[pack][0], partial[pack][1]), vaddq_f32(partial[pack][2], partial[pack][3]));
    const float32x4_t pixel[4] = {vaddq_f32(sum, vld1q_f32(run->bias + 4 * pack))};
    spw_finish_quad_f32(run, pack, 0, pixel, 1);
  }
}

void spw_gemv_clamp_f32_f32_f32_1x8__neon(const struct spw_conv_run *run) {
  if (run->packs == 2) multiply(run, 2);
  else multiply(run, 1);
}
