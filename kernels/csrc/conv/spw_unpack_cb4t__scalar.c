// 4-bit indices to int8: 16 bytes hold block b in their low nibbles and block b + 1 in their high ones.
#include "kernel.h"

void spw_unpack_qs8c_cb4t__scalar(size_t blocks, const uint8_t *indices, const int8_t codebook[16], int8_t *values) {
  for (size_t block = 0; block < blocks; block += 2, indices += 16, values += 32) {
    for (int weight = 0; weight < 16; ++weight) {
      values[weight] = codebook[indices[weight] & 15];
      values[16 + weight] = codebook[indices[weight] >> 4];
    }
  }
}
