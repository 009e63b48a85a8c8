// What the vector kernels of depthwise convolutions by rows share: loops over tiles and a cheaper epilogue. Before a
// kernel file includes this, it defines struct spw_dwrows_weights, SPW_DWROWS_ROWS (output rows of a tile) and
//
//   read_weights(weights, size, stride)                                unpacks the weights of a window into registers
//   accumulate(weights, pixels, row_bytes, sum, rows, size, stride)    sum[row][pixel] += weights * activation
#ifndef SPW_CONV_DWROWS_NEON_H
#define SPW_CONV_DWROWS_NEON_H

#include "epilogue_neon.h"

// 1.5 * 2^23, and its bits: adding it to a float below 2^22 rounds that to an integer, half to even, which is then in
// the low bits; adding its bits to an integer below 2^22 makes the float that is the sum of both. That converts with
// cheap additions where conversions of whole vectors take twice the time.
#define SPW_MAGIC 12582912.0f
#define SPW_MAGIC_BITS 0x4B400000

// What a tile reads of a run, once.
struct spw_dwrows_window {
  struct spw_dwrows_weights weights;
  size_t row_bytes, row_elements;  // of the input and the output
  const int32_t *initial;          // [4], SPW_MAGIC_BITS in it where the run is bounded
  const float *bias;               // [4]
};

// With the dot product the vector pipes are what is busy, and a move from a register takes a slot of them: this loads
// again what a register holds. The pointer and the number are not used; they keep the compiler from loading once.
#ifdef __ARM_FEATURE_DOTPROD
#define SPW_LOAD_AGAIN(vector, address, pointer, number) \
  __asm__("ldr %q0, %1" : "=w"(vector) : "Q"(*(address)), "r"(pointer), "i"(number))
#else
#define SPW_LOAD_AGAIN(vector, address, pointer, number) \
  ((void)(pointer), (void)(number), (void)memcpy(&(vector), address, 16))
#endif

// Whether every sum of the run stays below 2^22 and every value below 2^15, whatever the input: weights of 8 bits times
// activations of 8 bits are at most 2^14.
SPW_ALWAYS_INLINE int spw_is_bounded(const struct spw_conv_run *run) {
  const int32x4_t products = vdupq_n_s32((int32_t)run->taps << 14);
  const float32x4_t sum = vcvtq_f32_s32(vqaddq_s32(vqabsq_s32(vld1q_s32(run->initial)), products));
  const float32x4_t value = vfmaq_f32(vabsq_f32(vld1q_f32(run->bias)), sum, vabsq_f32(vld1q_f32(run->scale)));
  const uint32x4_t below = vandq_u32(vcltq_f32(sum, vdupq_n_f32(4194304.0f)), vcltq_f32(value, vdupq_n_f32(32000.0f)));
  return vminvq_u32(below) != 0;
}

// spw_finish_quad_qa8() of a bounded run without a residual, whose sums began with SPW_MAGIC_BITS.
SPW_ALWAYS_INLINE void spw_finish_bounded(const struct spw_dwrows_window *window,
                                          const struct spw_epilogue_qa8 *epilogue, int8_t *output,
                                          const int32x4_t sum[4], const int row) {
  int16x8_t half[2];
  SPW_UNROLL for (int pair = 0; pair < 2; ++pair) {
    int16x8_t rounded[2];
    SPW_UNROLL for (int index = 0; index < 2; ++index) {
      const float32x4_t exact = vsubq_f32(vreinterpretq_f32_s32(sum[2 * pair + index]), vdupq_n_f32(SPW_MAGIC));
      float32x4_t bias;
      SPW_LOAD_AGAIN(bias, window->bias, output, 4 * row + 2 * pair + index);
      const float32x4_t value = vfmaq_f32(bias, exact, epilogue->scale[0]);
      rounded[index] = vreinterpretq_s16_f32(vaddq_f32(value, vdupq_n_f32(SPW_MAGIC)));
    }
    half[pair] = vqaddq_s16(vuzp1q_s16(rounded[0], rounded[1]), epilogue->output_zero_point);
  }
  const int8x16_t bytes = vqmovn_high_s16(vqmovn_s16(half[0]), half[1]);
  vst1q_s8(output, vminq_s8(vmaxq_s8(bytes, epilogue->clamp_min), epilogue->clamp_max));
}

