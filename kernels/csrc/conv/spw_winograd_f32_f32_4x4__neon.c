// Winograd transforms of float, 4 channels of a tile in a vector; each operation is a line of the scalar twin.
#include "epilogue_neon.h"

#define INLINE SPW_ALWAYS_INLINE
#define UNROLL _Pragma("GCC unroll 9")
#define TILES 1

typedef float element;
typedef float32x4_t vector;

INLINE vector load(const float *from) { return vld1q_f32(from); }
INLINE vector gather(const float *const *from, ptrdiff_t offset) { return vld1q_f32(from[0] + offset); }
INLINE vector load_bias(const float *bias) { return vld1q_f32(bias); }
INLINE vector add(vector left, vector right) { return vaddq_f32(left, right); }
INLINE vector subtract(vector left, vector right) { return vsubq_f32(left, right); }
INLINE vector scale(vector left, float constant) { return vmulq_n_f32(left, constant); }
INLINE vector multiply_add(vector sum, vector left, float constant) { return vfmaq_n_f32(sum, left, constant); }
INLINE vector clamp(const struct spw_conv2d *operator, vector value) {
  return vminnmq_f32(vmaxnmq_f32(value, vdupq_n_f32(operator->float_min)), vdupq_n_f32(operator->float_max));
}
INLINE void store(float *to, vector value) { vst1q_f32(to, value); }
INLINE void scatter(float *const *to, ptrdiff_t offset, vector value) { vst1q_f32(to[0] + offset, value); }

#include "winograd_transforms.h"

void spw_winograd_clamp_f32_f32_f32_4x4__neon(const struct spw_winograd_run *run) { run_stage(run); }
