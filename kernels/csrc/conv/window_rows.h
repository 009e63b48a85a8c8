// The input of a convolution of fewer than 4 channels, where packs of 4 channels would multiply zeros.
//
// A row of the window is a run of columns * channels neighbouring values, once the channels of each column lie together.
// Every four of them are a tap. What a row has left, up to three values, is put together with what the rows below have
// left, four rows to a tap. So the first layer of ResNet has 37 taps in place of 49, for 147 weights of an output; rows
// padded to whole taps have 42, and of a 3x3 window, where this form has 7 taps, 9 as before.
//
// The copy of a band's input holds what each tap sees, neighbouring outputs side by side:
//   [input row][plane][pitch][4]   planes: fours of the row, then those of what is left, spread over a stride of rows
#ifndef SPW_CONV_WINDOW_ROWS_H
#define SPW_CONV_WINDOW_ROWS_H

#include <string.h>
#ifdef __ARM_NEON
#include <arm_neon.h>
#endif

#include "../spw.h"

struct spw_window_rows {
  const struct spw_conv2d *operator;
  size_t element;   // bytes of a value
  int whole, rest;  // fours of a window's row, values left
  int rest_taps;    // of each value left
  int rest_planes;  // of an input row
  int pitch;        // pixels from one plane to the next
};

static inline int spw_smaller(int left, int right) { return left < right ? left : right; }

static inline int spw_window_rows_fit(const struct spw_conv2d *operator) {
  return operator->groups == 1 && operator->in_channels<SPW_CHANNEL_PACK && operator->dilation_height ==
      1 && operator->dilation_width == 1;
}

static inline struct spw_window_rows spw_make_window_rows(const struct spw_conv2d *operator, size_t element,
                                                          int pitch) {
  const int row = operator->kernel_width * operator->in_channels, height = operator->kernel_height;
  const int stride = spw_smaller(operator->stride_height, height);
  struct spw_window_rows rows = {operator, element, row / 4, row % 4, (height + 3) / 4, 0, pitch};
  rows.rest_planes = (rows.rest * rows.rest_taps + stride - 1) / stride;
  return rows;
}

static inline int spw_window_row_planes(const struct spw_window_rows *rows) { return rows->whole + rows->rest_planes; }

// Pixels, of 4 values, from what the first output row of a band sees to a plane of the whole fours.
static inline size_t spw_row_plane(const struct spw_window_rows *rows, int input_row, int four) {
  return ((size_t)input_row * (size_t)spw_window_row_planes(rows) + (size_t)four) * (size_t)rows->pitch;
}

// The same for a tap of what is left, whose planes begin at the output row's first input row.
static inline size_t spw_rest_plane(const struct spw_window_rows *rows, int first_row, int value, int tap) {
  const int plane = value * rows->rest_taps + tap;
  return spw_row_plane(rows, first_row + plane / rows->rest_planes, rows->whole + plane % rows->rest_planes);
}

// Bytes of an input row with its border, and of what copies write or read too much.
static inline size_t spw_line_bytes(const struct spw_window_rows *rows) {
  const struct spw_conv2d *operator= rows->operator;
  const int columns = (operator->out_width - 1) * operator->stride_width + operator->kernel_width;
  return ((size_t)columns * (size_t)operator->in_channels + SPW_CHANNEL_PACK) * rows->element + 32;
}

// Copies `bytes` from every `step` of one line to every `pixel` of another.
static inline void spw_spread_line(const unsigned char *restrict line, size_t step, unsigned char *restrict to,
                                   size_t pixel, int count, const size_t bytes) {
  for (int index = 0; index < count; ++index, line += step, to += pixel) memcpy(to, line, bytes);
}

// Leaves out the padding of pixels of int8: each pixel's is written over by the next one.
static inline void spw_join_bytes(unsigned char *restrict to, const unsigned char *restrict from, size_t channels,
                                  int pixels) {
  int x = 0;
#ifdef __ARM_NEON
  uint8_t places[16];
  for (size_t place = 0; place < 16; ++place) places[place] = (uint8_t)(place / channels * 4 + place % channels);
  const uint8x16_t at = vld1q_u8(places);
  for (; x + 4 <= pixels; x += 4, to += 4 * channels, from += 16) vst1q_u8(to, vqtbl1q_u8(vld1q_u8(from), at));
#endif
  for (; x < pixels; ++x, to += channels, from += 4) memcpy(to, from, 4);
}

