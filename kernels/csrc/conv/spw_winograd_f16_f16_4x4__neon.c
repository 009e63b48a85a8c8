// Winograd transforms of halves in float, 4 channels of a tile in a vector; each operation is a line of the scalar twin.
#include "widened_neon.h"

#define INLINE SPW_ALWAYS_INLINE
#define UNROLL _Pragma("GCC unroll 9")
#define TILES 1

typedef float16_t element;
typedef float32x4_t vector;

INLINE vector load(const float16_t *from) { return spw_load_widened(from); }
INLINE vector gather(const float16_t *const *from, ptrdiff_t offset) { return spw_load_widened(from[0] + offset); }
INLINE vector load_bias(const float *bias) { return vld1q_f32(bias); }
INLINE vector add(vector left, vector right) { return vaddq_f32(left, right); }
INLINE vector subtract(vector left, vector right) { return vsubq_f32(left, right); }
INLINE vector scale(vector left, float constant) { return vmulq_n_f32(left, constant); }
INLINE vector multiply_add(vector sum, vector left, float constant) { return vfmaq_n_f32(sum, left, constant); }
INLINE vector clamp(const struct spw_conv2d *operator, vector value) {
  return vminnmq_f32(vmaxnmq_f32(value, vdupq_n_f32(operator->float_min)), vdupq_n_f32(operator->float_max));
}
INLINE void store(float16_t *to, vector value) { vst1_f16(to, vcvt_f16_f32(value)); }
INLINE void scatter(float16_t *const *to, ptrdiff_t offset, vector value) { store(to[0] + offset, value); }

#include "winograd_transforms.h"

void spw_winograd_clamp_f16_f16_f16_4x4__neon(const struct spw_winograd_run *run) { run_stage(run); }
