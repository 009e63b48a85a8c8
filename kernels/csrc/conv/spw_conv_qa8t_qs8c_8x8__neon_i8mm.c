// Dense convolution of int8 with smmla: 8 pixels x 8 output channels in 16 accumulators.
//
// smmla multiplies 2 rows of 8 by 2 rows of 8: 32 products an instruction. Two taps are 8 input channels, so zipping the
// words of two taps' vectors makes such rows: of 2 pixels from activations, of 2 output channels from weight blocks. An
// accumulator is [2 pixels][2 output channels]. Two taps of the full tile are 16 smmla and 8 zips.
#ifndef __ARM_FEATURE_MATMUL_INT8
#error "compile for a processor with i8mm"
#endif

#include "epilogue_neon.h"

SPW_ALWAYS_INLINE int8x16_t zip_low(int8x16_t first, int8x16_t second) {
  return vreinterpretq_s8_s32(vzip1q_s32(vreinterpretq_s32_s8(first), vreinterpretq_s32_s8(second)));
}

SPW_ALWAYS_INLINE int8x16_t zip_high(int8x16_t first, int8x16_t second) {
  return vreinterpretq_s8_s32(vzip2q_s32(vreinterpretq_s32_s8(first), vreinterpretq_s32_s8(second)));
}

// sum[quad][pack][2 * (pair of pixels) + pair of output channels] += block * activation, for one or two taps
SPW_ALWAYS_INLINE void add_taps(int32x4_t sum[2][2][4], const int8_t *const pixel[2], const int32_t *offset,
                                const int8_t *block, const int taps, const int quads, const int packs) {
  int8x16_t rows[2][2];
  SPW_UNROLL for (int quad = 0; quad < quads; ++quad) {
    const int8x16_t first = vld1q_s8(pixel[quad] + offset[0]), second = vld1q_s8(pixel[quad] + offset[taps - 1]);
    rows[quad][0] = zip_low(first, second);
    rows[quad][1] = zip_high(first, second);
  }
  SPW_UNROLL for (int pack = 0; pack < packs; ++pack) {
    const int8x16_t first = vld1q_s8(block + 16 * pack);
    const int8x16_t second = taps == 2 ? vld1q_s8(block + 16 * (packs + pack)) : vdupq_n_s8(0);
    const int8x16_t low = zip_low(first, second), high = zip_high(first, second);
    SPW_UNROLL for (int quad = 0; quad < quads; ++quad) {
      sum[quad][pack][0] = vmmlaq_s32(sum[quad][pack][0], rows[quad][0], low);
      sum[quad][pack][1] = vmmlaq_s32(sum[quad][pack][1], rows[quad][0], high);
      sum[quad][pack][2] = vmmlaq_s32(sum[quad][pack][2], rows[quad][1], low);
      sum[quad][pack][3] = vmmlaq_s32(sum[quad][pack][3], rows[quad][1], high);
    }
  }
}

// [2 pixels][2 output channels] of channels 0, 1 and of channels 2, 3 to one pixel's 4 channels.
SPW_ALWAYS_INLINE int32x4_t first_pixel(int32x4_t low, int32x4_t high) {
  return vreinterpretq_s32_s64(vzip1q_s64(vreinterpretq_s64_s32(low), vreinterpretq_s64_s32(high)));
}

SPW_ALWAYS_INLINE int32x4_t second_pixel(int32x4_t low, int32x4_t high) {
  return vreinterpretq_s32_s64(vzip2q_s64(vreinterpretq_s64_s32(low), vreinterpretq_s64_s32(high)));
}

SPW_ALWAYS_INLINE void tile(const struct spw_conv_run *run, const struct spw_epilogue_qa8 *epilogue,
                            const struct spw_quad *quads_of_tile, const int quads, const int packs,
                            const int float_output) {
  int32x4_t sum[2][2][4];
  const int8_t *pixel[2];
  SPW_UNROLL for (int quad = 0; quad < quads; ++quad) {
    pixel[quad] = (const int8_t *)run->activation + quads_of_tile[quad].input;
    SPW_UNROLL for (int pack = 0; pack < packs; ++pack) {
      const int32x4_t initial = vld1q_s32(run->initial + 4 * pack);
      sum[quad][pack][0] = sum[quad][pack][2] = first_pixel(initial, initial);
      sum[quad][pack][1] = sum[quad][pack][3] = second_pixel(initial, initial);
    }
  }
  const int8_t *block = run->weights;
  const int32_t *offset = run->offsets;
  for (size_t pairs = run->taps / 2; pairs; --pairs, offset += 2, block += 32 * packs)
    add_taps(sum, pixel, offset, block, 2, quads, packs);
  if (run->taps % 2) add_taps(sum, pixel, offset, block, 1, quads, packs);
  SPW_UNROLL for (int quad = 0; quad < quads; ++quad) {
    SPW_UNROLL for (int pack = 0; pack < packs; ++pack) {
      const int32x4_t *part = sum[quad][pack];
      const int32x4_t whole[4] = {first_pixel(part[0], part[1]), second_pixel(part[0], part[1]),
                                  first_pixel(part[2], part[3]), second_pixel(part[2], part[3])};
      spw_finish_quad_qa8(epilogue, pack, quads_of_tile[quad].output, whole, float_output);
    }
  }
}

SPW_ALWAYS_INLINE void convolve(const struct spw_conv_run *run, const int packs, const int float_output) {
  const struct spw_epilogue_qa8 epilogue = spw_begin_qa8(run, packs);
  const struct spw_quad *quad = run->quad, *end = quad + run->quads;
  for (; end - quad >= 2; quad += 2) tile(run, &epilogue, quad, 2, packs, float_output);
  if (quad < end) tile(run, &epilogue, quad, 1, packs, float_output);
}

void spw_conv_clamp_qa8t_qa8t_qs8c_8x8__neon_i8mm(const struct spw_conv_run *run) {
  if (run->packs == 2) convolve(run, 2, 0);
  else convolve(run, 1, 0);
}

void spw_conv_clamp_f32_qa8t_qs8c_8x8__neon_i8mm(const struct spw_conv_run *run) {
  if (run->packs == 2) convolve(run, 2, 1);
  else convolve(run, 1, 1);
}