// Brings the channels of each column of an input row together. row: of the image, NULL outside of it.
static inline void spw_make_line(const struct spw_window_rows *rows, const unsigned char *row, unsigned char *line) {
  const struct spw_conv2d *operator= rows->operator;
  const size_t column = (size_t)operator->in_channels * rows->element;
  const int columns = (operator->out_width - 1) * operator->stride_width + operator->kernel_width;
  const int left = spw_smaller(operator->pad_left, columns);
  const int inside = spw_smaller(operator->in_width, columns - left);
  if (!row) {
    memset(line, operator->input_zero_point, (size_t)columns * column);
    return;
  }
  memset(line, operator->input_zero_point, (size_t)left * column);
  line += (size_t)left * column;
  if (rows->element == 1) spw_join_bytes(line, row, column, inside);
  else if (rows->element == 2) spw_spread_line(row, 8, line, column, inside, 8);
  else spw_spread_line(row, 16, line, column, inside, 16);
  memset(line + (size_t)inside * column, operator->input_zero_point, (size_t)(columns - left - inside) * column);
}

// Fours of int8 to the pixels of a plane, which a table look-up takes out of the line four at a time.
static inline void spw_spread_bytes(const unsigned char *restrict line, size_t step, unsigned char *restrict to,
                                    int count) {
  int index = 0;
#ifdef __ARM_NEON
  if (3 * step + 4 <= 32) {
    uint8_t places[16];
    for (size_t place = 0; place < 16; ++place) places[place] = (uint8_t)(place / 4 * step + place % 4);
    const uint8x16_t at = vld1q_u8(places);
    for (; index + 4 <= count; index += 4, line += 4 * step, to += 16) {
      const uint8x16x2_t bytes = {{vld1q_u8(line), vld1q_u8(line + 16)}};
      vst1q_u8(to, vqtbl2q_u8(bytes, at));
    }
  }
#endif
  spw_spread_line(line, step, to, 4, count - index, 4);
}

static inline void spw_spread(const struct spw_window_rows *rows, const unsigned char *line, unsigned char *to,
                              int values) {
  const struct spw_conv2d *operator= rows->operator;
  const size_t step = (size_t)(operator->stride_width * operator->in_channels) * rows->element;
  const size_t bytes = (size_t)values * rows->element, pixel = SPW_CHANNEL_PACK * rows->element;
  const int count = operator->out_width;
  if (bytes == 1) spw_spread_line(line, step, to, pixel, count, 1);
  else if (bytes == 2) spw_spread_line(line, step, to, pixel, count, 2);
  else if (bytes == 4 && pixel == 4) spw_spread_bytes(line, step, to, count);
  else if (bytes == 4) spw_spread_line(line, step, to, pixel, count, 4);
  else if (bytes == 8) spw_spread_line(line, step, to, pixel, count, 8);
  else spw_spread_line(line, step, to, pixel, count, 16);
}

// Copies what `out_rows` output rows see, from first_row of `image` on, which is the input's one pack of channels.
static inline void spw_copy_window_rows(const struct spw_window_rows *rows, const unsigned char *image, int first_row,
                                        int out_rows, int in_rows, unsigned char *line, unsigned char *copy) {
  const struct spw_conv2d *operator= rows->operator;
  const size_t element = rows->element, pixel = SPW_CHANNEL_PACK * element;
  const size_t row_bytes = (size_t)operator->in_width * pixel;
  const int stride = operator->stride_height, height = operator->kernel_height;
  // The rows below the window that its last tap holds: their weights are zero, and must not meet what is no number.
  for (int out = 0; rows->element > 1 && height % 4 && out < out_rows; ++out)
    for (int value = 0; value < rows->rest; ++value)
      memset(copy + spw_rest_plane(rows, out * stride, value, rows->rest_taps - 1) * pixel, 0,
             (size_t)operator->out_width * pixel);
  for (int in = 0; in < in_rows; ++in) {
    const int row = first_row + in;
    const int inside = row >= 0 && row < operator->in_height;
    spw_make_line(rows, inside ? &image[(size_t)row * row_bytes] : NULL, line);
    for (int four = 0; four < rows->whole; ++four)
      spw_spread(rows, line + (size_t)four * pixel, copy + spw_row_plane(rows, in, four) * pixel, 4);
    for (int out = in / stride; rows->rest && out >= 0 && in - out * stride < height; --out) {
      const int y = in - out * stride;
      if (out >= out_rows) continue;
      for (int value = 0; value < rows->rest; ++value)
        spw_spread(rows, line + (size_t)rows->whole * pixel + (size_t)value * element,
                   copy + spw_rest_plane(rows, out * stride, value, y / 4) * pixel + (size_t)(y % 4) * element, 1);
    }
  }
}

#endif
