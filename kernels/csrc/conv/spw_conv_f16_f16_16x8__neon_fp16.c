// Dense convolution in half precision: 16 pixels x 8 output channels in 16 accumulators, or 8 pixels x 16.
#include "half_neon.h"

// clang takes the directives of inner loops over to the loop around them, unless that has its own.
#define UNROLL_16 _Pragma("GCC unroll 16")
#define ROLLED _Pragma("GCC unroll 1")

// sum[out] = multiply_add(sum[out], row[out], activation[in]), for the two pixels of each vector of activations
#define ADD_INPUT(in)                                                                              \
  SPW_UNROLL for (int part = 0; part < parts; ++part) {                                            \
    const float16x8_t row = packs > 1 ? vld1q_f16(weights + 4 * packs * (in) + 8 * part)           \
                                      : vcombine_f16(vld1_f16(weights + 4 * (in)), vdup_n_f16(0)); \
    float16x8_t *const to = sum + 4 * quads * part;                                                \
    SPW_UNROLL for (int pair = 0; pair < 2 * quads; ++pair) {                                      \
      to[2 * pair] = vfmaq_laneq_f16(to[2 * pair], row, activation[pair], in);                     \
      to[2 * pair + 1] = vfmaq_laneq_f16(to[2 * pair + 1], row, activation[pair], 4 + (in));       \
    }                                                                                              \
  }

SPW_ALWAYS_INLINE void tile(const struct spw_conv_run *run, const struct spw_epilogue_f16 *epilogue,
                            const struct spw_quad *quads_of_tile, const int quads, const int packs, const int pixels) {
  const int parts = (packs + 1) / 2, accumulators = 4 * quads * parts;
  float16x8_t sum[16], total[16];
  const char *pixel[4];
  SPW_UNROLL for (int quad = 0; quad < quads; ++quad) pixel[quad] =
      (const char *)run->activation + quads_of_tile[quad].input;
  const float16_t *weights = run->weights;
  const int32_t *offset = run->offsets, *const end = offset + run->taps;
  ROLLED for (int first = 1;; first = 0) {
    UNROLL_16 for (int index = 0; index < accumulators; ++index) sum[index] = vdupq_n_f16(0);
    const int32_t *const block_end = end - offset > SPW_HALF_BLOCK ? offset + SPW_HALF_BLOCK : end;
    for (; offset < block_end; ++offset, weights += 16 * packs) {
      float16x8_t activation[8];
      SPW_UNROLL for (int quad = 0; quad < quads; ++quad) {
        const float16_t *from = (const float16_t *)(pixel[quad] + *offset);
        activation[2 * quad] = vld1q_f16(from);
        activation[2 * quad + 1] = vld1q_f16(from + 8);
      }
      ADD_INPUT(0)
      ADD_INPUT(1)
      ADD_INPUT(2)
      ADD_INPUT(3)
    }
    if (first) {
      SPW_UNROLL for (int part = 0; part < parts; ++part) {
        const float16x8_t bias = spw_half_bias(run->bias + 8 * part, packs);
        UNROLL_16 for (int index = 4 * quads * part; index < 4 * quads * (part + 1); ++index) sum[index] =
            vaddq_f16(bias, sum[index]);
      }
    } else {
      UNROLL_16 for (int index = 0; index < accumulators; ++index) sum[index] = vaddq_f16(total[index], sum[index]);
    }
    if (offset == end) break;
    // The totals live in memory: there are no registers left for them.
    UNROLL_16 for (int index = 0; index < accumulators; ++index) total[index] = sum[index];
  }
  SPW_UNROLL for (int index = 0; index < quads * parts; ++index) {
    SPW_UNROLL for (int pair = 0; pair < 2; ++pair) {
      const float16x8_t left = sum[4 * index + 2 * pair], right = sum[4 * index + 2 * pair + 1];
      const size_t at = (size_t)quads_of_tile[index % quads].output + 8 * (size_t)pair +
                        2 * (size_t)(index / quads) * epilogue->plane;
      spw_finish_pair_f16(epilogue, at, spw_low_halves(left, right), pixels - 2 * pair);
      if (packs > 1)
        spw_finish_pair_f16(epilogue, at + epilogue->plane, spw_high_halves(left, right), pixels - 2 * pair);
    }
  }
}

SPW_ALWAYS_INLINE void convolve(const struct spw_conv_run *run, const int packs) {
  const struct spw_epilogue_f16 epilogue = spw_begin_f16(run);
  const struct spw_quad *quad = run->quad, *end = quad + run->quads;
  if (run->pixels < 4) {
    for (; quad < end; ++quad) tile(run, &epilogue, quad, 1, packs, run->pixels);
    return;
  }
  for (; packs < 4 && end - quad >= 4; quad += 4) tile(run, &epilogue, quad, 4, packs, 4);
  for (; end - quad >= 2; quad += 2) tile(run, &epilogue, quad, 2, packs, 4);
  if (quad < end) tile(run, &epilogue, quad, 1, packs, 4);
}

void spw_conv_clamp_f16_f16_f16_16x8__neon_fp16(const struct spw_conv_run *run) {
  if (run->packs == 4) convolve(run, 4);
  else if (run->packs == 2) convolve(run, 2);
  else convolve(run, 1);
}
