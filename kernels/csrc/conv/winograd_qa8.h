// Winograd convolution of int8 that gives the direct convolution's sums to the last bit: F(4x4, 3x3) over the integers.
//
//   900 * sums = At (sum over input channels of (G weights Gt) * (Bt input B)) A
//
// The matrices are those of interpolation at 0, 1, -1, 2, -1/2 and infinity, multiplied by what makes them whole: G and
// Bt hold the values of polynomials, At has 30 as the common denominator of both directions' weights. Transformed
// weights stay within 49 * 127 and transformed inputs within 196 * 128, which is 16 bits. Sums are taken modulo 2^32.
// 900 = 225 * 4 and 225 has an inverse modulo 2^32, so only two bits are lost, for which sums of less than 2^29 have
// room: of 9 * 3600 products of 127 and 128. With the usual points 0, +-1, +-2 six bits would be lost.
#ifndef SPW_CONV_WINOGRAD_QA8_H
#define SPW_CONV_WINOGRAD_QA8_H

#include "winograd.h"

#define SPW_WINOGRAD_INVERSE 0x87654321u  // of 225 modulo 2^32

enum { SPW_WINOGRAD_SHIFT = 2, SPW_WINOGRAD_MOST_CHANNELS = 3600 };

// Whether the operator asks for it and this driver takes it, on a processor without a faster way.
int spw_winograd_qa8_fits(const struct spw_conv2d *operator);

size_t spw_winograd_qa8_workspace(const struct spw_conv2d *operator);

void spw_winograd_qa8_conv2d(const struct spw_conv2d *operator, const void * weights, const void *input,
                             const void *residual, void *output, struct spw_context *context);

#endif
