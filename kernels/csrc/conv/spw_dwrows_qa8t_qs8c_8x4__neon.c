// Depthwise convolution of int8 by rows: 2 rows of 4 pixels x 4 channels, on every processor.
//
// Two taps are multiplied into 16 bits (2 * 127 * 128 fits), then added to the sums of 32 bits. What is loaded of an
// input row serves both output rows that see it.
#include "epilogue_neon.h"

enum { SPW_DWROWS_ROWS = 2, MAX_SIZE = 5 };

// Each tap's 4 weights four times.
struct spw_dwrows_weights {
  int8x16_t tap[MAX_SIZE * MAX_SIZE];
};

SPW_ALWAYS_INLINE struct spw_dwrows_weights read_weights(const int8_t *weights, const int size, const int stride) {
  (void)stride;
  struct spw_dwrows_weights repeated;
  SPW_UNROLL for (int tap = 0; tap < size * size; ++tap) {
    repeated.tap[tap] = vreinterpretq_s8_s32(vld1q_dup_s32((const int32_t *)(weights + 4 * tap)));
    // Hides that both halves are equal, which clang would use to trade smull2 for ext and smull.
    __asm__("" : "+w"(repeated.tap[tap]));
  }
  return repeated;
}

// taps[x] = pixels x, x + stride, x + 2 * stride, x + 3 * stride
SPW_ALWAYS_INLINE void load_taps(const int8_t *pixels, int8x16_t *taps, const int size, const int stride) {
  if (stride == 1) {
    SPW_UNROLL for (int x = 0; x < size; ++x) taps[x] = vld1q_s8(pixels + 4 * x);
    return;
  }
  const int32x4_t first = vreinterpretq_s32_s8(vld1q_s8(pixels)), second = vreinterpretq_s32_s8(vld1q_s8(pixels + 16)),
                  third = vreinterpretq_s32_s8(vld1q_s8(pixels + 32));
  const int32x4_t even = vuzp1q_s32(first, second), odd = vuzp2q_s32(first, second);
  const int32x4_t next_even = vuzp1q_s32(third, third), next_odd = vuzp2q_s32(third, third);
  taps[0] = vreinterpretq_s8_s32(even);
  taps[1] = vreinterpretq_s8_s32(odd);
  taps[2] = vreinterpretq_s8_s32(vextq_s32(even, size == 3 ? third : next_even, 1));
  if (size == 3) return;
  taps[3] = vreinterpretq_s8_s32(vextq_s32(odd, next_odd, 1));
  taps[4] = vreinterpretq_s8_s32(vextq_s32(even, next_even, 2));
}

// sum[row][pixel] += weights * activation, over the window
SPW_ALWAYS_INLINE void accumulate(const struct spw_dwrows_weights *weights, const int8_t *pixels, size_t row_bytes,
                                  int32x4_t sum[][4], const int rows, const int size, const int stride) {
  int16x8_t low[SPW_DWROWS_ROWS], high[SPW_DWROWS_ROWS];
  SPW_UNROLL for (int from = 0; from < (rows - 1) * stride + size; ++from) {
    int8x16_t taps[MAX_SIZE];
    load_taps(pixels + (size_t)from * row_bytes, taps, size, stride);
    SPW_UNROLL for (int row = 0; row < rows; ++row) {
      const int y = from - row * stride;
      if (y < 0 || y >= size) continue;
      SPW_UNROLL for (int x = 0; x < size; ++x) {
        const int tap = y * size + x;
        if (tap % 2 == 0) {
          low[row] = vmull_s8(vget_low_s8(taps[x]), vget_low_s8(weights->tap[tap]));
          high[row] = vmull_high_s8(taps[x], weights->tap[tap]);
        } else {
          low[row] = vmlal_s8(low[row], vget_low_s8(taps[x]), vget_low_s8(weights->tap[tap]));
          high[row] = vmlal_high_s8(high[row], taps[x], weights->tap[tap]);
        }
        if (tap % 2 == 0 && tap < size * size - 1) continue;
        sum[row][0] = vaddw_s16(sum[row][0], vget_low_s16(low[row]));
        sum[row][1] = vaddw_high_s16(sum[row][1], low[row]);
        sum[row][2] = vaddw_s16(sum[row][2], vget_low_s16(high[row]));
        sum[row][3] = vaddw_high_s16(sum[row][3], high[row]);
      }
    }
  }
}

#include "dwrows_neon.h"

void spw_dwrows_clamp_qa8t_qa8t_qs8c_8x4__neon(const struct spw_conv_run *run) { spw_dwrows_any_window(run, 0); }

void spw_dwrows_clamp_f32_qa8t_qs8c_8x4__neon(const struct spw_conv_run *run) { spw_dwrows_any_window(run, 1); }
