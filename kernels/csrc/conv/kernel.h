// What a convolution driver hands to a micro-kernel.
//
// Every convolution is a list of taps. A tap is one pack of 4 input channels at one place of the kernel window: one
// byte offset from a pixel's own address, and, for each pack of 4 output channels, one block of 16 weights. Every output
// row is a list of quads, 4 neighbouring pixels each; where a row is no multiple of 4, its last quad overlaps the one
// before it and both compute the same bytes. So a micro-kernel knows neither strides nor padding nor window shapes.
#ifndef SPW_CONV_KERNEL_H
#define SPW_CONV_KERNEL_H

#include "../spw.h"

// Four neighbouring pixels of an output row.
struct spw_quad {
  int32_t input;   // bytes from run->activation to the first pixel's first tap
  int32_t output;  // elements from run->output (and run->residual) to the first pixel
};

// Any number of neighbouring pixels of an output row.
struct spw_span {
  int32_t input, output;  // as in a quad
  int32_t pixels;         // the input may be read for a multiple of 4
};

// One panel of output channels for a list of pixels: of spans for int8, of quads for float and depthwise.
//
// Weights int8    [taps][4 out][4 in]; taps are those that the panel has, zero blocks may be left out.
// Weights float   [taps][packs][4 in][4 out]; half [taps][4 in][packs][4 out].
// In pairs        of int8, see pairs.h: [taps][packs][out 0, 2, 1, 3][8 in], a tap is a pair of packs, a pixel 8 bytes.
// Depthwise       [taps][4] of any type; packs is 1 and offsets walk over the window alone.
//                 By rows: a square window at stride 1 or 2 over a bordered image of its own at activation, output row
//                 after output row; offsets and quads are not read. Vector kernels read up to 3 pixels past a row's last.
// Matrix-vector   the dense layout; one pixel, tap t at activation + 4 * t elements, quads and offsets are not read.
struct spw_conv_run {
  const struct spw_conv2d *operator;  // zero points, clamps, scale of the residual
  size_t taps;
  const int32_t *offsets;  // [taps] bytes
  const void *activation;
  const void *weights;
  size_t spans;
  const struct spw_span *span;  // [spans]
  size_t quads;
  const struct spw_quad *quad;  // [quads]
  int32_t pixels;               // of each quad that exist: 4, or less for an image narrower than 4
  int32_t packs;                // packs of 4 output channels: 1, or 2 of float and in pairs, 2 or 4 of half
  size_t plane;                 // elements from one pack of output channels to the next
  const int32_t *initial;       // [4 * packs]
  const float *scale;           // [4 * packs]
  const float *bias;            // [4 * packs]
  const void *residual;         // at the panel's first output, or NULL
  void *output;
  int32_t rows, columns;  // of the output: depthwise by rows alone, see dwrows.c
  size_t row_bytes;       // from one input row to the next, likewise
};

typedef void (*spw_conv_kernel)(const struct spw_conv_run *run);

// Expands `blocks` blocks of 16 indices to int8, rounded up to as many blocks as share 16 bytes.
typedef void (*spw_unpack_kernel)(size_t blocks, const uint8_t *indices, const int8_t codebook[16], int8_t *values);

// Taps whose products a kernel in half precision sums up before it adds them to its total.
enum { SPW_HALF_BLOCK = 32 };

// What kernels are for; the dispatch takes the first of its role that the processor can run.
enum spw_conv_role {
  SPW_ROLE_CONV_QA8,      // int8 to int8
  SPW_ROLE_CONV_QA8_F32,  // int8 to float
  SPW_ROLE_CONV_F32,      // float to float
  SPW_ROLE_CONV_F16,      // half to half
  SPW_ROLE_GEMV_QA8,
  SPW_ROLE_GEMV_QA8_F32,
  SPW_ROLE_GEMV_F32,
  SPW_ROLE_GEMV_F16,
  SPW_ROLE_DWCONV_QA8,
  SPW_ROLE_DWCONV_QA8_F32,
  SPW_ROLE_DWCONV_F32,
  SPW_ROLE_DWCONV_F16,
  SPW_ROLE_DWROWS_QA8,  // depthwise by rows
  SPW_ROLE_DWROWS_QA8_F32,
  SPW_ROLE_CONVPAIRS_QA8,  // int8 to int8 in pairs of packs
  SPW_ROLE_CONVPAIRS_QA8_F32,
};

#define SPW_KERNEL(role, name, isa) void name##__##isa(const struct spw_conv_run *run);
#define SPW_UNPACKER(format, name, isa) \
  void name##__##isa(size_t blocks, const uint8_t *indices, const int8_t codebook[16], int8_t *values);
#include "kernels.inc"
#undef SPW_KERNEL
#undef SPW_UNPACKER

// The driver of depthwise convolutions by rows: whether it takes an operator, and what spw_conv2d_*() then are.
int spw_dwrows_fits(const struct spw_conv2d *operator);
size_t spw_dwrows_workspace(const struct spw_conv2d *operator);
void spw_dwrows_run(const struct spw_conv2d *operator, const void * weights, const void *input, const void *residual,
                    void *output, struct spw_context *context);

spw_conv_kernel spw_find_conv_kernel(enum spw_conv_role role, uint32_t instruction_sets);

// format: SPW_FORMAT_CB4T or SPW_FORMAT_CB2T.
spw_unpack_kernel spw_find_unpack_kernel(int format, uint32_t instruction_sets);

#endif
