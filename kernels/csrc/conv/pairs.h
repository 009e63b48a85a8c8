// Dense convolutions of int8 for processors that multiply matrices (smmla): input channels go in pairs of packs.
//
// The copy of a band's input holds 8 channels of a pixel side by side, [pack pair][...][8], so that 16 bytes from any
// pixel on are two neighbouring pixels: one operand of smmla, wherever the window lies. Of an odd number of packs the
// last one is there twice, the second time for weights of zero. The weights of a panel, 8 output channels, become
//   [taps][2 packs][out 0, 2, 1, 3][8 in]
// which are four operands of two rows each. This order takes the fewest instructions to make and, behind the products,
// to leave: the sums of channels 0 and 2, 1 and 3 narrow to halves of the same words.
#ifndef SPW_CONV_PAIRS_H
#define SPW_CONV_PAIRS_H

#include <string.h>
#ifdef __ARM_NEON
#include <arm_neon.h>
#endif

#include "../spw.h"

enum {
  SPW_PAIR_PANEL_PACKS = 2,
  SPW_PAIR_BLOCK = 32,  // weights of 4 output channels for a tap
  // Less does not repay the copy, the pairing of weights and the longer epilogue; measured on MobileNetV2.
  SPW_PAIR_BLOCKS = 12,            // of an output pack, at least
  SPW_PAIR_OUT_PACKS = 4,          // at least
  SPW_PAIR_OUT_PACKS_IN_PLACE = 8  // where sdot needs no copy
};

static inline int spw_pairs_fit(const struct spw_conv2d *operator) {
  const int in_packs = (operator->in_channels / operator->groups + 3) / 4;
  const int out_packs = (operator->out_channels / operator->groups + 3) / 4;
  const int window = operator->kernel_height * operator->kernel_width;
  return operator->type == SPW_CONV2D_QA8 && in_packs> 1 && in_packs * window >= SPW_PAIR_BLOCKS &&
      out_packs >=(window == 1 ? SPW_PAIR_OUT_PACKS_IN_PLACE : SPW_PAIR_OUT_PACKS);
}

// Puts the blocks [4 out][4 in] of two packs of input channels at one place of the window side by side.
static inline void spw_pair_block(const int8_t *first, const int8_t *second, int8_t *to) {
#ifdef __ARM_NEON
  const int32x4_t low = vreinterpretq_s32_s8(vld1q_s8(first)), high = vreinterpretq_s32_s8(vld1q_s8(second));
  vst1q_s8(to, vreinterpretq_s8_s32(vtrn1q_s32(low, high)));
  vst1q_s8(to + 16, vreinterpretq_s8_s32(vtrn2q_s32(low, high)));
#else
  static const int order[4] = {0, 2, 1, 3};
  for (int row = 0; row < 4; ++row, to += 8) {
    memcpy(to, first + 4 * order[row], 4);
    memcpy(to + 4, second + 4 * order[row], 4);
  }
#endif
}

// Brings the blocks of 4 output channels, [packs][window][4 out][4 in], into pairs, `step` bytes from tap to tap.
static inline void spw_pair_blocks(const int8_t *blocks, int packs, int window, int8_t *to, size_t step) {
  static const int8_t zeros[16];
  for (int pack = 0; pack < packs; pack += 2, blocks += 32 * window)
    for (int place = 0; place < window; ++place, to += step) {
      const int8_t *block = blocks + 16 * place;
      spw_pair_block(block, pack + 1 < packs ? block + 16 * window : zeros, to);
    }
}

// Some pixels of each of `rows` rows of two packs, every `stride`-th from `column` on, with the border around the image.
struct spw_pair_rows {
  const unsigned char *first, *second;  // the packs' images, [height][width][4]
  int height, width;
  int row, row_step, rows;
  int column, stride, pixels;
  uint32_t border;
};

static inline void spw_fill_pairs(unsigned char *to, int pixels, uint32_t word) {
  for (int half = 0; half < 2 * pixels; ++half) memcpy(to + 4 * half, &word, 4);
}

#ifdef __ARM_NEON
// Pixels 0, 2, 4 and 6; vld2q_u32() would read the one behind them.
static inline uint32x4_t spw_every_second(const unsigned char *pixels) {
  const uint32x4_t early = vreinterpretq_u32_u8(vld1q_u8(pixels)), late = vreinterpretq_u32_u8(vld1q_u8(pixels + 12));
  return vuzp1q_u32(early, vextq_u32(late, late, 1));
}
#endif

static inline void spw_join_pairs(const unsigned char *restrict first, const unsigned char *restrict second,
                                  unsigned char *restrict to, int pixels, const int stride) {
  int at = 0;
#ifdef __ARM_NEON
  // Fours, the last of which may begin early.
  for (; pixels >= 4 && stride <= 2 && at < pixels; at += 4) {
    const int from = at + 4 <= pixels ? at : pixels - 4;
    uint32x4x2_t pair;
    if (stride == 1) {
      pair.val[0] = vreinterpretq_u32_u8(vld1q_u8(first + 4 * from));
      pair.val[1] = vreinterpretq_u32_u8(vld1q_u8(second + 4 * from));
    } else {
      pair.val[0] = spw_every_second(first + 8 * from);
      pair.val[1] = spw_every_second(second + 8 * from);
    }
    vst2q_u32((uint32_t *)(to + 8 * from), pair);
  }
#endif
  for (; at < pixels; ++at) {
    memcpy(to + 8 * at, first + 4 * at * stride, 4);
    memcpy(to + 8 * at + 4, second + 4 * at * stride, 4);
  }
}

// Copies them to `to`, from each row to the next `to_step` bytes.
static inline void spw_copy_pair_rows(struct spw_pair_rows rows, unsigned char *to, size_t to_step) {
  const int stride = rows.stride;
  const int before = rows.column < 0 ? (-rows.column + stride - 1) / stride : 0;
  const int inside = rows.width > rows.column ? (rows.width - rows.column + stride - 1) / stride : 0;
  const int begin = before < rows.pixels ? before : rows.pixels;
  const int end = inside < begin ? begin : inside < rows.pixels ? inside : rows.pixels;
  if (rows.pixels == rows.width && rows.column == 0 && rows.row >= 0 && rows.row + rows.rows <= rows.height &&
      stride == 1 && rows.row_step == 1 && to_step == 8 * (size_t)rows.pixels) {
    const size_t from = 4 * (size_t)rows.row * (size_t)rows.width;
    spw_join_pairs(rows.first + from, rows.second + from, to, rows.rows * rows.width, 1);
    return;
  }
  const ptrdiff_t column = 4 * (ptrdiff_t)(rows.column + begin * stride);
  for (int row = rows.row; rows.rows; --rows.rows, row += rows.row_step, to += to_step) {
    if (row < 0 || row >= rows.height || begin == end) {
      spw_fill_pairs(to, rows.pixels, rows.border);
      continue;
    }
    const ptrdiff_t from = 4 * (ptrdiff_t)row * rows.width + column;
    const unsigned char *first = rows.first + from, *second = rows.second + from;
    spw_fill_pairs(to, begin, rows.border);
    if (stride == 1) spw_join_pairs(first, second, to + 8 * begin, end - begin, 1);
    else if (stride == 2) spw_join_pairs(first, second, to + 8 * begin, end - begin, 2);
    else spw_join_pairs(first, second, to + 8 * begin, end - begin, stride);
    spw_fill_pairs(to + 8 * end, rows.pixels - end, rows.border);
  }
}

#endif
