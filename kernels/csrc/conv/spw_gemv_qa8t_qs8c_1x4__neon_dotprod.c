// Linear layer of int8 on one vector with sdot: a load of 16 activations is four taps, one a lane.
#ifndef __ARM_FEATURE_DOTPROD
#error "compile for a processor with dotprod"
#endif

#include "epilogue_neon.h"

SPW_ALWAYS_INLINE void multiply(const struct spw_conv_run *run, const int float_output) {
  // A sum for each lane, so that no sdot waits for the one before it.
  int32x4_t sum[4] = {vld1q_s32(run->initial), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
  const int8_t *activation = run->activation, *block = run->weights;
  for (size_t fours = run->taps / 4; fours; --fours, activation += 16, block += 64) {
    const int8x16_t taps = vld1q_s8(activation);
    sum[0] = vdotq_laneq_s32(sum[0], vld1q_s8(block), taps, 0);
    sum[1] = vdotq_laneq_s32(sum[1], vld1q_s8(block + 16), taps, 1);
    sum[2] = vdotq_laneq_s32(sum[2], vld1q_s8(block + 32), taps, 2);
    sum[3] = vdotq_laneq_s32(sum[3], vld1q_s8(block + 48), taps, 3);
  }
  for (size_t rest = run->taps % 4; rest; --rest, activation += 4, block += 16) {
    const int8x16_t tap = vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t *)activation));
    sum[0] = vdotq_s32(sum[0], vld1q_s8(block), tap);
  }
  const int32x4_t whole = vaddq_s32(vaddq_s32(sum[0], sum[1]), vaddq_s32(sum[2], sum[3]));
  spw_finish_vector_qa8(run, whole, float_output);
}

void spw_gemv_clamp_qa8t_qa8t_qs8c_1x4__neon_dotprod(const struct spw_conv_run *run) { multiply(run, 0); }

void spw_gemv_clamp_f32_qa8t_qs8c_1x4__neon_dotprod(const struct spw_conv_run *run) { multiply(run, 1); }
