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

// A tile is some rows of quads, each row a span or a part of one. Of a row's last quad no more than `last` pixels are
// computed.
enum { MOST_ROWS = 4, MOST_QUADS = 8 };

// sum[quad][pixel] += block[4 * out + in] * activation[in], for 4 output channels each
SPW_ALWAYS_INLINE void add_tap(int32x4_t sum[][4], const int8_t *const pixel[], ptrdiff_t offset, int8x16_t block,
                               const int rows, const int quads, const int last) {
  SPW_UNROLL for (int row = 0; row < rows; ++row) SPW_UNROLL for (int quad = 0; quad < quads; ++quad) {
    const int8x16_t activation = vld1q_s8(pixel[row] + offset + 16 * quad);
    int32x4_t *const to = sum[row * quads + quad];
    const int pixels = quad < quads - 1 ? 4 : last;
    to[0] = vdotq_laneq_s32(to[0], block, activation, 0);
    if (pixels > 1) to[1] = vdotq_laneq_s32(to[1], block, activation, 1);
    if (pixels > 2) to[2] = vdotq_laneq_s32(to[2], block, activation, 2);
    if (pixels > 3) to[3] = vdotq_laneq_s32(to[3], block, activation, 3);
  }
}

// The first row begins at pixel `first` of the span.
SPW_ALWAYS_INLINE void tile(const struct spw_conv_run *run, const struct spw_epilogue_qa8 *epilogue,
                            const struct spw_span *span, int32_t first, const int rows, const int quads, const int last,
                            const int residual, const int float_output) {
  int32x4_t sum[MOST_QUADS][4];
  const int8_t *pixel[MOST_ROWS];
  const int32x4_t initial = vld1q_s32(run->initial);
  SPW_UNROLL for (int quad = 0; quad < rows * quads; ++quad) SPW_UNROLL for (int lane = 0; lane < 4; ++lane)
      sum[quad][lane] = initial;
  SPW_UNROLL for (int row = 0; row < rows; ++row) pixel[row] =
      (const int8_t *)run->activation + span[row].input + 4 * first;
  const int8_t *block = run->weights;
  const int32_t *offset = run->offsets;
  const size_t together = rows * quads > 4 ? 2 : 4;  // taps
  for (size_t left = run->taps / together; left; --left, offset += together, block += 16 * together)
    SPW_UNROLL for (size_t tap = 0; tap < together; ++tap)
        add_tap(sum, pixel, offset[tap], vld1q_s8(block + 16 * tap), rows, quads, last);
  for (size_t rest = run->taps % together; rest; --rest, ++offset, block += 16)
    add_tap(sum, pixel, *offset, vld1q_s8(block), rows, quads, last);
  SPW_UNROLL for (int row = 0; row < rows; ++row) {
    const size_t at = (size_t)(span[row].output + 4 * first);
    const int32_t pixels = span->pixels - first;
    if (quads > 4) spw_finish_tile_qa8(epilogue, run->bias, at, &sum[row * quads], 4, 16, residual, float_output);
    const int done = quads > 4 ? 4 : 0;
    spw_finish_tile_qa8(epilogue, run->bias, at + 16 * done, &sum[row * quads + done], quads - done, pixels - 4 * done,
                        residual, float_output);
  }
}

// Whether `rows` spans from here on are of as many pixels each.
SPW_ALWAYS_INLINE int alike(const struct spw_span *span, const struct spw_span *end, int rows) {
  if (end - span < rows) return 0;
  for (int row = 1; row < rows; ++row)
    if (span[row].pixels != span->pixels) return 0;
  return 1;
}

SPW_ALWAYS_INLINE void convolve(const struct spw_conv_run *run, const int residual, const int float_output) {
  const struct spw_epilogue_qa8 epilogue = spw_begin_qa8(run, 1);
  for (const struct spw_span *span = run->span, *end = span + run->spans; span < end; ++span) {
    int32_t first = 0;
    if (!float_output && span->pixels > 4 && span->pixels <= 7 && alike(span, end, 2)) {
      if (alike(span, end, 3) && !alike(span, end, 4)) {
        tile(run, &epilogue, span, 0, 3, 2, 3, residual, 0);
        span += 2;
      } else {
        tile(run, &epilogue, span, 0, 2, 2, 3, residual, 0);
        span += 1;
      }
      continue;
    }
    // One wide tile makes a last one of few pixels superfluous.
    if (!float_output && span->pixels >= 24 && (span->pixels - 1) % 16 < 8) {
      tile(run, &epilogue, span, 0, 1, 6, 4, residual, 0);
      first = 24;
    }
    const int32_t narrower = float_output ? 12 : 14;
    for (; span->pixels - first > narrower; first += 16)
      tile(run, &epilogue, span, first, 1, 4, 4, residual, float_output);
    if (!float_output && span->pixels - first > 12) tile(run, &epilogue, span, first, 1, 4, 2, residual, 0);
    else if (span->pixels - first > 8) tile(run, &epilogue, span, first, 1, 3, 4, residual, float_output);
    else if (span->pixels - first > 4) tile(run, &epilogue, span, first, 1, 2, 4, residual, float_output);
    else if (span->pixels > first) tile(run, &epilogue, span, first, 1, 1, 4, residual, float_output);
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
