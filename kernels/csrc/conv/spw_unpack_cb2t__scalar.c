// 2-bit indices to int8: 16 bytes hold block b in their lowest two bits, blocks b + 1 to b + 3 in the ones above.
#include "kernel.h"

void spw_unpack_qs8c_cb2t__scalar(size_t blocks, const uint8_t *indices, const int8_t codebook[16], int8_t *values) {
  for (size_t block = 0; block < blocks; block += 4, indices += 16, values += 64)
    for (int weight = 0; weight < 64; ++weight)
      values[weight] = codebook[indices[weight % 16] >> (weight / 16 * 2) & 3];
}
