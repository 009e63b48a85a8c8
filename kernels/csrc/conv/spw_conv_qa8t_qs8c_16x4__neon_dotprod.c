// Convolution of int8 with sdot: 16 pixels x 4 output channels in 16 accumulators.
//
// A weight block [4 out][4 in] is one vector; lane p of an activation vector is pixel p's 4 input channels. So
// "sdot sum, block, activation.4b[p]" adds a tap to 4 output channels of pixel p: 16 products an instruction. A tap of
// the full tile is 16 sdot, 6 loads and 1 addition, whatever taps came before it: zero blocks cost nothing.
#ifndef __ARM_FEATURE_DOTPROD
#error "compile for a processor with dotprod"
#endif

#include "epilogue_neon.h"
#include "epilogue_tile_neon.h"

// sum[quad][out] += block[4 * out + in] * activation[in]
SPW_ALWAYS_INLINE void add_tap(int32x4_t sum[4][4], const int8_t *pixel, int8x16_t block, const int quads) {
  SPW_UNROLL for (int quad = 0; quad < quads; ++quad) {
    const int8x16_t activation = vld1q_s8(pixel + 16 * quad);
    sum[quad][0] = vdotq_laneq_s32(sum[quad][0], block, activation, 0);
    sum[quad][1] = vdotq_laneq_s32(sum[quad][1], block, activation, 1);
    sum[quad][2] = vdotq_laneq_s32(sum[quad][2], block, activation, 2);
    sum[quad][3] = vdotq_laneq_s32(sum[quad][3], block, activation, 3);
  }
}

SPW_ALWAYS_INLINE void tile(const struct spw_conv_run *run, const struct spw_epilogue_qa8 *epilogue,
                            const struct spw_span *span, int32_t first, const int quads, const int residual,
                            const int float_output) {
  int32x4_t sum[4][4];
  const int32x4_t initial = vld1q_s32(run->initial);
  SPW_UNROLL for (int quad = 0; quad < quads; ++quad) SPW_UNROLL for (int lane = 0; lane < 4; ++lane) sum[quad][lane] =
      initial;
  const int8_t *pixel = (const int8_t *)run->activation + span->input + 4 * first;
  const int8_t *block = run->weights;
  const int32_t *offset = run->offsets;
  for (size_t fours = run->taps / 4; fours; --fours, offset += 4, block += 64)
    SPW_UNROLL for (int tap = 0; tap < 4; ++tap) add_tap(sum, pixel + offset[tap], vld1q_s8(block + 16 * tap), quads);
  for (size_t rest = run->taps % 4; rest; --rest, ++offset, block += 16)
    add_tap(sum, pixel + *offset, vld1q_s8(block), quads);
  spw_finish_tile_qa8(epilogue, run->bias, (size_t)(span->output + 4 * first), sum, quads, span->pixels - first,
                      residual, float_output);
}

SPW_ALWAYS_INLINE void convolve(const struct spw_conv_run *run, const int residual, const int float_output) {
  const struct spw_epilogue_qa8 epilogue = spw_begin_qa8(run, 1);
  for (const struct spw_span *span = run->span, *end = span + run->spans; span < end; ++span) {
    int32_t first = 0;
    for (; span->pixels - first > 12; first += 16) tile(run, &epilogue, span, first, 4, residual, float_output);
    if (span->pixels - first > 8) tile(run, &epilogue, span, first, 3, residual, float_output);
    else if (span->pixels - first > 4) tile(run, &epilogue, span, first, 2, residual, float_output);
    else if (span->pixels > first) tile(run, &epilogue, span, first, 1, residual, float_output);
  }
}

void spw_conv_clamp_qa8t_qa8t_qs8c_16x4__neon_dotprod(const struct spw_conv_run *run) {
  if (run->residual) convolve(run, 1, 0);
  else convolve(run, 0, 0);
}

void spw_conv_clamp_f32_qa8t_qs8c_16x4__neon_dotprod(const struct spw_conv_run *run) {
  if (run->residual) convolve(run, 1, 1);
  else convolve(run, 0, 1);
}