SPW_ALWAYS_INLINE void spw_dwrows_tile(const struct spw_dwrows_window *window, const struct spw_epilogue_qa8 *epilogue,
                                       const int8_t *pixels, size_t output, const int rows, const int size,
                                       const int stride, const int bounded, const int float_output) {
  int32x4_t sum[SPW_DWROWS_ROWS][4];
  SPW_UNROLL for (int row = 0; row < rows; ++row) SPW_UNROLL for (int pixel = 0; pixel < 4; ++pixel)
      SPW_LOAD_AGAIN(sum[row][pixel], window->initial, pixels, 4 * row + pixel);
  accumulate(&window->weights, pixels, window->row_bytes, sum, rows, size, stride);
  SPW_UNROLL for (int row = 0; row < rows; ++row) {
    const size_t element = output + (size_t)row * window->row_elements;
    if (bounded) spw_finish_bounded(window, epilogue, (int8_t *)epilogue->output + element, sum[row], row);
    else spw_finish_quad_qa8(epilogue, 0, (int32_t)element, sum[row], float_output);
  }
}

SPW_ALWAYS_INLINE void spw_dwrows_tiles(const struct spw_dwrows_window *window, const struct spw_epilogue_qa8 *epilogue,
                                        const struct spw_conv_run *run, size_t row, const int rows, const int size,
                                        const int stride, const int bounded, const int float_output) {
  const int8_t *pixels = (const int8_t *)run->activation + row * (size_t)stride * window->row_bytes;
  const size_t output = row * window->row_elements;
  // Where a row is no multiple of 4, its last tile overlaps the one before it and both compute the same bytes.
  const size_t last = run->columns > 4 ? (size_t)run->columns - 4 : 0;
  for (size_t column = 0;; column = column + 4 < last ? column + 4 : last) {
    spw_dwrows_tile(window, epilogue, pixels + 4 * column * (size_t)stride, output + 4 * column, rows, size, stride,
                    bounded, float_output);
    if (column == last) return;
  }
}

SPW_ALWAYS_INLINE void spw_dwrows_window(const struct spw_conv_run *run, const int size, const int stride,
                                         const int float_output) {
  const struct spw_epilogue_qa8 epilogue = spw_begin_qa8(run, 1);
  const int bounded = !float_output && !run->residual && run->pixels == 4 && spw_is_bounded(run);
  int32_t initial[4];
  vst1q_s32(initial, vaddq_s32(vld1q_s32(run->initial), vdupq_n_s32(bounded ? SPW_MAGIC_BITS : 0)));
  const struct spw_dwrows_window window = {.weights = read_weights(run->weights, size, stride),
                                           .row_bytes = run->row_bytes,
                                           .row_elements = 4 * (size_t)run->columns,
                                           .initial = initial,
                                           .bias = run->bias};
  const size_t end = (size_t)run->rows;
  size_t row = 0;
  if (!bounded) {
    for (; row < end; ++row) spw_dwrows_tiles(&window, &epilogue, run, row, 1, size, stride, 0, float_output);
    return;
  }
  for (; row + SPW_DWROWS_ROWS <= end; row += SPW_DWROWS_ROWS)
    spw_dwrows_tiles(&window, &epilogue, run, row, SPW_DWROWS_ROWS, size, stride, 1, 0);
  for (; row < end; ++row) spw_dwrows_tiles(&window, &epilogue, run, row, 1, size, stride, 1, 0);
}

static void spw_dwrows_any_window(const struct spw_conv_run *run, int float_output) {
  const int size = run->operator->kernel_width, stride = run->operator->stride_width;
  if (size == 3 && stride == 1) spw_dwrows_window(run, 3, 1, float_output);
  else if (size == 3) spw_dwrows_window(run, 3, 2, float_output);
  else if (stride == 1) spw_dwrows_window(run, 5, 1, float_output);
  else spw_dwrows_window(run, 5, 2, float_output);
}

#endif
