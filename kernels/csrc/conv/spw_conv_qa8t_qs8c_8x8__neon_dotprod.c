// Dense convolution of int8 with sdot: 8 pixels x 8 output channels in 16 accumulators.
//
// A weight block [4 out][4 in] is one vector; lane p of an activation vector is pixel p's 4 input channels. So
// "sdot sum, block, activation.4b[p]" adds a tap to 4 output channels of pixel p: 16 products an instruction. Two taps
// of the full tile are 32 sdot, 1 load of offsets, 2 of blocks and 4 of pixels.
#ifndef __ARM_FEATURE_DOTPROD
#error "compile for a processor with dotprod"
#endif

#include "epilogue_neon.h"

// sum[out] += block[4 * out + in] * activation[in]
SPW_ALWAYS_INLINE void dot_quad(int32x4_t sum[4], int8x16_t block, int8x16_t activation) {
  sum[0] = vdotq_laneq_s32(sum[0], block, activation, 0);
  sum[1] = vdotq_laneq_s32(sum[1], block, activation, 1);
  sum[2] = vdotq_laneq_s32(sum[2], block, activation, 2);
  sum[3] = vdotq_laneq_s32(sum[3], block, activation, 3);
}

SPW_ALWAYS_INLINE void add_tap(int32x4_t sum[2][2][4], const int8_t *const pixel[2], ptrdiff_t offset,
                               const int8_t *block, const int quads, const int packs) {
  int8x16_t activation[2];
  SPW_UNROLL for (int quad = 0; quad < quads; ++quad) activation[quad] = vld1q_s8(pixel[quad] + offset);
  SPW_UNROLL for (int pack = 0; pack < packs; ++pack) {
    const int8x16_t weights = vld1q_s8(block + 16 * pack);
    SPW_UNROLL for (int quad = 0; quad < quads; ++quad) dot_quad(sum[quad][pack], weights, activation[quad]);
  }
}

SPW_ALWAYS_INLINE void tile(const struct spw_conv_run *run, const struct spw_epilogue_qa8 *epilogue,
                            const struct spw_quad *quads_of_tile, const int quads, const int packs,
                            const int float_output) {
  int32x4_t sum[2][2][4];
  const int8_t *pixel[2];
  SPW_UNROLL for (int quad = 0; quad < quads; ++quad) {
    pixel[quad] = (const int8_t *)run->activation + quads_of_tile[quad].input;
    SPW_UNROLL for (int pack = 0; pack < packs; ++pack)
      SPW_UNROLL for (int lane = 0; lane < 4; ++lane) sum[quad][pack][lane] = vld1q_s32(run->initial + 4 * pack);
  }
  const int8_t *block = run->weights;
  const int32_t *offset = run->offsets;
  for (size_t pairs = run->taps / 2; pairs; --pairs, offset += 2, block += 32 * packs) {
    add_tap(sum, pixel, offset[0], block, quads, packs);
    add_tap(sum, pixel, offset[1], block + 16 * packs, quads, packs);
  }
  if (run->taps % 2) add_tap(sum, pixel, offset[0], block, quads, packs);
  SPW_UNROLL for (int quad = 0; quad < quads; ++quad)
    SPW_UNROLL for (int pack = 0; pack < packs; ++pack)
      spw_finish_quad_qa8(epilogue, pack, quads_of_tile[quad].output, sum[quad][pack], float_output);
}

SPW_ALWAYS_INLINE void convolve(const struct spw_conv_run *run, const int packs, const int float_output) {
  const struct spw_epilogue_qa8 epilogue = spw_begin_qa8(run, packs);
  const struct spw_quad *quad = run->quad, *end = quad + run->quads;
  for (; end - quad >= 2; quad += 2) tile(run, &epilogue, quad, 2, packs, float_output);
  if (quad < end) tile(run, &epilogue, quad, 1, packs, float_output);
}

void spw_conv_clamp_qa8t_qa8t_qs8c_8x8__neon_dotprod(const struct spw_conv_run *run) {
  if (run->packs == 2) convolve(run, 2, 0);
  else convolve(run, 1, 0);
}

void spw_conv_clamp_f32_qa8t_qs8c_8x8__neon_dotprod(const struct spw_conv_run *run) {
  if (run->packs == 2) convolve(run, 2, 1);
  else convolve(run, 1, 1);
}
