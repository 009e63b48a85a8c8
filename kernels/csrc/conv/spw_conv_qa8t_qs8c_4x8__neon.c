// Dense convolution of int8 for processors without dotprod: 4 pixels x 8 output channels in 16 accumulators.
//
// A pixel's 4 input channels, repeated, meet two output channels of a weight block in one smull: 8 products of 16 bits.
// Weights stay within [-127, 127], so two taps (2 * 127 * 128 = 32512) fit before sadalp widens them. An accumulator
// holds two partial sums for each of two output channels; addp makes them whole at the end. Two taps of the full tile
// are 32 multiplications, 16 widening additions and 8 repetitions for 256 products.
#include "epilogue_neon.h"

SPW_ALWAYS_INLINE void add_taps(int32x4_t sum[4][4], const int8_t *pixel, const int32_t *offset, const int8_t *block,
                                const int taps, const int packs) {
  const int32x4_t first = vreinterpretq_s32_s8(vld1q_s8(pixel + offset[0]));
  const int32x4_t second = vreinterpretq_s32_s8(vld1q_s8(pixel + offset[taps - 1]));
  const int8x16_t repeated[4] = {
      vreinterpretq_s8_s32(vdupq_laneq_s32(first, 0)), vreinterpretq_s8_s32(vdupq_laneq_s32(first, 1)),
      vreinterpretq_s8_s32(vdupq_laneq_s32(first, 2)), vreinterpretq_s8_s32(vdupq_laneq_s32(first, 3))};
  const int8x16_t repeated_second[4] = {
      vreinterpretq_s8_s32(vdupq_laneq_s32(second, 0)), vreinterpretq_s8_s32(vdupq_laneq_s32(second, 1)),
      vreinterpretq_s8_s32(vdupq_laneq_s32(second, 2)), vreinterpretq_s8_s32(vdupq_laneq_s32(second, 3))};
  SPW_UNROLL for (int lane = 0; lane < 4; ++lane) {
    SPW_UNROLL for (int pack = 0; pack < packs; ++pack) {
      const int8x16_t weights = vld1q_s8(block + 16 * pack);
      int16x8_t low = vmull_s8(vget_low_s8(weights), vget_low_s8(repeated[lane]));
      int16x8_t high = vmull_high_s8(weights, repeated[lane]);
      if (taps == 2) {
        const int8x16_t more = vld1q_s8(block + 16 * (packs + pack));
        low = vmlal_s8(low, vget_low_s8(more), vget_low_s8(repeated_second[lane]));
        high = vmlal_high_s8(high, more, repeated_second[lane]);
      }
      sum[lane][2 * pack] = vpadalq_s16(sum[lane][2 * pack], low);
      sum[lane][2 * pack + 1] = vpadalq_s16(sum[lane][2 * pack + 1], high);
    }
  }
}

SPW_ALWAYS_INLINE void tile(const struct spw_conv_run *run, const struct spw_epilogue_qa8 *epilogue,
                            const struct spw_quad *quad, const int packs, const int float_output) {
  int32x4_t sum[4][4];
  SPW_UNROLL for (int lane = 0; lane < 4; ++lane)
    SPW_UNROLL for (int half = 0; half < 2 * packs; ++half) sum[lane][half] = vdupq_n_s32(0);
  const int8_t *pixel = (const int8_t *)run->activation + quad->input;
  const int8_t *block = run->weights;
  const int32_t *offset = run->offsets;
  for (size_t pairs = run->taps / 2; pairs; --pairs, offset += 2, block += 32 * packs)
    add_taps(sum, pixel, offset, block, 2, packs);
  if (run->taps % 2) add_taps(sum, pixel, offset, block, 1, packs);
  SPW_UNROLL for (int pack = 0; pack < packs; ++pack) {
    const int32x4_t initial = vld1q_s32(run->initial + 4 * pack);
    int32x4_t whole[4];
    SPW_UNROLL for (int lane = 0; lane < 4; ++lane)
      whole[lane] = vaddq_s32(vpaddq_s32(sum[lane][2 * pack], sum[lane][2 * pack + 1]), initial);
    spw_finish_quad_qa8(epilogue, pack, quad->output, whole, float_output);
  }
}

SPW_ALWAYS_INLINE void convolve(const struct spw_conv_run *run, const int packs, const int float_output) {
  const struct spw_epilogue_qa8 epilogue = spw_begin_qa8(run, packs);
  for (size_t index = 0; index < run->quads; ++index) tile(run, &epilogue, run->quad + index, packs, float_output);
}

void spw_conv_clamp_qa8t_qa8t_qs8c_4x8__neon(const struct spw_conv_run *run) {
  if (run->packs == 2) convolve(run, 2, 0);
  else convolve(run, 1, 0);
}

void spw_conv_clamp_f32_qa8t_qs8c_4x8__neon(const struct spw_conv_run *run) {
  if (run->packs == 2) convolve(run, 2, 1);
  else convolve(run, 1, 1);
}
