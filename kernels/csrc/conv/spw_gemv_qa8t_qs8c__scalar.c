// Linear layer of int8 on one vector.
#include "epilogue_scalar.h"

static void multiply(const struct spw_conv_run *run, int float_output) {
  int32_t sum[4];
  for (int out = 0; out < 4; ++out) sum[out] = run->initial[out];
  for (size_t tap = 0; tap < run->taps; ++tap) {
    const int8_t *block = (const int8_t *)run->weights + 16 * tap;
    const int8_t *activation = (const int8_t *)run->activation + 4 * tap;
    for (int out = 0; out < 4; ++out)
      for (int in = 0; in < 4; ++in) sum[out] = spw_multiply_add(sum[out], block[4 * out + in], activation[in]);
  }
  spw_finish_qa8(run, 0, 0, sum, float_output);
}

void spw_gemv_clamp_qa8t_qa8t_qs8c__scalar(const struct spw_conv_run *run) { multiply(run, 0); }

void spw_gemv_clamp_f32_qa8t_qs8c__scalar(const struct spw_conv_run *run) { multiply(run, 1); }
