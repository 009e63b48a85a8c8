// Half precision for the scalar twins. Processors with fp16 compute in halves, each operation rounded once as the vector
// unit rounds it. The others widen what they load, compute in float, and round what they store.
#ifndef SPW_CONV_HALF_SCALAR_H
#define SPW_CONV_HALF_SCALAR_H

#include "epilogue_scalar.h"

typedef _Float16 spw_half;

// Products of two halves are exact in double; the sum falls on a half's rounding boundary only if it is exact as well.
static inline spw_half spw_half_multiply_add(spw_half sum, spw_half left, spw_half right) {
  return (spw_half)((double)left * (double)right + (double)sum);
}

// Sums, differences and products of two halves, rounded to float before, come out as if they were not.
static inline spw_half spw_half_add(spw_half left, spw_half right) { return (spw_half)((float)left + (float)right); }

static inline spw_half spw_half_subtract(spw_half left, spw_half right) {
  return (spw_half)((float)left - (float)right);
}

static inline spw_half spw_half_multiply(spw_half left, spw_half right) {
  return (spw_half)((float)left * (float)right);
}

static inline spw_half spw_half_clamp(const struct spw_conv2d *operator, spw_half value) {
  const spw_half low = (spw_half) operator->float_min, high = (spw_half) operator->float_max;
  value = value > low ? value : low;
  return value > high ? high : value;
}

// Writes the 4 channels of one pixel; see spw_finish_f32().
static inline void spw_finish_f16(const struct spw_conv_run *run, int channel, size_t element, const spw_half sum[4]) {
  const size_t at = (size_t)channel / 4 * run->plane + element;
  const spw_half *residual = run->residual;
  for (int lane = 0; lane < 4; ++lane)
    ((spw_half *)run->output)[at + lane] =
        spw_half_clamp(run->operator, residual ? spw_half_add(sum[lane], residual[at + lane]) : sum[lane]);
}

// The same of sums in float.
static inline void spw_finish_widened(const struct spw_conv_run *run, int channel, size_t element, const float sum[4]) {
  const size_t at = (size_t)channel / 4 * run->plane + element;
  const spw_half *residual = run->residual;
  for (int lane = 0; lane < 4; ++lane)
    ((spw_half *)run->output)[at + lane] =
        (spw_half)spw_clamp_float(run->operator, residual ? sum[lane] + (float)residual[at + lane] : sum[lane]);
}

#endif
