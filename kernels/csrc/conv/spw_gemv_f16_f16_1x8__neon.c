// Linear layer of halves on one vector, in float: a partial sum for each input channel of a pack, as in the scalar twin.
#include "widened_neon.h"

// partial[in][out] = fma(row[in][out], activation[in], partial[in][out])
#define ADD_INPUT(in)                                                       \
  {                                                                         \
    float32x4_t row[2];                                                     \
    if (packs == 2) spw_load_widened_pair(weights + 8 * (in), row);         \
    else row[0] = spw_load_widened(weights + 4 * (in));                     \
    SPW_UNROLL for (int pack = 0; pack < packs; ++pack) partial[pack][in] = \
        vfmaq_laneq_f32(partial[pack][in], row[pack], four, in);            \
  }

SPW_ALWAYS_INLINE void multiply(const struct spw_conv_run *run, const int packs) {
  float32x4_t partial[2][4];
  SPW_UNROLL for (int pack = 0; pack < packs; ++pack) SPW_UNROLL for (int in = 0; in < 4; ++in) partial[pack][in] =
      vdupq_n_f32(0);
  const float16_t *activation = run->activation, *weights = run->weights;
  for (size_t tap = 0; tap < run->taps; ++tap, activation += 4, weights += 16 * packs) {
    const float32x4_t four = spw_load_widened(activation);
    ADD_INPUT(0)
    ADD_INPUT(1)
    ADD_INPUT(2)
    ADD_INPUT(3)
  }
  SPW_UNROLL for (int pack = 0; pack < packs; ++pack) {
    const float32x4_t sum =
        vaddq_f32(vaddq_f32(partial[pack][0], partial[pack][1]), vaddq_f32(partial[pack][2], partial[pack][3]));
    const float32x4_t pixel[4] = {vaddq_f32(sum, vld1q_f32(run->bias + 4 * pack))};
    spw_finish_quad_widened(run, pack, 0, pixel, 1);
  }
}

void spw_gemv_clamp_f16_f16_f16_1x8__neon(const struct spw_conv_run *run) {
  if (run->packs == 2) multiply(run, 2);
  else multiply(run, 1);
}
