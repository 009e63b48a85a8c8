// Depthwise convolution in half precision: 16 pixels x 4 channels, two pixels in a vector.
#include "half_neon.h"

SPW_ALWAYS_INLINE void tile(const struct spw_conv_run *run, const struct spw_epilogue_f16 *epilogue,
                            const struct spw_quad *quads_of_tile, const int quads, const int pixels) {
  float16x8_t sum[8];
  const char *pixel[4];
  const float16x4_t bias = vcvt_f16_f32(vld1q_f32(run->bias));
  SPW_UNROLL for (int quad = 0; quad < quads; ++quad) pixel[quad] =
      (const char *)run->activation + quads_of_tile[quad].input;
  SPW_UNROLL for (int pair = 0; pair < 2 * quads; ++pair) sum[pair] = vcombine_f16(bias, bias);
  const uint64_t *weights = run->weights;
  for (const int32_t *offset = run->offsets, *const end = offset + run->taps; offset < end; ++offset, ++weights) {
    const float16x8_t weight = vreinterpretq_f16_u64(vld1q_dup_u64(weights));
    SPW_UNROLL for (int quad = 0; quad < quads; ++quad) {
      const float16_t *from = (const float16_t *)(pixel[quad] + *offset);
      sum[2 * quad] = vfmaq_f16(sum[2 * quad], weight, vld1q_f16(from));
      sum[2 * quad + 1] = vfmaq_f16(sum[2 * quad + 1], weight, vld1q_f16(from + 8));
    }
  }
  SPW_UNROLL for (int pair = 0; pair < 2 * quads; ++pair) spw_finish_pair_f16(
      epilogue, (size_t)quads_of_tile[pair / 2].output + (size_t)(pair % 2 * 8), sum[pair], pixels - pair % 2 * 2);
}

void spw_dwconv_clamp_f16_f16_f16_16x4__neon_fp16(const struct spw_conv_run *run) {
  const struct spw_epilogue_f16 epilogue = spw_begin_f16(run);
  const struct spw_quad *quad = run->quad, *end = quad + run->quads;
  if (run->pixels < 4) {
    for (; quad < end; ++quad) tile(run, &epilogue, quad, 1, run->pixels);
    return;
  }
  for (; end - quad >= 4; quad += 4) tile(run, &epilogue, quad, 4, 4);
  if (end - quad >= 2) tile(run, &epilogue, quad, 2, 4), quad += 2;
  if (quad < end) tile(run, &epilogue, quad, 1, 4);
}
