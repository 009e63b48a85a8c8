// What follows the accumulators of a tile of neighbouring pixels.
#ifndef SPW_CONV_EPILOGUE_TILE_NEON_H
#define SPW_CONV_EPILOGUE_TILE_NEON_H

#include "epilogue_neon.h"

// Loads what a register holds: a move would take a slot of the vector pipes, the load pipe is idle. The number, another
// one each time, keeps the compiler from loading once and moving.
#define SPW_LOAD_AGAIN(vector, address, number) __asm__("ldr %q0, %1" : "=w"(vector) : "Q"(*(address)), "i"(number))

// spw_finish_qa8() for a tile of neighbouring pixels, the first at element `at`; sum[quad][pixel] holds a pixel's 4
// channels. Only the last quad may have fewer than 4 pixels. Straight code for all quads together: processors that run in
// order then find something to do while they wait.
SPW_ALWAYS_INLINE void spw_finish_tile_qa8(const struct spw_epilogue_qa8 *epilogue, const float *bias, size_t at,
                                           int32x4_t sum[][4], const int quads, int32_t pixels, const int residual,
                                           const int float_output) {
  const int32_t last = pixels - 4 * (quads - 1);
  int8x16_t operand[4], bytes[4];
  if (residual) {
    SPW_UNROLL for (int quad = 0; quad < quads - 1; ++quad) operand[quad] =
        vld1q_s8(epilogue->residual + at + 16 * quad);
    operand[quads - 1] = spw_load_bytes(epilogue->residual + at + 16 * (quads - 1), last);
  }
  SPW_UNROLL for (int quad = 0; quad < quads; ++quad) {
    // value = fma(sum, scale, bias)
    float32x4_t value[4];
    SPW_UNROLL for (int pixel = 0; pixel < 4; ++pixel) {
      SPW_LOAD_AGAIN(value[pixel], bias, 4 * quad + pixel);
      value[pixel] = vfmaq_f32(value[pixel], vcvtq_f32_s32(sum[quad][pixel]), epilogue->scale[0]);
    }
    if (residual) {
      // value = fma(residual - residual_zero_point, residual_scale, value)
      const int16x8_t low = vsubl_s8(vget_low_s8(operand[quad]), vget_low_s8(epilogue->residual_zero_point));
      const int16x8_t high = vsubl_high_s8(operand[quad], epilogue->residual_zero_point);
      const int32x4_t difference[4] = {vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)),
                                       vmovl_high_s16(high)};
      SPW_UNROLL for (int pixel = 0; pixel < 4; ++pixel) value[pixel] =
          vfmaq_n_f32(value[pixel], vcvtq_f32_s32(difference[pixel]), epilogue->residual_scale);
    }
    if (float_output) {
      float *output = (float *)epilogue->output + at + 16 * quad;
      SPW_UNROLL for (int pixel = 0; pixel < 4; ++pixel) if (quad < quads - 1 || pixel < last) vst1q_f32(
          output + 4 * pixel, vminnmq_f32(vmaxnmq_f32(value[pixel], epilogue->float_min), epilogue->float_max));
    } else {
      // output = clamp(saturate(round(value)) + output_zero_point, clamp_min, clamp_max)
      const int16x8_t low = vqmovn_high_s32(vqmovn_s32(vcvtnq_s32_f32(value[0])), vcvtnq_s32_f32(value[1]));
      const int16x8_t high = vqmovn_high_s32(vqmovn_s32(vcvtnq_s32_f32(value[2])), vcvtnq_s32_f32(value[3]));
      const int8x16_t narrow = vqmovn_high_s16(vqmovn_s16(vqaddq_s16(low, epilogue->output_zero_point)),
                                               vqaddq_s16(high, epilogue->output_zero_point));
      bytes[quad] = vminq_s8(vmaxq_s8(narrow, epilogue->clamp_min), epilogue->clamp_max);
    }
  }
  if (float_output) return;
  int8_t *output = (int8_t *)epilogue->output + at;
  SPW_UNROLL for (int quad = 0; quad < quads - 1; ++quad) vst1q_s8(output + 16 * quad, bytes[quad]);
  spw_store_bytes(output + 16 * (quads - 1), bytes[quads - 1], last);
}

#endif
