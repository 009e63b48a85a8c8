// Convolution of int8 with smmla: 12 pixels x 8 output channels in 24 accumulators.
//
// An activation vector is two neighbouring pixels of 8 channels, a weight vector two output channels of 8 inputs, and
// smmla adds their 4 products of 8 terms: 32 multiplications an instruction. A tap of the full tile is 24 smmla and 10
// loads. An accumulator holds [pixel, pixel + 1][channel, channel + 2].
#ifndef __ARM_FEATURE_MATMUL_INT8
#error "compile for a processor with i8mm"
#endif

#include "epilogue_neon.h"
#include "epilogue_tile_neon.h"
#include "pairs.h"

// Constants of a run, in the order of the accumulators: [pack][channels 0 and 2, 1 and 3].
struct constants {
  int32x4_t initial[2][2];
  float32x4_t scale[2][2], bias[2][2];
  int16x8_t residual_zero_point, output_zero_point, clamp_min, clamp_max;
  float32x4_t float_min, float_max;
  float residual_scale;
  const int8_t *residual;
  void *output;
  size_t plane;
};

static struct constants read_constants(const struct spw_conv_run *run) {
  const struct spw_conv2d *operator = run->operator;
  struct constants constants = {
      .residual_zero_point = vdupq_n_s16((int16_t)operator->residual_zero_point),
      .output_zero_point = vdupq_n_s16((int16_t)operator->output_zero_point),
      .clamp_min = vdupq_n_s16((int16_t)operator->clamp_min),
      .clamp_max = vdupq_n_s16((int16_t)operator->clamp_max),
      .float_min = vdupq_n_f32(operator->float_min),
      .float_max = vdupq_n_f32(operator->float_max),
      .residual_scale = operator->residual_scale,
      .residual = run->residual,
      .output = run->output,
      .plane = run->plane,
  };
  for (int pack = 0; pack < run->packs; ++pack) {
    const int32x4_t initial = vld1q_s32(run->initial + 4 * pack);
    const float32x4_t scale = vld1q_f32(run->scale + 4 * pack), bias = vld1q_f32(run->bias + 4 * pack);
    constants.initial[pack][0] = vuzp1q_s32(initial, initial);
    constants.initial[pack][1] = vuzp2q_s32(initial, initial);
    constants.scale[pack][0] = vuzp1q_f32(scale, scale);
    constants.scale[pack][1] = vuzp2q_f32(scale, scale);
    constants.bias[pack][0] = vuzp1q_f32(bias, bias);
    constants.bias[pack][1] = vuzp2q_f32(bias, bias);
  }
  return constants;
}

// spw_finish_qa8() for 4 pixels of a pack, the first at element `at`, of which `pixels` exist; sum[pair of pixels][half].
SPW_ALWAYS_INLINE void finish_quad(const struct constants *constants, const int pack, size_t at, int32x4_t sum[2][2][2],
                                   int32_t pixels, const int number, const int float_output) {
  // value = fma(sum, scale, bias)
  float32x4_t value[2][2];
  SPW_UNROLL for (int half = 0; half < 2; ++half) SPW_UNROLL for (int pair = 0; pair < 2; ++pair) {
    SPW_LOAD_AGAIN(value[half][pair], &constants->bias[pack][half], 8 * number + 4 * pack + 2 * half + pair);
    value[half][pair] =
        vfmaq_f32(value[half][pair], vcvtq_f32_s32(sum[pair][pack][half]), constants->scale[pack][half]);
  }
  at += (size_t)pack * constants->plane;
  if (constants->residual) {
    // value = fma(residual - residual_zero_point, residual_scale, value)
    const int16x8_t words = vreinterpretq_s16_s8(spw_load_bytes(constants->residual + at, pixels));
    const int16x8_t residual[2] = {vshrq_n_s16(vshlq_n_s16(words, 8), 8), vshrq_n_s16(words, 8)};
    SPW_UNROLL for (int half = 0; half < 2; ++half) {
      const int16x8_t difference = vsubq_s16(residual[half], constants->residual_zero_point);
      value[half][0] =
          vfmaq_n_f32(value[half][0], vcvtq_f32_s32(vmovl_s16(vget_low_s16(difference))), constants->residual_scale);
      value[half][1] =
          vfmaq_n_f32(value[half][1], vcvtq_f32_s32(vmovl_high_s16(difference)), constants->residual_scale);
    }
  }
  if (float_output) {
    float *output = (float *)constants->output + at;
    SPW_UNROLL for (int pixel = 0; pixel < 4; ++pixel) if (pixel < pixels) {
      const float32x4_t even = value[0][pixel / 2], odd = value[1][pixel / 2];
      const float32x4_t channels = pixel % 2 ? vzip2q_f32(even, odd) : vzip1q_f32(even, odd);
      vst1q_f32(output + 4 * pixel, vminnmq_f32(vmaxnmq_f32(channels, constants->float_min), constants->float_max));
    }
    return;
  }
  // output = clamp(saturate(round(value)) + output_zero_point, clamp_min, clamp_max)
  int16x8_t narrow[2];
  SPW_UNROLL for (int half = 0; half < 2; ++half) {
    narrow[half] = vqmovn_high_s32(vqmovn_s32(vcvtnq_s32_f32(value[half][0])), vcvtnq_s32_f32(value[half][1]));
    narrow[half] = vqaddq_s16(narrow[half], constants->output_zero_point);
    narrow[half] = vminq_s16(vmaxq_s16(narrow[half], constants->clamp_min), constants->clamp_max);
  }
  spw_store_bytes((int8_t *)constants->output + at,
                  vtrn1q_s8(vreinterpretq_s8_s16(narrow[0]), vreinterpretq_s8_s16(narrow[1])), pixels);
}

