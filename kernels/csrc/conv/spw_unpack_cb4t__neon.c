// 4-bit indices to int8 through one table register.
#ifndef __ARM_NEON
#error "compile for a processor with NEON"
#endif

#include <arm_neon.h>

#include "kernel.h"

// values[weight] = codebook[indices[weight] & 15], values[16 + weight] = codebook[indices[weight] >> 4]
static inline void expand(int8x16_t table, const uint8_t *indices, int8_t *values) {
  const uint8x16_t index = vld1q_u8(indices);
  vst1q_s8(values, vqtbl1q_s8(table, vandq_u8(index, vdupq_n_u8(15))));
  vst1q_s8(values + 16, vqtbl1q_s8(table, vshrq_n_u8(index, 4)));
}

void spw_unpack_qs8c_cb4t__neon(size_t blocks, const uint8_t *indices, const int8_t codebook[16], int8_t *values) {
  const int8x16_t table = vld1q_s8(codebook);
  for (; blocks >= 4; blocks -= 4, indices += 32, values += 64) {
    expand(table, indices, values);
    expand(table, indices + 16, values + 32);
  }
  for (; blocks; blocks -= blocks > 1 ? 2 : 1, indices += 16, values += 32) expand(table, indices, values);
}
