// Linear layer of int8 on one vector without dotprod: a tap's 4 activations, repeated, meet two output channels of a
// weight block in one smull; otherwise as spw_conv_qa8t_qs8c_8x4__neon.c.
#include "epilogue_neon.h"

SPW_ALWAYS_INLINE void add_taps(int32x4_t sum[2], const int8_t *activation, const int8_t *block, const int taps) {
  const int8x16_t first = vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t *)activation));
  const int8x16_t second = vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t *)activation + taps - 1));
  const int8x16_t weights = vld1q_s8(block), more = vld1q_s8(block + 16 * (taps - 1));
  int16x8_t low = vmull_s8(vget_low_s8(weights), vget_low_s8(first));
  int16x8_t high = vmull_high_s8(weights, first);
  if (taps == 2) {
    low = vmlal_s8(low, vget_low_s8(more), vget_low_s8(second));
    high = vmlal_high_s8(high, more, second);
  }
  sum[0] = vpadalq_s16(sum[0], low);
  sum[1] = vpadalq_s16(sum[1], high);
}

SPW_ALWAYS_INLINE void multiply(const struct spw_conv_run *run, const int float_output) {
  int32x4_t sum[2] = {vdupq_n_s32(0), vdupq_n_s32(0)};
  const int8_t *activation = run->activation, *block = run->weights;
  for (size_t pairs = run->taps / 2; pairs; --pairs, activation += 8, block += 32) add_taps(sum, activation, block, 2);
  if (run->taps % 2) add_taps(sum, activation, block, 1);
  const int32x4_t whole = vaddq_s32(vpaddq_s32(sum[0], sum[1]), vld1q_s32(run->initial));
  spw_finish_vector_qa8(run, whole, float_output);
}

void spw_gemv_clamp_qa8t_qa8t_qs8c_1x4__neon(const struct spw_conv_run *run) { multiply(run, 0); }

void spw_gemv_clamp_f32_qa8t_qs8c_1x4__neon(const struct spw_conv_run *run) { multiply(run, 1); }
