// Convolution of int8 for processors without dotprod: 8 pixels x 4 output channels in 16 accumulators.
//
// An output channel's 4 weights, repeated, meet the 4 input channels of two pixels in one smull: 8 products of 16 bits.
// Weights stay within [-127, 127], so two taps (2 * 127 * 128 = 32512) fit before sadalp widens them. An accumulator
// holds two partial sums for each of two pixels; addp makes them whole at the end. Two taps of the full tile are 32
// multiplications and 16 widening additions for 256 products.
//
// What lost: the same intrinsics as compilers order them, with dup in the place of ld4r: 67 predicted cycles for two taps
// of the full tile, where the order below takes 51; one pair of taps in the loop, with addresses made by additions: 57.
// Sums of more than two products in 16 bits, where the weights at hand are small enough: those of random networks, spread
// evenly up to 127, leave room for 2.2 to 2.5 of them.
#include "epilogue_neon.h"
#include "epilogue_tile_neon.h"

// sum[quad][out] gets the products of one tap or two; [half] is of pixels 0, 1 or 2, 3.
SPW_ALWAYS_INLINE void add_taps(int32x4_t sum[2][4][2], const int8_t *const pixel[2], const int8_t *block,
                                const int taps, const int quads) {
  int32x4x4_t weights[2];  // an output channel's, repeated, in each
  int8x16_t activation[2][2];
  SPW_UNROLL for (int tap = 0; tap < taps; ++tap) {
    weights[tap] = vld4q_dup_s32((const int32_t *)(block + 16 * tap));
    SPW_UNROLL for (int quad = 0; quad < quads; ++quad) activation[tap][quad] = vld1q_s8(pixel[tap] + 16 * quad);
  }
  SPW_UNROLL for (int out = 0; out < 4; ++out) {
    const int8x16_t first = vreinterpretq_s8_s32(weights[0].val[out]);
    SPW_UNROLL for (int quad = 0; quad < quads; ++quad) {
      int16x8_t low = vmull_s8(vget_low_s8(activation[0][quad]), vget_low_s8(first));
      int16x8_t high = vmull_high_s8(activation[0][quad], first);
      if (taps == 2) {
        const int8x16_t second = vreinterpretq_s8_s32(weights[1].val[out]);
        low = vmlal_s8(low, vget_low_s8(activation[1][quad]), vget_low_s8(second));
        high = vmlal_high_s8(high, activation[1][quad], second);
      }
      sum[quad][out][0] = vpadalq_s16(sum[quad][out][0], low);
      sum[quad][out][1] = vpadalq_s16(sum[quad][out][1], high);
    }
  }
}

// Eight products of an output channel each, of a tap whose pixels are in v0, v1 and weights in v4 to v7, and of one whose
// pixels are in v2, v3 and weights in v8 to v11.
#define SPW_FIRST_TAP(weights)                                                       \
  "smull v12.8h, v0.8b, v" weights ".8b\n smull2 v13.8h, v0.16b, v" weights ".16b\n" \
  "smull v14.8h, v1.8b, v" weights ".8b\n smull2 v15.8h, v1.16b, v" weights ".16b\n"
#define SPW_SECOND_TAP(weights)                                                      \
  "smlal v12.8h, v2.8b, v" weights ".8b\n smlal2 v13.8h, v2.16b, v" weights ".16b\n" \
  "smlal v14.8h, v3.8b, v" weights ".8b\n smlal2 v15.8h, v3.16b, v" weights ".16b\n"
#define SPW_WIDEN(widen, to, from) widen " v" to ".4s, v" from ".8h\n"
#define SPW_OUT(widen, first, second, low0, high0, low1, high1) \
  SPW_FIRST_TAP(first)                                          \
  SPW_SECOND_TAP(second)                                        \
  SPW_WIDEN(widen, low0, "12") SPW_WIDEN(widen, high0, "13") SPW_WIDEN(widen, low1, "14") SPW_WIDEN(widen, high1, "15")
