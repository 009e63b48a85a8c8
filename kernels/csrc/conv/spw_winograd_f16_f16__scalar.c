// Winograd transforms of halves in float, one channel at a time. The order of operations is part of the definition.
#include "half_scalar.h"

#define INLINE static inline
#define UNROLL
#define TILES 1

typedef spw_half element;
typedef struct {
  float lane[4];
} vector;

#define EACH_LANE(expression)                                            \
  vector result;                                                         \
  for (int lane = 0; lane < 4; ++lane) result.lane[lane] = (expression); \
  return result

INLINE vector load(const spw_half *from) { EACH_LANE(from[lane]); }
INLINE vector gather(const spw_half *const *from, ptrdiff_t offset) { return load(from[0] + offset); }
INLINE vector load_bias(const float *bias) { EACH_LANE(bias[lane]); }
INLINE vector add(vector left, vector right) { EACH_LANE(left.lane[lane] + right.lane[lane]); }
INLINE vector subtract(vector left, vector right) { EACH_LANE(left.lane[lane] - right.lane[lane]); }
INLINE vector scale(vector left, float constant) { EACH_LANE(left.lane[lane] * constant); }
INLINE vector multiply_add(vector sum, vector left, float constant) {
  EACH_LANE(fmaf(left.lane[lane], constant, sum.lane[lane]));
}
INLINE vector clamp(const struct spw_conv2d *operator, vector value) {
  EACH_LANE(spw_clamp_float(operator, value.lane[lane]));
}
INLINE void store(spw_half *to, vector value) {
  for (int lane = 0; lane < 4; ++lane) to[lane] = (spw_half)value.lane[lane];
}
INLINE void scatter(spw_half *const *to, ptrdiff_t offset, vector value) { store(to[0] + offset, value); }

#include "winograd_transforms.h"

void spw_winograd_clamp_f16_f16_f16__scalar(const struct spw_winograd_run *run) { run_stage(run); }
