// Linear layer in half precision on one vector: a partial sum for each input channel of a pack, as in the scalar twin.
#include "half_neon.h"

SPW_ALWAYS_INLINE void multiply(const struct spw_conv_run *run, const int packs) {
  const float16_t *activation = run->activation, *row = run->weights;
  float16x8_t total = spw_half_bias(run->bias, packs);
  for (size_t first = 0; first < run->taps; first += SPW_HALF_BLOCK) {
    float16x8_t partial[4];
    SPW_UNROLL for (int in = 0; in < 4; ++in) partial[in] = vdupq_n_f16(0);
    const size_t end = first + SPW_HALF_BLOCK < run->taps ? first + SPW_HALF_BLOCK : run->taps;
    for (size_t tap = first; tap < end; ++tap, activation += 4, row += 16 * packs) {
      const float16x4_t four = vld1_f16(activation);
      float16x8_t weights[4];
      SPW_UNROLL for (int in = 0; in < 4; ++in) weights[in] =
          packs == 2 ? vld1q_f16(row + 8 * in) : vcombine_f16(vld1_f16(row + 4 * in), vdup_n_f16(0));
      // partial[in][out] = multiply_add(partial[in][out], row[in][out], activation[in])
      partial[0] = vfmaq_lane_f16(partial[0], weights[0], four, 0);
      partial[1] = vfmaq_lane_f16(partial[1], weights[1], four, 1);
      partial[2] = vfmaq_lane_f16(partial[2], weights[2], four, 2);
      partial[3] = vfmaq_lane_f16(partial[3], weights[3], four, 3);
    }
    total = vaddq_f16(total, vaddq_f16(vaddq_f16(partial[0], partial[1]), vaddq_f16(partial[2], partial[3])));
  }
  const struct spw_epilogue_f16 epilogue = spw_begin_f16(run);
  spw_finish_pair_f16(&epilogue, 0, total, 1);
  if (packs == 2) spw_finish_pair_f16(&epilogue, run->plane, spw_high_halves(total, total), 1);
}

void spw_gemv_clamp_f16_f16_f16_1x8__neon_fp16(const struct spw_conv_run *run) {
  if (run->packs == 2) multiply(run, 2);
  else multiply(run, 1);
}
