// Winograd transforms in half precision, 4 channels of two tiles in a vector; each operation is a line of the scalar
// twin.
#include "half_neon.h"

#define INLINE SPW_ALWAYS_INLINE
#define UNROLL _Pragma("GCC unroll 9")
#define TILES 2

typedef float16_t element;
typedef float16x8_t vector;

INLINE vector load(const float16_t *from) { return vld1q_f16(from); }
INLINE vector gather(const float16_t *const *from, ptrdiff_t offset) {
  return vcombine_f16(vld1_f16(from[0] + offset), vld1_f16(from[1] + offset));
}
INLINE vector load_bias(const float *bias) {
  const float16x4_t half = vcvt_f16_f32(vld1q_f32(bias));
  return vcombine_f16(half, half);
}
INLINE vector add(vector left, vector right) { return vaddq_f16(left, right); }
INLINE vector subtract(vector left, vector right) { return vsubq_f16(left, right); }
INLINE vector scale(vector left, float constant) { return vmulq_n_f16(left, (float16_t)constant); }
INLINE vector multiply_add(vector sum, vector left, float constant) {
  return vfmaq_n_f16(sum, left, (float16_t)constant);
}
INLINE vector clamp(const struct spw_conv2d *operator, vector value) {
  const vector low = vdupq_n_f16((float16_t)operator->float_min);
  return vminnmq_f16(vmaxnmq_f16(value, low), vdupq_n_f16((float16_t)operator->float_max));
}
INLINE void store(float16_t *to, vector value) { vst1q_f16(to, value); }
INLINE void scatter(float16_t *const *to, ptrdiff_t offset, vector value) {
  vst1_f16(to[0] + offset, vget_low_f16(value));
  vst1_f16(to[1] + offset, vget_high_f16(value));
}

#include "winograd_transforms.h"

void spw_winograd_clamp_f16_f16_f16_8x4__neon_fp16(const struct spw_winograd_run *run) { run_stage(run); }