#define SPW_FIRST_WEIGHTS(address) "ld4r {v4.4s, v5.4s, v6.4s, v7.4s}, [" address "]\n"
#define SPW_SECOND_WEIGHTS(address) "ld4r {v8.4s, v9.4s, v10.4s, v11.4s}, [" address "]\n"
// A pair of taps, and beside it the loads of the next one, whose offsets are that many bytes from the list's pointer.
// Registers added in a load cost nothing, and its result comes as late as a product: processors that run in order then
// start both together.
#define SPW_PAIR(widen, first_block, second_block, first_offset, second_offset)                                      \
  SPW_OUT(widen, "4", "8", "16", "17", "18", "19")                                                                   \
  SPW_FIRST_TAP("5")                                                                                                 \
  "smlal v12.8h, v2.8b, v9.8b\n smlal2 v13.8h, v2.16b, v9.16b\n ldrsw x9, [%[offset], " first_offset "]\n"           \
  "smlal v14.8h, v3.8b, v9.8b\n smlal2 v15.8h, v3.16b, v9.16b\n" SPW_WIDEN(                                          \
      widen, "20", "12") "ldrsw x10, [%[offset], " second_offset "]\n" SPW_WIDEN(widen, "21", "13")                  \
      SPW_WIDEN(widen, "22", "14") SPW_WIDEN(widen, "23", "15") SPW_OUT(widen, "6", "10", "24", "25", "26", "27")    \
          SPW_FIRST_TAP("7") "smlal v12.8h, v2.8b, v11.8b\n ldr q0, [%[pixel], x9]\n"                                \
                             "smlal2 v13.8h, v2.16b, v11.16b\n" SPW_FIRST_WEIGHTS(                                   \
                                 first_block) "smlal v14.8h, v3.8b, v11.8b\n smlal2 v15.8h, v3.16b, v11.16b\n ldr "  \
                                              "q1, [x13, x9]\n" SPW_WIDEN(widen, "28", "12")                         \
                                                  SPW_SECOND_WEIGHTS(second_block) SPW_WIDEN(widen, "29", "13")      \
                                                      SPW_WIDEN(widen, "30", "14") "ldr q3, [x13, x10]\n" SPW_WIDEN( \
                                                          widen, "31", "15") "ldr q2, [%[pixel], x10]\n"

// What add_taps() makes of `pairs` pairs of taps, at least one, of the full tile. Registers and order are what it is for:
// a processor that runs in order finds each product when its sum is due, and beside the multiplications the loads of the
// next pair. Sums begin with the first pair, the last one has nothing to load, two of those between take turns.
SPW_ALWAYS_INLINE void multiply_pairs(int32x4_t sum[2][4][2], const int8_t *pixel, const int8_t *block,
                                      const int32_t *offset, size_t pairs) {
  register int32x4_t v16 __asm__("v16"), v17 __asm__("v17"), v18 __asm__("v18"), v19 __asm__("v19");
  register int32x4_t v20 __asm__("v20"), v21 __asm__("v21"), v22 __asm__("v22"), v23 __asm__("v23");
  register int32x4_t v24 __asm__("v24"), v25 __asm__("v25"), v26 __asm__("v26"), v27 __asm__("v27");
  register int32x4_t v28 __asm__("v28"), v29 __asm__("v29"), v30 __asm__("v30"), v31 __asm__("v31");
  // clang-format off
  __asm__ volatile(
      "ldpsw x9, x10, [%[offset]]\n add x11, %[block], #16\n"
      "add x12, %[block], #32\n add x13, %[pixel], #16\n add x14, %[block], #48\n"
      "mov x15, #4\n mov x16, #8\n mov x17, #12\n"
      SPW_FIRST_WEIGHTS("%[block]") SPW_SECOND_WEIGHTS("x11")
      "ldr q0, [%[pixel], x9]\n ldr q1, [x13, x9]\n ldr q2, [%[pixel], x10]\n ldr q3, [x13, x10]\n"
      "subs %[pairs], %[pairs], #2\n b.lo 3f\n"
      SPW_PAIR("saddlp", "x12", "x14", "x16", "x17")
      // To the pair after next, or with an odd number between to the next one and the second of the two.
      "and x9, %[pairs], #1\n mov x10, #64\n sub x10, x10, x9, lsl #5\n"
      "add %[block], %[block], x10\n add x11, x11, x10\n add x12, x12, x10\n add x14, x14, x10\n"
      "add %[offset], %[offset], x10, lsr #2\n add %[pairs], %[pairs], x9\n"
      "cbnz x9, 2f\n"
      "cbz %[pairs], 4f\n"
      "1:\n"
      SPW_PAIR("sadalp", "%[block]", "x11", "xzr", "x15")
      "2:\n"
      SPW_PAIR("sadalp", "x12", "x14", "x16", "x17")
      "subs %[pairs], %[pairs], #2\n"
      "add %[block], %[block], #64\n add x11, x11, #64\n add x12, x12, #64\n add x14, x14, #64\n"
      "add %[offset], %[offset], #16\n"
      "b.ne 1b\n"
      "b 4f\n"
      "3:\n"
      ".irp number, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31\n"
      "movi v\\number\\().2d, #0\n"
      ".endr\n"
      "4:\n"
      SPW_OUT("sadalp", "4", "8", "16", "17", "18", "19")
      SPW_OUT("sadalp", "5", "9", "20", "21", "22", "23")
      SPW_OUT("sadalp", "6", "10", "24", "25", "26", "27")
      SPW_OUT("sadalp", "7", "11", "28", "29", "30", "31")
      : [pairs] "+&r"(pairs), [block] "+&r"(block), [offset] "+&r"(offset), "=&w"(v16), "=&w"(v17), "=&w"(v18),
        "=&w"(v19), "=&w"(v20), "=&w"(v21), "=&w"(v22), "=&w"(v23), "=&w"(v24), "=&w"(v25), "=&w"(v26), "=&w"(v27),
        "=&w"(v28), "=&w"(v29), "=&w"(v30), "=&w"(v31)
      : [pixel] "r"(pixel)
      : "x9", "x10", "x11", "x12", "x13", "x14", "x15", "x16", "x17", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7",
        "v8", "v9", "v10", "v11", "v12", "v13", "v14", "v15", "cc", "memory");
  // clang-format on
  const int32x4_t sums[4][4] = {{v16, v17, v18, v19}, {v20, v21, v22, v23}, {v24, v25, v26, v27}, {v28, v29, v30, v31}};
  SPW_UNROLL for (int out = 0; out < 4; ++out) SPW_UNROLL for (int quad = 0; quad < 2; ++quad) {
    sum[quad][out][0] = sums[out][2 * quad];
    sum[quad][out][1] = sums[out][2 * quad + 1];
  }
}

