// Convolution of int8 for processors without dotprod: 8 pixels x 4 output channels in 16 accumulators.
//
// An output channel's 4 weights, repeated, meet the 4 input channels of two pixels in one smull: 8 products of 16 bits.
// Weights stay within [-127, 127], so two taps (2 * 127 * 128 = 32512) fit before sadalp widens them. An accumulator
// holds two partial sums for each of two pixels; addp makes them whole at the end. Two taps of the full tile are 32
// multiplications, 16 widening additions and 8 repetitions for 256 products.
#include "epilogue_neon.h"
#include "epilogue_tile_neon.h"

// Both halves are equal, which clang would use to trade smull2 for ext and smull.
SPW_ALWAYS_INLINE int8x16_t hide(int8x16_t value) {
  __asm__("" : "+w"(value));
  return value;
}

// sum[quad][out] gets the products of one tap or two; [half] is of pixels 0, 1 or 2, 3.
SPW_ALWAYS_INLINE void add_taps(int32x4_t sum[2][4][2], const int8_t *const pixel[2], const int8_t *block,
                                const int taps, const int quads) {
  int32x4_t weights[2];
  int8x16_t activation[2][2];
  SPW_UNROLL for (int tap = 0; tap < taps; ++tap) {
    weights[tap] = vreinterpretq_s32_s8(vld1q_s8(block + 16 * tap));
    SPW_UNROLL for (int quad = 0; quad < quads; ++quad) activation[tap][quad] = vld1q_s8(pixel[tap] + 16 * quad);
  }
#define SPW_ADD_OUT(out)                                                                    \
  {                                                                                         \
    int8x16_t repeated[2];                                                                  \
    SPW_UNROLL for (int tap = 0; tap < taps; ++tap) repeated[tap] =                         \
        hide(vreinterpretq_s8_s32(vdupq_laneq_s32(weights[tap], out)));                     \
    SPW_UNROLL for (int quad = 0; quad < quads; ++quad) {                                   \
      int16x8_t low = vmull_s8(vget_low_s8(activation[0][quad]), vget_low_s8(repeated[0])); \
      int16x8_t high = vmull_high_s8(activation[0][quad], repeated[0]);                     \
      if (taps == 2) {                                                                      \
        low = vmlal_s8(low, vget_low_s8(activation[1][quad]), vget_low_s8(repeated[1]));    \
        high = vmlal_high_s8(high, activation[1][quad], repeated[1]);                       \
      }                                                                                     \
      sum[quad][out][0] = vpadalq_s16(sum[quad][out][0], low);                              \
      sum[quad][out][1] = vpadalq_s16(sum[quad][out][1], high);                             \
    }                                                                                       \
  }
  SPW_ADD_OUT(0)
  SPW_ADD_OUT(1)
  SPW_ADD_OUT(2)
  SPW_ADD_OUT(3)
#undef SPW_ADD_OUT
}

// [4 output channels][4 pixels] to [4 pixels][4 output channels].
SPW_ALWAYS_INLINE void transpose(int32x4_t sum[4]) {
  const int64x2_t low = vreinterpretq_s64_s32(vtrn1q_s32(sum[0], sum[1])),
                  high = vreinterpretq_s64_s32(vtrn1q_s32(sum[2], sum[3]));
  const int64x2_t odd_low = vreinterpretq_s64_s32(vtrn2q_s32(sum[0], sum[1])),
                  odd_high = vreinterpretq_s64_s32(vtrn2q_s32(sum[2], sum[3]));
  sum[0] = vreinterpretq_s32_s64(vtrn1q_s64(low, high));
  sum[1] = vreinterpretq_s32_s64(vtrn1q_s64(odd_low, odd_high));
  sum[2] = vreinterpretq_s32_s64(vtrn2q_s64(low, high));
  sum[3] = vreinterpretq_s32_s64(vtrn2q_s64(odd_low, odd_high));
}

SPW_ALWAYS_INLINE void tile(const struct spw_conv_run *run, const struct spw_epilogue_qa8 *epilogue,
                            const struct spw_span *span, int32_t first, const int quads, const int residual,
                            const int float_output) {
  int32x4_t sum[2][4][2];
  SPW_UNROLL for (int quad = 0; quad < quads; ++quad) SPW_UNROLL for (int out = 0; out < 4; ++out) sum[quad][out][0] =
      sum[quad][out][1] = vdupq_n_s32(0);
  const int8_t *pixel = (const int8_t *)run->activation + span->input + 4 * first;
  const int8_t *block = run->weights;
  const int32_t *offset = run->offsets;
  for (size_t pairs = run->taps / 2; pairs; --pairs, offset += 2, block += 32) {
    const int8_t *const taps[2] = {pixel + offset[0], pixel + offset[1]};
    add_taps(sum, taps, block, 2, quads);
  }
  if (run->taps % 2) {
    const int8_t *const tap[2] = {pixel + offset[0], NULL};
    add_taps(sum, tap, block, 1, quads);
  }
  const int32x4_t initial = vld1q_s32(run->initial);
  int32x4_t whole[2][4];
  SPW_UNROLL for (int quad = 0; quad < quads; ++quad) {
    SPW_UNROLL for (int out = 0; out < 4; ++out) whole[quad][out] = vpaddq_s32(sum[quad][out][0], sum[quad][out][1]);
    transpose(whole[quad]);
    SPW_UNROLL for (int lane = 0; lane < 4; ++lane) whole[quad][lane] = vaddq_s32(whole[quad][lane], initial);
  }
  spw_finish_tile_qa8(epilogue, run->bias, (size_t)(span->output + 4 * first), whole, quads, span->pixels - first,
                      residual, float_output);
}

SPW_ALWAYS_INLINE void convolve(const struct spw_conv_run *run, const int residual, const int float_output) {
  const struct spw_epilogue_qa8 epilogue = spw_begin_qa8(run, 1);
  for (const struct spw_span *span = run->span, *end = span + run->spans; span < end; ++span) {
    int32_t first = 0;
    for (; span->pixels - first > 4; first += 8) tile(run, &epilogue, span, first, 2, residual, float_output);
    if (first < span->pixels) tile(run, &epilogue, span, first, 1, residual, float_output);
  }
}

void spw_conv_clamp_qa8t_qa8t_qs8c_8x4__neon(const struct spw_conv_run *run) {
  if (run->residual) convolve(run, 1, 0);
  else convolve(run, 0, 0);
}

void spw_conv_clamp_f32_qa8t_qs8c_8x4__neon(const struct spw_conv_run *run) {
  if (run->residual) convolve(run, 1, 1);
  else convolve(run, 0, 1);
}