// sum[pair of pixels][pack][half] += weights * activation
SPW_ALWAYS_INLINE void add_tap(int32x4_t sum[6][2][2], const int8_t *pixel, const int8_t *weights, const int pairs,
                               const int packs) {
  int8x16_t block[2][2];
  SPW_UNROLL for (int pack = 0; pack < packs; ++pack) SPW_UNROLL for (int half = 0; half < 2; ++half)
      block[pack][half] = vld1q_s8(weights + SPW_PAIR_BLOCK * pack + 16 * half);
  SPW_UNROLL for (int pair = 0; pair < pairs; ++pair) {
    const int8x16_t activation = vld1q_s8(pixel + 16 * pair);
    SPW_UNROLL for (int pack = 0; pack < packs; ++pack) SPW_UNROLL for (int half = 0; half < 2; ++half)
        sum[pair][pack][half] = vmmlaq_s32(sum[pair][pack][half], activation, block[pack][half]);
  }
}

SPW_ALWAYS_INLINE void tile(const struct spw_conv_run *run, const struct constants *constants,
                            const struct spw_span *span, int32_t first, const int pairs, const int packs,
                            const int float_output) {
  int32x4_t sum[6][2][2];
  SPW_UNROLL for (int pair = 0; pair < pairs; ++pair) SPW_UNROLL for (int pack = 0; pack < packs; ++pack)
      SPW_UNROLL for (int half = 0; half < 2; ++half)
          SPW_LOAD_AGAIN(sum[pair][pack][half], &constants->initial[pack][half], 4 * pair + 2 * pack + half);
  const int8_t *pixel = (const int8_t *)run->activation + span->input + 8 * first;
  const int8_t *block = run->weights;
  const int32_t *offset = run->offsets;
  for (size_t twos = run->taps / 2; twos; --twos, offset += 2, block += 2 * SPW_PAIR_BLOCK * packs) {
    add_tap(sum, pixel + offset[0], block, pairs, packs);
    add_tap(sum, pixel + offset[1], block + SPW_PAIR_BLOCK * packs, pairs, packs);
  }
  if (run->taps % 2) add_tap(sum, pixel + *offset, block, pairs, packs);
  const size_t at = (size_t)(span->output + 4 * first);
  SPW_UNROLL for (int quad = 0; quad < pairs / 2; ++quad) SPW_UNROLL for (int pack = 0; pack < packs; ++pack)
      finish_quad(constants, pack, at + 16 * (size_t)quad, &sum[2 * quad],
                  quad < pairs / 2 - 1 ? 4 : span->pixels - first - 4 * quad, quad, float_output);
}

SPW_ALWAYS_INLINE void convolve(const struct spw_conv_run *run, const int packs, const int float_output) {
  const struct constants constants = read_constants(run);
  for (const struct spw_span *span = run->span, *end = span + run->spans; span < end; ++span) {
    int32_t first = 0;
    for (; span->pixels - first > 8; first += 12) tile(run, &constants, span, first, 6, packs, float_output);
    if (span->pixels - first > 4) tile(run, &constants, span, first, 4, packs, float_output);
    else if (span->pixels > first) tile(run, &constants, span, first, 2, packs, float_output);
  }
}

void spw_convpairs_clamp_qa8t_qa8t_qs8c_12x8__neon_i8mm(const struct spw_conv_run *run) {
  if (run->packs == 2) convolve(run, 2, 0);
  else convolve(run, 1, 0);
}

void spw_convpairs_clamp_f32_qa8t_qs8c_12x8__neon_i8mm(const struct spw_conv_run *run) {
  if (run->packs == 2) convolve(run, 2, 1);
  else convolve(run, 1, 1);
}
