// What the Winograd driver hands to its transforms: F(4x4, 3x3), the 4x4 outputs of a tile from its 6x6 inputs with 36
// products a channel pair in place of 144.
//
//   output = At (sum over input channels of (G weights Gt) * (Bt input B)) A
//
// The matrices are those of interpolation at 0, +-1/sqrt(2), +-sqrt(2) and infinity (Toom and Cook). Points of absolute
// value about 1 keep the numbers in between as small as the inputs, which half precision needs; with the usual 0, +-1,
// +-2 its error is several times as large. Half inputs may reach 3000 before a sum of them overflows.
#ifndef SPW_CONV_WINOGRAD_H
#define SPW_CONV_WINOGRAD_H

#include "kernel.h"

enum { SPW_WINOGRAD_TILE = 6, SPW_WINOGRAD_OUTPUTS = 4, SPW_WINOGRAD_PLACES = 36 };

enum spw_winograd_stage { SPW_WINOGRAD_WEIGHTS, SPW_WINOGRAD_INPUT, SPW_WINOGRAD_MULTIPLY, SPW_WINOGRAD_OUTPUT };

// One stage for a band of tiles of one image. `to` of the first two stages and `from` of the last are in the layout that
// the dense convolution kernels read and write when a tile is a pixel and an input pack is a tap.
//
// Weights   from  [in_packs][9][packs][16] of a panel          to [6 * columns places][in_packs][all_packs][16]
// Input     from  the image, [in_packs][in height][in width][4] to [36 places][in_packs][tiles][4]
// Output    from  [36 places][packs][tiles][4]                  to the panel's first output
//
// Integers have points, sums and a driver of their own: see winograd_qa8.h.
struct spw_winograd_run {
  enum spw_winograd_stage stage;
  const struct spw_conv2d *operator;
  const void *from;
  void *to;
  int in_packs, packs;
  int all_packs;          // of `to`: packs, or those of two panels of halves, whose rows alternate
  int column, columns;    // of the 6x6 places, which lie column after column: 1 of float, 3 of halves
  int first_tile, tiles;  // tiles: a multiple of 4; those past the image's last repeat it
  const float *bias;      // [4 * packs]
  const void *residual;   // at the panel's first output, or NULL
  // Of integers alone. Weights: one panel of bytes at a time, to its blocks among those of `packs`. Input: one pack, from
  // the first row behind the first tile on, border included. Products: from the transformed input, added up at `to`.
  size_t row_bytes;        // from one input row to the next
  const int16_t *weights;  // transformed
  size_t place_bytes;      // from one place of the transformed input to the next
  int accumulate;          // 0: `to` holds nothing yet
  const int32_t *initial;  // [4 * packs]
  const float *scale;      // [4 * packs]
};

enum spw_winograd_role {
  SPW_ROLE_WINOGRAD_F32,
  SPW_ROLE_WINOGRAD_F16,
  SPW_ROLE_WINOGRAD_QA8,
  SPW_ROLE_WINOGRAD_QA8_F32,
};

typedef void (*spw_winograd_kernel)(const struct spw_winograd_run *run);

#define SPW_KERNEL(role, name, isa)
#define SPW_UNPACKER(format, name, isa)
#define SPW_WINOGRAD(role, name, isa) void name##__##isa(const struct spw_winograd_run *run);
#include "kernels.inc"
#undef SPW_KERNEL
#undef SPW_UNPACKER

spw_winograd_kernel spw_find_winograd_kernel(enum spw_winograd_role role, uint32_t instruction_sets);

// Whether the operator takes less work this way. It does not depend on the processor: all compute the same.
int spw_winograd_suits(const struct spw_conv2d *operator);

size_t spw_winograd_workspace(const struct spw_conv2d *operator);

void spw_winograd_conv2d(const struct spw_conv2d *operator, const void * weights, const void *input,
                         const void *residual, void *output, struct spw_context *context);

#endif
