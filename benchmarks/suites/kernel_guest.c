// Runs single micro-kernels for the counter of benchmarks/suites/kernels.py.
//
//   kernel_guest CASES
//
// CASES holds a line for each call: the kernel's symbol and seven numbers, see struct call. The one counted
// region has two sections for each line: what prepares the call, with a first one that fills the caches, and the call.
// Operands are zeros: no kernel's time depends on them.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "conv/winograd.h"

enum { BUFFER_BYTES = 8 << 20, MOST_TAPS = 1 << 14, MOST_PIXELS = 1 << 14 };

struct call {
  char symbol[128];
  int in_packs;        // of an unpacker: blocks
  int window, stride;  // of a convolution; of a transform, in the place of the window: the stage
  int rows, columns;   // of the output; of a transform: tiles, columns of places
  int packs;           // of output channels
  int pixel_bytes;     // of 4 input channels, or of the 8 of a pair
};

static const struct {
  const char *symbol;
  spw_conv_kernel convolve;
  spw_unpack_kernel unpack;
  spw_winograd_kernel transform;
} kernels[] = {
#define SPW_KERNEL(role, name, isa) {.symbol = #name "__" #isa, .convolve = name##__##isa},
#define SPW_UNPACKER(format, name, isa) {.symbol = #name "__" #isa, .unpack = name##__##isa},
#define SPW_WINOGRAD(role, name, isa) {.symbol = #name "__" #isa, .transform = name##__##isa},
#include "conv/kernels.inc"
#undef SPW_KERNEL
#undef SPW_UNPACKER
};

static _Alignas(64) unsigned char input[BUFFER_BYTES], output[BUFFER_BYTES], weights[BUFFER_BYTES];
static const float constants[16];
static int32_t offsets[MOST_TAPS];
static struct spw_quad quads[MOST_PIXELS];
static struct spw_span spans[MOST_PIXELS];

static void end_section(void) { __asm__ volatile("hint #122" ::: "memory"); }

static void convolve(const struct call *call, spw_conv_kernel kernel) {
  const struct spw_conv2d operator = {.kernel_height = call->window,
                                      .kernel_width = call->window,
                                      .stride_height = call->stride,
                                      .stride_width = call->stride,
                                      .clamp_min = -128,
                                      .clamp_max = 127,
                                      .float_max = 6,
                                      .residual_scale = 1};
  // The bordered image that the driver makes: [pack][row][phase = column modulo stride][pitch].
  const int pitch = (call->columns + 3) / 4 * 4 + (call->window - 1) / call->stride;
  const int row_pixels = call->stride * pitch, in_rows = (call->rows - 1) * call->stride + call->window;
  int32_t *offset = offsets;
  for (int pack = 0; pack < call->in_packs; ++pack)
    for (int y = 0; y < call->window; ++y)
      for (int x = 0; x < call->window; ++x)
        *offset++ =
            call->pixel_bytes * ((pack * in_rows + y) * row_pixels + x % call->stride * pitch + x / call->stride);
  size_t listed = 0;
  for (int row = 0; row < call->rows; ++row) {
    const int from = row * call->stride * row_pixels * call->pixel_bytes, to = 4 * row * call->columns;
    spans[row] = (struct spw_span){from, to, call->columns};
    for (int column = 0; column < call->columns; column += 4) {
      const int at = column + 4 <= call->columns ? column : call->columns > 4 ? call->columns - 4 : 0;
      quads[listed++] = (struct spw_quad){from + at * call->pixel_bytes, to + 4 * at};
    }
  }
  const struct spw_conv_run run = {
      .operator = &operator,
      .taps = (size_t)(offset - offsets),
      .offsets = offsets,
      .activation = input,
      .weights = weights,
      .spans = (size_t)call->rows,
      .span = spans,
      .quads = listed,
      .quad = quads,
      .pixels = call->columns < 4 ? call->columns : 4,
      .packs = call->packs,
      .plane = 4 * (size_t)call->rows * (size_t)call->columns,
      .initial = (const int32_t *)constants,
      .scale = constants,
      .bias = constants,
      .output = output,
      .rows = call->rows,
      .columns = call->columns,
      .row_bytes = (size_t)(call->columns * call->stride + call->window + 3) * (size_t)call->pixel_bytes,
  };
  kernel(&run);
  end_section();
  kernel(&run);
}

static void transform(const struct call *call, spw_winograd_kernel kernel) {
  const int size = 56;  // 14 x 14 tiles, of which the second row holds 12 without a border
  const struct spw_conv2d operator = {.in_height = size,
                                      .in_width = size,
                                      .out_height = size,
                                      .out_width = size,
                                      .kernel_height = 3,
                                      .kernel_width = 3,
                                      .pad_top = 1,
                                      .pad_left = 1,
                                      .clamp_min = -128,
                                      .clamp_max = 127,
                                      .float_max = 6,
                                      .residual_scale = 1};
  const struct spw_winograd_run run = {
      .stage = (enum spw_winograd_stage)call->window,
      .operator = &operator,
      .from = input,
      .to = output,
      .in_packs = call->in_packs,
      .packs = call->packs,
      .all_packs = call->packs,
      .column = call->columns == 1,
      .columns = call->columns,
      .first_tile = size / 4 + 1,
      .tiles = call->rows,
      .weights = (const int16_t *)weights,
      .row_bytes = (size + 8) * 4,
      .place_bytes = (size_t)(call->in_packs * call->rows) * 8,
      .initial = (const int32_t *)constants,
      .scale = constants,
      .bias = constants,
  };
  kernel(&run);
  end_section();
  kernel(&run);
}

int main(int count, char **arguments) {
  FILE *file = count == 2 ? fopen(arguments[1], "r") : NULL;
  if (!file) return fprintf(stderr, "usage: kernel_guest CASES\n"), 2;
  struct call call;
  __asm__ volatile("hint #120" ::: "memory");
  while (fscanf(file, "%127s %d %d %d %d %d %d %d", call.symbol, &call.in_packs, &call.window, &call.stride, &call.rows,
                &call.columns, &call.packs, &call.pixel_bytes) == 8) {
    size_t index = 0;
    while (index < sizeof kernels / sizeof *kernels && strcmp(kernels[index].symbol, call.symbol)) ++index;
    if (index == sizeof kernels / sizeof *kernels) return fprintf(stderr, "no kernel %s\n", call.symbol), 1;
    if (kernels[index].convolve) {
      convolve(&call, kernels[index].convolve);
    } else if (kernels[index].transform) {
      transform(&call, kernels[index].transform);
    } else {
      const spw_unpack_kernel unpack = kernels[index].unpack;
      unpack((size_t)call.in_packs, weights, (const int8_t *)constants, (int8_t *)output);
      end_section();
      unpack((size_t)call.in_packs, weights, (const int8_t *)constants, (int8_t *)output);
    }
    end_section();
  }
  __asm__ volatile("hint #121" ::: "memory");
  return 0;
}
