// Depthwise convolution of int8: 8 pixels x 4 channels, on every processor.
//
// Two taps are multiplied into 16 bits (2 * 127 * 128 fits), then added to the sums of 32 bits.
#include "epilogue_neon.h"

SPW_ALWAYS_INLINE int8x16_t repeat_weights(const int8_t *weights) {
  int32_t word;
  memcpy(&word, weights, sizeof word);
  int8x16_t repeated = vreinterpretq_s8_s32(vdupq_n_s32(word));
  // Hides that both halves are equal, which clang would use to trade smull2 for ext and smull.
  __asm__("" : "+w"(repeated));
  return repeated;
}

// sum[lane] += weights[4 * tap + lane] * activation[offset + lane], for one or two taps
SPW_ALWAYS_INLINE void add_taps(int32x4_t sum[2][4], const int8_t *const pixel[2], const int32_t *offset,
                                const int8_t *weights, const int taps, const int quads) {
  const int8x16_t first = repeat_weights(weights), second = repeat_weights(weights + 4 * (taps - 1));
  SPW_UNROLL for (int quad = 0; quad < quads; ++quad) {
    const int8x16_t activation = vld1q_s8(pixel[quad] + offset[0]);
    int16x8_t low = vmull_s8(vget_low_s8(activation), vget_low_s8(first));
    int16x8_t high = vmull_high_s8(activation, first);
    if (taps == 2) {
      const int8x16_t more = vld1q_s8(pixel[quad] + offset[1]);
      low = vmlal_s8(low, vget_low_s8(more), vget_low_s8(second));
      high = vmlal_high_s8(high, more, second);
    }
    sum[quad][0] = vaddw_s16(sum[quad][0], vget_low_s16(low));
    sum[quad][1] = vaddw_high_s16(sum[quad][1], low);
    sum[quad][2] = vaddw_s16(sum[quad][2], vget_low_s16(high));
    sum[quad][3] = vaddw_high_s16(sum[quad][3], high);
  }
}

SPW_ALWAYS_INLINE void tile(const struct spw_conv_run *run, const struct spw_epilogue_qa8 *epilogue,
                            const struct spw_quad *quads_of_tile, const int quads, const int float_output) {
  int32x4_t sum[2][4];
  const int8_t *pixel[2];
  SPW_UNROLL for (int quad = 0; quad < quads; ++quad) {
    pixel[quad] = (const int8_t *)run->activation + quads_of_tile[quad].input;
    SPW_UNROLL for (int lane = 0; lane < 4; ++lane) sum[quad][lane] = vld1q_s32(run->initial);
  }
  const int8_t *weights = run->weights;
  const int32_t *offset = run->offsets;
  for (size_t pairs = run->taps / 2; pairs; --pairs, offset += 2, weights += 8)
    add_taps(sum, pixel, offset, weights, 2, quads);
  if (run->taps % 2) add_taps(sum, pixel, offset, weights, 1, quads);
  SPW_UNROLL for (int quad = 0; quad < quads; ++quad)
      spw_finish_quad_qa8(epilogue, 0, quads_of_tile[quad].output, sum[quad], float_output);
}

SPW_ALWAYS_INLINE void convolve(const struct spw_conv_run *run, const int float_output) {
  const struct spw_epilogue_qa8 epilogue = spw_begin_qa8(run, 1);
  const struct spw_quad *quad = run->quad, *end = quad + run->quads;
  for (; end - quad >= 2; quad += 2) tile(run, &epilogue, quad, 2, float_output);
  if (quad < end) tile(run, &epilogue, quad, 1, float_output);
}

void spw_dwconv_clamp_qa8t_qa8t_qs8c_8x4__neon(const struct spw_conv_run *run) { convolve(run, 0); }

void spw_dwconv_clamp_f32_qa8t_qs8c_8x4__neon(const struct spw_conv_run *run) { convolve(run, 1); }
