// Winograd convolution of int8 for processors without dotprod; 8 tiles x 8 output channels have 16 accumulators.
//
// One smlal multiplies an input channel's weights for 4 output channels by one number and adds to 4 sums. Four input
// channels of the full tile take 64 of them and 8 loads.
#include "epilogue_neon.h"
#include "winograd_qa8.h"

// G, of three vectors `step` apart.
SPW_ALWAYS_INLINE void weights_of_line(const int16x8_t *in, int16x8_t out[6], const int step) {
  const int16x8_t ends = vaddq_s16(in[0], in[2 * step]), twice = vshlq_n_s16(in[step], 1);
  out[0] = in[0];
  out[1] = vaddq_s16(ends, in[step]);
  out[2] = vsubq_s16(ends, in[step]);
  out[3] = vaddq_s16(vaddq_s16(in[0], twice), vshlq_n_s16(in[2 * step], 2));
  out[4] = vaddq_s16(vsubq_s16(in[2 * step], twice), vshlq_n_s16(in[0], 2));
  out[5] = in[2 * step];
}

static void transform_weights(const struct spw_winograd_run *run) {
  static const uint8_t by_input[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  const uint8x16_t order = vld1q_u8(by_input);
  const size_t tap = (size_t)run->packs * 16, step = (size_t)run->in_packs * tap;
  const int8_t *from = run->from;
  int16_t *to = run->to;
  for (int pack = 0; pack < run->in_packs; ++pack, from += 9 * 16, to += tap) {
    int8x16_t bytes[9];
    _Pragma("GCC unroll 9") for (int index = 0; index < 9; ++index) bytes[index] =
        vqtbl1q_s8(vld1q_s8(from + 16 * index), order);
    SPW_UNROLL for (int half = 0; half < 2; ++half) {
      int16x8_t half_done[3][6];
      int16_t *next = to + 8 * half;
      SPW_UNROLL for (int y = 0; y < 3; ++y) {
        int16x8_t weight[3];
        SPW_UNROLL for (int x = 0; x < 3; ++x) weight[x] =
            half ? vmovl_high_s8(bytes[3 * y + x]) : vmovl_s8(vget_low_s8(bytes[3 * y + x]));
        weights_of_line(weight, half_done[y], 1);
      }
      SPW_UNROLL for (int x = 0; x < 6; ++x) {
        int16x8_t done[6];
        weights_of_line(&half_done[0][x], done, 6);
        SPW_UNROLL for (int y = 0; y < 6; ++y, next += step) vst1q_s16(next, done[y]);
      }
    }
  }
}

// Bt, of six vectors `step` apart.
SPW_ALWAYS_INLINE void inputs_of_line(const int16x8_t *in, int16x8_t *out, const int step) {
  const int16x8_t odd = vsubq_s16(in[3 * step], in[step]), even = vsubq_s16(in[4 * step], in[2 * step]);
  const int16x8_t odd_twice = vaddq_s16(odd, odd), even_twice = vaddq_s16(even, even);
  const int16x8_t first = vsubq_s16(even, vsubq_s16(in[2 * step], in[0]));
  const int16x8_t last = vsubq_s16(vsubq_s16(in[5 * step], in[3 * step]), odd);
  const int16x8_t one = vmlsq_n_s16(even_twice, in[3 * step], 3), other = vmlsq_n_s16(odd_twice, in[2 * step], 3);
  out[0] = vmlsq_n_s16(vaddq_s16(first, first), odd, 3);
  out[1] = vaddq_s16(one, other);
  out[2] = vsubq_s16(one, other);
  out[3] = vaddq_s16(even_twice, odd);
  out[4] = vsubq_s16(even, odd_twice);
  out[5] = vmlsq_n_s16(vaddq_s16(last, last), even, 3);
}

// Six neighbouring pixels of two tiles, widened: 4 channels of the one, 4 of the other.
SPW_ALWAYS_INLINE void load_line(const int8_t *const from[2], int16x8_t pixel[6]) {
  const int32x4_t first = vreinterpretq_s32_s8(vld1q_s8(from[0])), second = vreinterpretq_s32_s8(vld1q_s8(from[1]));
  const int8x16_t low = vreinterpretq_s8_s32(vzip1q_s32(first, second));
  const int8x16_t high = vreinterpretq_s8_s32(vzip2q_s32(first, second));
  const int32x2x2_t rest =
      vzip_s32(vreinterpret_s32_s8(vld1_s8(from[0] + 16)), vreinterpret_s32_s8(vld1_s8(from[1] + 16)));
  pixel[0] = vmovl_s8(vget_low_s8(low));
  pixel[1] = vmovl_high_s8(low);
  pixel[2] = vmovl_s8(vget_low_s8(high));
  pixel[3] = vmovl_high_s8(high);
  pixel[4] = vmovl_s8(vreinterpret_s8_s32(rest.val[0]));
  pixel[5] = vmovl_s8(vreinterpret_s8_s32(rest.val[1]));
}

static void transform_input(const struct spw_winograd_run *run) {
  const size_t row_bytes = run->row_bytes, place_bytes = run->place_bytes;
  const int columns = (run->operator->out_width + 3) / 4, rows = (run->operator->out_height + 3) / 4;
  int left_over = columns * rows - run->first_tile, column = run->first_tile % columns;
  const int8_t *tile_row = run->from;
  for (int tile = 0; tile < run->tiles; tile += 2) {
    const int8_t *from[2];
    SPW_UNROLL for (int index = 0; index < 2; ++index) {
      from[index] = tile_row + 16 * column;
      if (left_over-- > 1 && ++column == columns) column = 0, tile_row += 4 * row_bytes;
    }
    int16x8_t half_done[6][6];
    SPW_UNROLL for (int y = 0; y < 6; ++y, from[0] += row_bytes, from[1] += row_bytes) {
      int16x8_t pixel[6];
      load_line(from, pixel);
      inputs_of_line(pixel, half_done[y], 1);
    }
    unsigned char *to = (unsigned char *)run->to + 8 * tile;
    SPW_UNROLL for (int x = 0; x < 6; ++x) {
      int16x8_t done[6];
      inputs_of_line(&half_done[0][x], done, 6);
      SPW_UNROLL for (int y = 0; y < 6; ++y, to += place_bytes) vst1q_s16((int16_t *)to, done[y]);
    }
  }
}

// The sums of 4 or 8 tiles for one panel or two, at one place.
SPW_ALWAYS_INLINE void multiply_tiles(const struct spw_winograd_run *run, const int16_t *input, const int16_t *weights,
                                      int32_t *sums, const int quads, const int packs) {
  const size_t pack_step = (size_t)run->tiles * 4;
  int32x4_t sum[8][2];
  SPW_UNROLL for (int tile = 0; tile < 4 * quads; ++tile) SPW_UNROLL for (int pack = 0; pack < packs; ++pack)
      sum[tile][pack] = run->accumulate ? vld1q_s32(sums + (size_t)pack * pack_step + 4 * tile) : vdupq_n_s32(0);
  for (int remaining = run->in_packs; remaining; --remaining, input += pack_step, weights += 16 * packs) {
    int16x8_t activation[4], weight[2][2];
    SPW_UNROLL for (int pair = 0; pair < 2 * quads; ++pair) activation[pair] = vld1q_s16(input + 8 * pair);
    SPW_UNROLL for (int pack = 0; pack < packs; ++pack) SPW_UNROLL for (int half = 0; half < 2; ++half)
        weight[pack][half] = vld1q_s16(weights + 16 * pack + 8 * half);
#define SPW_ADD(multiply_add, part, in)                                                                         \
  SPW_UNROLL for (int pair = 0; pair < 2 * quads; ++pair) SPW_UNROLL for (int pack = 0; pack < packs; ++pack) { \
    sum[2 * pair][pack] = multiply_add(sum[2 * pair][pack], part(weight[pack][in / 2]), activation[pair], in);  \
    sum[2 * pair + 1][pack] =                                                                                   \
        multiply_add(sum[2 * pair + 1][pack], part(weight[pack][in / 2]), activation[pair], in + 4);            \
  }
    SPW_ADD(vmlal_laneq_s16, vget_low_s16, 0)
    SPW_ADD(vmlal_high_laneq_s16, , 1)
    SPW_ADD(vmlal_laneq_s16, vget_low_s16, 2)
    SPW_ADD(vmlal_high_laneq_s16, , 3)
#undef SPW_ADD
  }
  SPW_UNROLL for (int tile = 0; tile < 4 * quads; ++tile) SPW_UNROLL for (int pack = 0; pack < packs; ++pack)
      vst1q_s32(sums + (size_t)pack * pack_step + 4 * tile, sum[tile][pack]);
}

SPW_ALWAYS_INLINE void multiply(const struct spw_winograd_run *run, const int packs) {
  const unsigned char *input = run->from;
  const int16_t *weights = run->weights;
  int32_t *sums = run->to;
  for (int place = 0; place < SPW_WINOGRAD_PLACES; ++place) {
    const int16_t *from = (const int16_t *)input;
    int tile = 0;
    for (; tile + 8 <= run->tiles; tile += 8) multiply_tiles(run, from + 4 * tile, weights, sums + 4 * tile, 2, packs);
    if (tile < run->tiles) multiply_tiles(run, from + 4 * tile, weights, sums + 4 * tile, 1, packs);
    input += run->place_bytes;
    weights += run->in_packs * packs * 16;
    sums += run->tiles * packs * 4;
  }
}

// At, of six vectors.
SPW_ALWAYS_INLINE void outputs_of_column(const int32x4_t in[6], int32x4_t *out, const int step) {
  const int32x4_t sum = vmulq_n_s32(vaddq_s32(in[1], in[2]), -5), difference = vmulq_n_s32(vsubq_s32(in[1], in[2]), -5);
  out[0] = vmlsq_n_s32(vmlaq_n_s32(vaddq_s32(difference, in[3]), in[0], 15), in[4], 8);
  out[step] = vmlaq_n_s32(vmlaq_n_s32(sum, in[3], 2), in[4], 4);
  out[2 * step] = vmlsq_n_s32(vmlaq_n_s32(difference, in[3], 4), in[4], 2);
  out[3 * step] = vmlaq_n_s32(vmlaq_n_s32(vaddq_s32(sum, in[4]), in[3], 8), in[5], 15);
}

// The same times SPW_WINOGRAD_INVERSE, which divides by the odd part of the common denominator.
SPW_ALWAYS_INLINE void outputs_of_row(const int32x4_t in[6], int32x4_t out[4]) {
#define SPW_TIMES(vector, factor) vector, (int32_t)((uint32_t)(factor) * SPW_WINOGRAD_INVERSE)
  const int32x4_t sum = vmulq_n_s32(SPW_TIMES(vaddq_s32(in[1], in[2]), -5));
  const int32x4_t difference = vmulq_n_s32(SPW_TIMES(vsubq_s32(in[1], in[2]), -5));
  out[0] = vmlaq_n_s32(difference, SPW_TIMES(in[0], 15));
  out[0] = vmlaq_n_s32(vmlaq_n_s32(out[0], SPW_TIMES(in[3], 1)), SPW_TIMES(in[4], -8));
  out[1] = vmlaq_n_s32(vmlaq_n_s32(sum, SPW_TIMES(in[3], 2)), SPW_TIMES(in[4], 4));
  out[2] = vmlaq_n_s32(vmlaq_n_s32(difference, SPW_TIMES(in[3], 4)), SPW_TIMES(in[4], -2));
  out[3] = vmlaq_n_s32(sum, SPW_TIMES(in[3], 8));
  out[3] = vmlaq_n_s32(vmlaq_n_s32(out[3], SPW_TIMES(in[4], 1)), SPW_TIMES(in[5], 15));
#undef SPW_TIMES
}

// One tile; `from` is its first place, `at` its first output, of `rows` rows at most.
SPW_ALWAYS_INLINE void outputs_of_tile(const struct spw_epilogue_qa8 *epilogue, const int32_t *from, size_t step,
                                       int at, int pitch, int rows, int32x4_t initial, const int float_output) {
  int32x4_t half_done[4][6];
  SPW_UNROLL for (int x = 0; x < 6; ++x) {
    int32x4_t in[6];
    SPW_UNROLL for (int y = 0; y < 6; ++y, from += step) in[y] = vld1q_s32(from);
    outputs_of_column(in, &half_done[0][x], 6);
  }
  int32x4_t sum[4][4];
  SPW_UNROLL for (int y = 0; y < 4; ++y) {
    outputs_of_row(half_done[y], sum[y]);
    SPW_UNROLL for (int x = 0; x < 4; ++x) sum[y][x] = vsraq_n_s32(initial, sum[y][x], SPW_WINOGRAD_SHIFT);
  }
  SPW_UNROLL for (int y = 0; y < 4; ++y) if (y < rows)
      spw_finish_quad_qa8(epilogue, 0, at + y * pitch, sum[y], float_output);
}

SPW_ALWAYS_INLINE void transform_output(const struct spw_winograd_run *run, const int float_output) {
  const struct spw_conv2d *shape = run->operator;
  const int out_height = shape->out_height, out_width = shape->out_width, columns = (out_width + 3) / 4;
  const int left_over = columns * ((out_height + 3) / 4) - run->first_tile;
  const int tiles = run->tiles < left_over ? run->tiles : left_over;
  const size_t plane = (size_t)out_height * (size_t)out_width * 4;
  const size_t step = (size_t)run->packs * (size_t)run->tiles * 4;
  const int32_t *from = run->from;
  for (int pack = 0; pack < run->packs; ++pack, from += 4 * (run->tiles - tiles)) {
    const struct spw_conv_run finish = {
        .operator = shape,
        .scale = run->scale + 4 * pack,
        .bias = run->bias + 4 * pack,
        .pixels = 4,
        .residual = run->residual ? (const int8_t *)run->residual + (size_t)pack * plane : NULL,
        .output = (unsigned char *)run->to + (size_t)pack * plane * (float_output ? sizeof(float) : 1)};
    const struct spw_epilogue_qa8 whole = spw_begin_qa8(&finish, 1);
    const int32x4_t initial = vld1q_s32(run->initial + 4 * pack);
    int top = run->first_tile / columns * 4, left = run->first_tile % columns * 4;
    for (int tile = 0; tile < tiles; ++tile, from += 4) {
      const int at = (top * out_width + left) * 4, rows = out_height - top, pixels = out_width - left;
      struct spw_epilogue_qa8 now = whole;
      now.pixels = pixels < 4 ? pixels : 4;
      // What is constant takes no branches, across which sums would not stay in registers.
      if (rows < 4 || pixels < 4) {
        outputs_of_tile(&now, from, step, at, 4 * out_width, rows, initial, float_output);
      } else if (now.pixels = 4, now.residual) {
        outputs_of_tile(&now, from, step, at, 4 * out_width, 4, initial, float_output);
      } else {
        now.residual = NULL;
        outputs_of_tile(&now, from, step, at, 4 * out_width, 4, initial, float_output);
      }
      left += 4;
      if (left >= out_width) left = 0, top += 4;
    }
  }
}

SPW_ALWAYS_INLINE void run_stage(const struct spw_winograd_run *run, const int float_output) {
  switch (run->stage) {
    case SPW_WINOGRAD_WEIGHTS:
      transform_weights(run);
      break;
    case SPW_WINOGRAD_INPUT:
      transform_input(run);
      break;
    case SPW_WINOGRAD_MULTIPLY:
      run->packs == 2 ? multiply(run, 2) : multiply(run, 1);
      break;
    case SPW_WINOGRAD_OUTPUT:
      transform_output(run, float_output);
      break;
  }
}

void spw_winograd_clamp_qa8t_qa8t_qs8c_8x8__neon(const struct spw_winograd_run *run) { run_stage(run, 0); }

void spw_winograd_clamp_f32_qa8t_qs8c_8x8__neon(const struct spw_winograd_run *run) { run_stage(run, 1); }