// [4 output channels][4 pixels] to [4 pixels][4 output channels].
SPW_ALWAYS_INLINE void transpose(int32x4_t sum[4]) {
  const int64x2_t low = vreinterpretq_s64_s32(vtrn1q_s32(sum[0], sum[1])),
                  high = vreinterpretq_s64_s32(vtrn1q_s32(sum[2], sum[3]));
  const int64x2_t odd_low = vreinterpretq_s64_s32(vtrn2q_s32(sum[0], sum[1])),
                  odd_high = vreinterpretq_s64_s32(vtrn2q_s32(sum[2], sum[3]));
  sum[0] = vreinterpretq_s32_s64(vtrn1q_s64(low, high));
  sum[1] = vreinterpretq_s32_s64(vtrn1q_s64(odd_low, odd_high));
  sum[2] = vreinterpretq_s32_s64(vtrn2q_s64(low, high));
  sum[3] = vreinterpretq_s32_s64(vtrn2q_s64(odd_low, odd_high));
}

SPW_ALWAYS_INLINE void tile(const struct spw_conv_run *run, const struct spw_epilogue_qa8 *epilogue,
                            const struct spw_span *span, int32_t first, const int quads, const int residual,
                            const int float_output) {
  int32x4_t sum[2][4][2];
  SPW_UNROLL for (int quad = 0; quad < quads; ++quad) SPW_UNROLL for (int out = 0; out < 4; ++out) sum[quad][out][0] =
      sum[quad][out][1] = vdupq_n_s32(0);
  const int8_t *pixel = (const int8_t *)run->activation + span->input + 4 * first;
  const int8_t *block = run->weights;
  const int32_t *offset = run->offsets;
  size_t pairs = run->taps / 2;
  if (quads == 2 && pairs) {
    multiply_pairs(sum, pixel, block, offset, pairs);
    offset += 2 * pairs, block += 32 * pairs, pairs = 0;
  }
  for (; pairs; --pairs, offset += 2, block += 32) {
    const int8_t *const taps[2] = {pixel + offset[0], pixel + offset[1]};
    add_taps(sum, taps, block, 2, quads);
  }
  if (run->taps % 2) {
    const int8_t *const tap[2] = {pixel + offset[0], NULL};
    add_taps(sum, tap, block, 1, quads);
  }
  const int32x4_t initial = vld1q_s32(run->initial);
  int32x4_t whole[2][4];
  SPW_UNROLL for (int quad = 0; quad < quads; ++quad) {
    SPW_UNROLL for (int out = 0; out < 4; ++out) whole[quad][out] = vpaddq_s32(sum[quad][out][0], sum[quad][out][1]);
    transpose(whole[quad]);
    SPW_UNROLL for (int lane = 0; lane < 4; ++lane) whole[quad][lane] = vaddq_s32(whole[quad][lane], initial);
  }
  spw_finish_tile_qa8(epilogue, run->bias, (size_t)(span->output + 4 * first), whole, quads, span->pixels - first,
                      residual, float_output);
}

SPW_ALWAYS_INLINE void convolve(const struct spw_conv_run *run, const int residual, const int float_output) {
  const struct spw_epilogue_qa8 epilogue = spw_begin_qa8(run, 1);
  for (const struct spw_span *span = run->span, *end = span + run->spans; span < end; ++span) {
    int32_t first = 0;
    for (; span->pixels - first > 4; first += 8) tile(run, &epilogue, span, first, 2, residual, float_output);
    if (first < span->pixels) tile(run, &epilogue, span, first, 1, residual, float_output);
  }
}

void spw_conv_clamp_qa8t_qa8t_qs8c_8x4__neon(const struct spw_conv_run *run) {
  if (run->residual) convolve(run, 1, 0);
  else convolve(run, 0, 0);
}

void spw_conv_clamp_f32_qa8t_qs8c_8x4__neon(const struct spw_conv_run *run) {
  if (run->residual) convolve(run, 1, 1);
  else convolve(run, 0, 1);
}
