// 2-bit indices to int8 through one table register.
#ifndef __ARM_NEON
#error "compile for a processor with NEON"
#endif

#include <arm_neon.h>

#include "kernel.h"

void spw_unpack_qs8c_cb2t__neon(size_t blocks, const uint8_t *indices, const int8_t codebook[16], int8_t *values) {
  const int8x16_t table = vld1q_s8(codebook);
  const uint8x16_t mask = vdupq_n_u8(3);
  for (size_t block = 0; block < blocks; block += 4, indices += 16, values += 64) {
    const uint8x16_t index = vld1q_u8(indices);
    vst1q_s8(values, vqtbl1q_s8(table, vandq_u8(index, mask)));
    vst1q_s8(values + 16, vqtbl1q_s8(table, vandq_u8(vshrq_n_u8(index, 2), mask)));
    vst1q_s8(values + 32, vqtbl1q_s8(table, vandq_u8(vshrq_n_u8(index, 4), mask)));
    vst1q_s8(values + 48, vqtbl1q_s8(table, vshrq_n_u8(index, 6)));
  }
}
