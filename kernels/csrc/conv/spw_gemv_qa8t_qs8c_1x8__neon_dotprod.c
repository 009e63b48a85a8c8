// Linear layer of int8 on one vector with sdot: a load of 16 activations is four taps, one a lane.
#ifndef __ARM_FEATURE_DOTPROD
#error "compile for a processor with dotprod"
#endif

#include "epilogue_neon.h"

SPW_ALWAYS_INLINE void multiply(const struct spw_conv_run *run, const int packs, const int float_output) {
  // A sum for each lane, so that no sdot waits for the one before it.
  int32x4_t sum[2][4];
  SPW_UNROLL for (int pack = 0; pack < packs; ++pack)
    SPW_UNROLL for (int lane = 0; lane < 4; ++lane)
      sum[pack][lane] = lane ? vdupq_n_s32(0) : vld1q_s32(run->initial + 4 * pack);
  const int8_t *activation = run->activation, *block = run->weights;
  for (size_t fours = run->taps / 4; fours; --fours, activation += 16, block += 64 * packs) {
    const int8x16_t taps = vld1q_s8(activation);
    SPW_UNROLL for (int pack = 0; pack < packs; ++pack) {
      sum[pack][0] = vdotq_laneq_s32(sum[pack][0], vld1q_s8(block + 16 * pack), taps, 0);
      sum[pack][1] = vdotq_laneq_s32(sum[pack][1], vld1q_s8(block + 16 * (packs + pack)), taps, 1);
      sum[pack][2] = vdotq_laneq_s32(sum[pack][2], vld1q_s8(block + 16 * (2 * packs + pack)), taps, 2);
      sum[pack][3] = vdotq_laneq_s32(sum[pack][3], vld1q_s8(block + 16 * (3 * packs + pack)), taps, 3);
    }
  }
  for (size_t rest = run->taps % 4; rest; --rest, activation += 4, block += 16 * packs) {
    const int8x16_t tap = vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t *)activation));
    SPW_UNROLL for (int pack = 0; pack < packs; ++pack) sum[pack][0] = vdotq_s32(sum[pack][0], vld1q_s8(block + 16 * pack), tap);
  }
  int32x4_t whole[2];
  SPW_UNROLL for (int pack = 0; pack < packs; ++pack)
    whole[pack] = vaddq_s32(vaddq_s32(sum[pack][0], sum[pack][1]), vaddq_s32(sum[pack][2], sum[pack][3]));
  spw_finish_vector_qa8(run, packs, whole, float_output);
}

void spw_gemv_clamp_qa8t_qa8t_qs8c_1x8__neon_dotprod(const struct spw_conv_run *run) {
  if (run->packs == 2) multiply(run, 2, 0);
  else multiply(run, 1, 0);
}

void spw_gemv_clamp_f32_qa8t_qs8c_1x8__neon_dotprod(const struct spw_conv_run *run) {
  if (run->packs == 2) multiply(run, 2, 1);
  else multiply(run, 1, 1);
}
