// Depthwise convolution of int8 by rows: 2 rows of 4 pixels x 4 channels, on processors with the dot product.
//
// sdot sums four neighbouring bytes, so the four bytes have to be neighbouring pixels of one channel: a table look-up
// turns 4 pixels x 4 channels into 4 channels x 4 pixels. Such a block, begun at every other pixel, serves two output
// pixels at stride 1: the second one's weights are shifted by a byte. Every block serves both output rows that see it.
#include "epilogue_neon.h"

#ifndef __ARM_FEATURE_DOTPROD
#error "compile for a processor with the dot product"
#endif

enum { SPW_DWROWS_ROWS = 2, MAX_BLOCKS = 6 };

// [window row][shift][block]: byte 4 * channel + i holds the weight of pixel 4 * block + i - shift, zero outside the
// window.
struct spw_dwrows_weights {
  int8x16_t block[5][2][2];
};

SPW_ALWAYS_INLINE struct spw_dwrows_weights read_weights(const int8_t *weights, const int size, const int stride) {
  enum { NONE = 99 };
  static const uint8_t bytes[2][2][16] = {
      {{0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15},
       {16, NONE, NONE, NONE, 17, NONE, NONE, NONE, 18, NONE, NONE, NONE, 19, NONE, NONE, NONE}},
      {{NONE, 0, 4, 8, NONE, 1, 5, 9, NONE, 2, 6, 10, NONE, 3, 7, 11},
       {12, 16, NONE, NONE, 13, 17, NONE, NONE, 14, 18, NONE, NONE, 15, 19, NONE, NONE}},
  };
  struct spw_dwrows_weights spread;
  SPW_UNROLL for (int y = 0; y < size; ++y) {
    // A row of 3 fills 12 bytes, one of 5 fills 20; what follows must not count.
    const int8_t *row = weights + 4 * y * size;
    int32x4_t first = vreinterpretq_s32_s8(vld1q_s8(row)), second = vdupq_n_s32(0);
    if (size == 3) first = vsetq_lane_s32(0, first, 3);
    else second = vld1q_lane_s32((const int32_t *)(row + 16), second, 0);
    const int8x16x2_t table = {{vreinterpretq_s8_s32(first), vreinterpretq_s8_s32(second)}};
    SPW_UNROLL for (int shift = 0; shift < 3 - stride; ++shift)
        SPW_UNROLL for (int block = 0; block < (size + 3) / 4; ++block)
            spread.block[y][shift][block] = vqtbl2q_s8(table, vld1q_u8(bytes[shift][block]));
  }
  return spread;
}

// sum[row][pixel] += weights * activation, over the window
SPW_ALWAYS_INLINE void accumulate(const struct spw_dwrows_weights *weights, const int8_t *pixels, size_t row_bytes,
                                  int32x4_t sum[][4], const int rows, const int size, const int stride) {
  static const uint8_t transpose[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  const uint8x16_t order = vld1q_u8(transpose);
  const int blocks = (size + 3) / 4, count = 3 * stride / 2 + 2 * blocks - 1;
  SPW_UNROLL for (int from = 0; from < (rows - 1) * stride + size; ++from) {
    int8x16_t channels[MAX_BLOCKS];  // block i begins at pixel 2 * i
    SPW_UNROLL for (int index = 0; index < count; ++index) channels[index] =
        vqtbl1q_s8(vld1q_s8(pixels + (size_t)from * row_bytes + 8 * index), order);
    SPW_UNROLL for (int row = 0; row < rows; ++row) {
      const int y = from - row * stride;
      if (y < 0 || y >= size) continue;
      SPW_UNROLL for (int block = 0; block < blocks; ++block) SPW_UNROLL for (int pixel = 0; pixel < 4; ++pixel)
          sum[row][pixel] = vdotq_s32(sum[row][pixel], channels[pixel * stride / 2 + 2 * block],
                                      weights->block[y][pixel * stride % 2][block]);
    }
  }
}

#include "dwrows_neon.h"

void spw_dwrows_clamp_qa8t_qa8t_qs8c_8x4__neon_dotprod(const struct spw_conv_run *run) {
  spw_dwrows_any_window(run, 0);
}

void spw_dwrows_clamp_f32_qa8t_qs8c_8x4__neon_dotprod(const struct spw_conv_run *run) { spw_dwrows_any_window(run, 1); }
