// The driver of every convolution and linear layer: splits the output into tasks, brings each task's input into a shape
// that needs no borders and no strides, and feeds the micro-kernels.
//
// A task is a band of the output of one image, for some of the panels of output channels. Where the window has a
// border, a horizontal stride or a narrow image to deal with, the band's input is copied into the thread's workspace as
//   [channel pack][row][phase = column modulo stride][pitch][4]
// with the border filled in: then neighbouring output pixels read neighbouring addresses whatever the stride. Elsewhere
// the input is read where it lies. The copy is small beside the arithmetic (every byte of it is used kernel area *
// output channels times) and stays in the first two cache levels, as do the panel's weights, expanded once for a band.
//
// Rows of output of at most a quad, and for sparse weights all that are narrower than a tile, follow each other without
// a gap in a copy
//   [channel pack][row phase = row modulo stride][window column][row][output width][4]
// that holds what each column of the window sees: tiles then run on from row to row. Each tap of a tile is then on
// cache lines of its own, too many for the first level where the list of taps is long.
//
// Inputs of fewer than 4 channels may be copied as window_rows.h says. On processors that multiply matrices, dense
// convolutions of int8 always have a copy, in which two packs are one, of 8 channels (pairs.h): what is said of packs,
// pixels and taps of the input is then meant of pairs.
//
// Where zero blocks are left out of the weights, a panel has a shorter list of taps, and that is all.
//
// Several threads have the bands of one thread, so that no panel is expanded more often, and divide each band's panels
// finely enough for cores of unequal speed to end together. Where the copy is large, all threads make it first, of the
// whole image in memory that they share; a small one is made by each thread for itself, once for consecutive tasks.
#include <string.h>

#include "../formats.h"
#include "kernel.h"
#include "pairs.h"
#include "window_rows.h"
#include "winograd_qa8.h"

enum {
  BAND_BYTES = 64 * 1024,        // of input that a band may touch, when that leaves
  FLAT_BAND_BYTES = 192 * 1024,  // likewise, where each byte is there once for each column of the window
  ROWS_BAND_BYTES = 96 * 1024,   // likewise, of a copy by rows
  ROWS_PART_BYTES = 28 * 1024,   // of a copy by rows that stay in the first level from panel to panel
  FLAT_TAPS = 256,               // of a panel on average, whose lines are half of the smallest first-level cache
  NARROW = 4,                    // pixels of a row that leave half of the smallest tile empty
  NARROW_PAIRS = 36,             // pixels of a row that leave much of the three tiles empty that pairs would take
  BAND_QUADS = 16,               // at least so many quads, without which expanding weights would dominate
  TILE_QUADS = 4,                // of the widest tile
  PAIR_TILE_QUADS = 3,           // of the widest tile of pairs
  TASKS_A_THREAD = 8,            // so that cores of unequal speed end together
  TASK_WORK = 1024,              // blocks by quads: what a task should have at least, or taking it costs too much
  SHARED_PIXELS = 6 * 1024,      // of a copy: what it should have at least, or making it together costs too much
  ALIGNMENT = 64,
};

// What a depthwise convolution and a grouped one have in common: `convolutions` dense or one-pack convolutions, each with
// its own input packs and output packs. Everything here follows from the operator alone.
struct plan {
  struct spw_conv2d shape;  // of the operator; a 1x1 convolution's image is one long row
  size_t pixel_bytes;       // of 4 channels, or of the 8 of a pair
  int depthwise, direct, matrix_vector;
  int convolutions;
  int source_packs;         // of the input of one of them
  int in_packs, out_packs;  // of one of them; in pairs where they are
  int panel_packs, panels;  // output packs in a panel, panels of one convolution
  size_t taps;
  int spans;       // pixels are listed in spans, weights stored in a stream of blocks
  int quad_width;  // pixels of a quad that exist
  int row_quads;
  int flat;     // rows follow each other without a gap
  int by_rows;  // taps are made of rows of the window
  struct spw_window_rows window;
  int paired;             // packs are in pairs
  int one_row;            // in pairs: a 1x1 convolution's image as one long row, copied in quads
  int row_phases;         // of a flat copy
  int phases, pitch;      // of an input row, in pixels; by rows, planes in the place of phases
  int row_step;           // input rows, as stored, from one output row to the next
  int units, band_units;  // an output row each, or a quad where the input is read where it lies
};

static int ceil_div(int value, int divisor) { return (value + divisor - 1) / divisor; }

static int min_int(int left, int right) { return left < right ? left : right; }

static int max_int(int left, int right) { return left > right ? left : right; }

static size_t align_up(size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

// Input rows, as stored, behind `rows` output rows. A window one row high skips the rows that a stride skips.
static int input_rows(const struct plan *plan, int rows) {
  return (rows - 1) * plan->row_step + (plan->shape.kernel_height - 1) * plan->shape.dilation_height + 1;
}

static size_t row_bytes(const struct plan *plan) { return (size_t)plan->phases * plan->pitch * plan->pixel_bytes; }

// Rows of each phase of a flat copy that `rows` output rows need.
static int flat_rows(const struct plan *plan, int rows) {
  return rows + (plan->shape.kernel_height - 1) * plan->shape.dilation_height / plan->row_phases;
}

// Bytes of what one column of the window sees of one phase of a pack's rows.
static size_t flat_plane_bytes(const struct plan *plan, int rows) {
  return (size_t)flat_rows(plan, rows) * plan->shape.out_width * plan->pixel_bytes;
}

static size_t image_bytes(const struct plan *plan, int rows) {
  if (plan->flat)
    return (size_t)plan->in_packs * plan->row_phases * plan->shape.kernel_width * flat_plane_bytes(plan, rows) +
           ALIGNMENT;  // a tile's last quad may be read beyond the last row
  const size_t line = plan->by_rows ? spw_line_bytes(&plan->window) : 0;
  return plan->direct ? 0 : (size_t)plan->in_packs * input_rows(plan, rows) * row_bytes(plan) + line;
}

static int unit_quads(const struct plan *plan) { return plan->direct || plan->one_row ? 1 : plan->row_quads; }

static int choose_band_units(const struct plan *plan) {
  const int least = min_int(plan->units, ceil_div(BAND_QUADS, unit_quads(plan)));
  if (plan->direct) {
    const int quads = (int)(BAND_BYTES / (4 * plan->pixel_bytes * (size_t)plan->in_packs));
    return min_int(plan->units, max_int(least, quads / TILE_QUADS * TILE_QUADS));
  }
  int units = plan->units;
  const size_t most = plan->flat || plan->one_row ? FLAT_BAND_BYTES : plan->by_rows ? ROWS_BAND_BYTES : BAND_BYTES;
  while (units > least && image_bytes(plan, units) > most) --units;
  // Equal bands: the last one should not be a sliver.
  return ceil_div(plan->units, ceil_div(plan->units, units));
}

static size_t element_bytes(enum spw_conv2d_type type) {
  return type == SPW_CONV2D_F32 ? sizeof(float) : type == SPW_CONV2D_F16 ? sizeof(uint16_t) : sizeof(int8_t);
}

// How the weights let a convolution be planned. PAIRED: dense, on a processor that multiplies matrices.
enum weights_kind { DENSE, SPARSE, VERY_SPARSE, PAIRED, ROWS };

static struct plan make_plan(const struct spw_conv2d *operator, enum weights_kind kind) {
  struct plan plan = {.shape = *operator};
  struct spw_conv2d *shape = &plan.shape;
  const int borderless =
      shape->pad_top == 0 && shape->pad_left == 0 &&
      (shape->out_height - 1) * shape->stride_height + (shape->kernel_height - 1) * shape->dilation_height <
          shape->in_height &&
      (shape->out_width - 1) * shape->stride_width + (shape->kernel_width - 1) * shape->dilation_width <
          shape->in_width;
  const int in_place = borderless && kind != ROWS && shape->kernel_height == 1 && shape->kernel_width == 1 &&
                       shape->stride_height == 1 && shape->stride_width == 1 && shape->in_height == shape->out_height &&
                       shape->in_width == shape->out_width;
  if (in_place) {
    shape->in_width = shape->out_width = shape->in_height * shape->in_width;
    shape->in_height = shape->out_height = 1;
  }
  plan.pixel_bytes = SPW_CHANNEL_PACK * element_bytes(shape->type);
  plan.depthwise = shape->groups > 1 && shape->groups == shape->in_channels;
  plan.convolutions = plan.depthwise ? ceil_div(shape->groups, SPW_CHANNEL_PACK) : shape->groups;
  plan.source_packs = plan.depthwise ? 1 : ceil_div(shape->in_channels / shape->groups, SPW_CHANNEL_PACK);
  plan.out_packs = plan.depthwise ? 1 : ceil_div(shape->out_channels / shape->groups, SPW_CHANNEL_PACK);
  plan.spans = !plan.depthwise && shape->type == SPW_CONV2D_QA8;
  // No kernel multiplies a vector by a sparse matrix: an image of one pixel does as well.
  plan.matrix_vector = !plan.depthwise && (kind == DENSE || kind == PAIRED) &&
                       shape->in_height * shape->in_width == 1 && shape->out_height * shape->out_width == 1 &&
                       borderless;
  plan.paired = kind == PAIRED && !plan.depthwise && !plan.matrix_vector && spw_pairs_fit(operator);
  plan.one_row = plan.paired && in_place;
  plan.in_packs = plan.paired ? ceil_div(plan.source_packs, 2) : plan.source_packs;
  if (plan.paired) plan.pixel_bytes *= 2;
  plan.panel_packs = plan.paired                    ? SPW_PAIR_PANEL_PACKS
                     : plan.depthwise || plan.spans ? 1
                                                    : SPW_F32_PANEL_CHANNELS / SPW_CHANNEL_PACK;
  plan.panels = ceil_div(plan.out_packs, plan.panel_packs);
  plan.by_rows = kind == ROWS;
  plan.taps = plan.by_rows
                  ? spw_row_taps((size_t)shape->in_channels, (size_t)shape->kernel_height, (size_t)shape->kernel_width)
                  : (size_t)plan.in_packs * shape->kernel_height * shape->kernel_width;
  plan.direct = plan.matrix_vector ||
                (borderless && !plan.by_rows && !plan.paired && shape->stride_width == 1 && shape->out_width >= 4);
  plan.row_quads = ceil_div(shape->out_width, 4);
  plan.row_step = plan.direct || plan.by_rows || shape->kernel_height > 1 ? shape->stride_height : 1;
  plan.phases = plan.direct || shape->kernel_width == 1 ? 1 : shape->stride_width;
  const int wide = plan.paired ? NARROW_PAIRS : kind == VERY_SPARSE ? 4 * TILE_QUADS : NARROW + 1;
  plan.flat = plan.spans && !plan.direct && !plan.by_rows && !plan.one_row && shape->out_width < wide;
  plan.row_phases = shape->kernel_height > 1 ? shape->stride_height : 1;
  plan.quad_width = min_int(shape->out_width, 4);
  const int width = plan.spans ? 4 * plan.row_quads : max_int(shape->out_width, 4);
  plan.pitch =
      plan.direct ? shape->in_width : width + (shape->kernel_width - 1) * shape->dilation_width / shape->stride_width;
  if (plan.by_rows) {
    plan.window = spw_make_window_rows(operator, element_bytes(shape->type), width);
    plan.phases = spw_window_row_planes(&plan.window);
    plan.pitch = width;
  }
  if (plan.one_row) plan.pitch = 4;
  plan.units = plan.direct || plan.one_row ? shape->out_height * plan.row_quads : shape->out_height;
  plan.band_units = choose_band_units(&plan);
  return plan;
}

// What the taps and the image in a workspace are of.
struct prepared {
  int32_t band, convolution;  // -1 for none
};

// A thread's workspace, one array after the other. A copy that threads share lies behind all of theirs.
struct workspace {
  struct prepared *prepared;
  int32_t *offsets;        // of every tap; of all threads where they share the image
  int32_t *panel_offsets;  // of the taps that a sparse panel has
  struct spw_span *spans;  // or
  struct spw_quad *quads;
  int8_t *panel;
  unsigned char *image;
};

static size_t offsets_bytes(const struct plan *plan) { return align_up(plan->taps * sizeof(int32_t)); }

// Where the input is read in place, the end of a row may take a span of its own.
static size_t pixels_bytes(const struct plan *plan) {
  const size_t spans = (size_t)plan->band_units * (plan->direct ? 2 : 1);
  const size_t quads = (size_t)plan->band_units * unit_quads(plan);
  return align_up(plan->spans ? spans * sizeof(struct spw_span) : quads * sizeof(struct spw_quad));
}

static size_t panel_weights(const struct plan *plan, int packs) {
  return plan->taps * (plan->depthwise ? 4 : 16 * (size_t)packs);
}

// Blocks of 4 output channels that are not sparse.
static size_t stored_blocks(const struct plan *plan) {
  return plan->paired ? (size_t)plan->source_packs * plan->shape.kernel_height * plan->shape.kernel_width : plan->taps;
}

// Room for the blocks by which an unpacker may begin early and end late, and behind it for the panel in pairs.
static size_t expanded_bytes(const struct plan *plan) {
  const size_t weights = plan->depthwise ? panel_weights(plan, 1) : 16 * stored_blocks(plan);
  return plan->shape.type != SPW_CONV2D_QA8 ? 0 : align_up(weights + 128);
}

static size_t panel_bytes(const struct plan *plan) {
  const size_t pairs = plan->paired ? (size_t)SPW_PAIR_PANEL_PACKS * SPW_PAIR_BLOCK * plan->taps : 0;
  return expanded_bytes(plan) + align_up(pairs);
}

// Without the image.
static size_t lists_bytes(const struct plan *plan) {
  return ALIGNMENT + 2 * offsets_bytes(plan) + pixels_bytes(plan) + panel_bytes(plan);
}

static size_t workspace_bytes(const struct plan *plan) {
  return lists_bytes(plan) + align_up(image_bytes(plan, plan->band_units));
}

size_t spw_conv2d_workspace(const struct spw_conv2d *operator) {
  if (spw_dwrows_fits(operator)) return spw_dwrows_workspace(operator);
  if (spw_winograd_suits(operator)) return spw_winograd_workspace(operator);
  size_t most = spw_winograd_qa8_fits(operator) ? spw_winograd_qa8_workspace(operator) : 0;
  for (enum weights_kind kind = DENSE; kind <= (spw_window_rows_fit(operator) ? ROWS : PAIRED); ++kind) {
    const struct plan plan = make_plan(operator, kind);
    const size_t bytes = workspace_bytes(&plan);
    most = bytes > most ? bytes : most;
  }
  return most;
}

// Everything that the tasks of one call share.
struct job {
  struct plan plan;
  const struct spw_weights_header *weights;
  const unsigned char *input, *residual;
  unsigned char *output;
  const struct spw_context *context;
  spw_conv_kernel kernel;
  spw_unpack_kernel unpack;       // NULL where weights are read in place
  int band_units, bands, splits;  // splits: parts of the panels of all convolutions
  int copies;                     // tasks that make a copy of the whole image which all threads share; 0 without one
};

// Where a band lies in the output, and its input.
struct band {
  int first_row;               // of the output
  int rows;                    // of the output
  const unsigned char *input;  // first input pack of this image and convolution
  int stored_rows;             // input rows of a pack, as stored
};

// A range of a convolution's input packs.
struct packs {
  int first, last;
};

// Pixel sizes and the usual strides are constants in what follows, so that loops become plain or vector moves; borders
// are a pixel or two, for which a call of memset would cost more than the stores.
static inline void fill_pixels(unsigned char *to, int count, size_t pixel_bytes, uint32_t word) {
  if (pixel_bytes == 4)
    for (int index = 0; index < count; ++index) memcpy(to + 4 * index, &word, 4);
  else memset(to, 0, (size_t)count * pixel_bytes);
}

static inline void copy_strided(unsigned char *restrict to, const unsigned char *restrict from, int count, int stride,
                                const size_t pixel_bytes) {
  for (int index = 0; index < count; ++index)
    memcpy(to + (size_t)index * pixel_bytes, from + (size_t)(index * stride) * pixel_bytes, pixel_bytes);
}

static inline void copy_pixels(unsigned char *to, const unsigned char *from, int count, int stride,
                               size_t pixel_bytes) {
  if (stride == 1) memcpy(to, from, (size_t)count * pixel_bytes);
  else if (pixel_bytes == 4 && stride == 2) copy_strided(to, from, count, 2, 4);
  else if (pixel_bytes == 4) copy_strided(to, from, count, stride, 4);
  else if (pixel_bytes == 8) copy_strided(to, from, count, stride, 8);
  else copy_strided(to, from, count, stride, 16);
}

// Copies one phase of every row that the band reads of one convolution's input, border included. Column c of a phase is
// column c * stride + phase - pad_left of the input.
static inline void copy_phase(const struct plan *plan, const struct band *band, struct packs packs, int phase,
                              unsigned char *image) {
  const struct spw_conv2d *shape = &plan->shape;
  const size_t pixel = plan->pixel_bytes, source_row_bytes = (size_t)shape->in_width * pixel;
  const uint32_t border = (shape->input_zero_point & 255) * 0x01010101u;
  const int stride = shape->stride_width, shift = shape->pad_left - phase;
  const int begin = min_int(plan->pitch, shift > 0 ? ceil_div(shift, stride) : 0);
  const int inside = shape->in_width + shift > 0 ? ceil_div(shape->in_width + shift, stride) : 0;
  const int end = max_int(begin, min_int(plan->pitch, inside));
  const ptrdiff_t first_column = (ptrdiff_t)(begin * stride - shift) * (ptrdiff_t)pixel;
  const int row_step = shape->kernel_height > 1 ? 1 : shape->stride_height;
  const int first_row = band->first_row * shape->stride_height - shape->pad_top;
  for (int pack = packs.first; pack < packs.last; ++pack) {
    const unsigned char *source = band->input + (size_t)pack * shape->in_height * source_row_bytes;
    unsigned char *to = image + ((size_t)pack * band->stored_rows * plan->phases + phase) * plan->pitch * pixel;
    for (int index = 0, row = first_row; index < band->stored_rows; ++index, row += row_step, to += row_bytes(plan)) {
      if (row < 0 || row >= shape->in_height || begin == end) {
        fill_pixels(to, plan->pitch, pixel, border);
      } else {
        fill_pixels(to, begin, pixel, border);
        copy_pixels(to + (size_t)begin * pixel, source + (size_t)row * source_row_bytes + first_column, end - begin,
                    stride, pixel);
        fill_pixels(to + (size_t)end * pixel, plan->pitch - end, pixel, border);
      }
    }
  }
}

// At most 15 pixels: without a loop, of which a compiler would make a call of memcpy that costs more than the moves.
static inline void copy_few(unsigned char *restrict to, const unsigned char *restrict from, int count, int stride) {
  if (stride == 2) {
    copy_strided(to, from, count, 2, 4);
  } else if (stride > 2 || count < 4) {
    copy_strided(to, from, count, stride, 4);
  } else {
    memcpy(to, from, 16);
    if (count > 8) memcpy(to + 16, from + 16, 16);
    if (count > 12) memcpy(to + 32, from + 32, 16);
    memcpy(to + 4 * (count - 4), from + 4 * (count - 4), 16);
  }
}

// Copies what one column of the window sees of the rows that the band reads of one convolution's input, with the border.
static inline void copy_column(const struct plan *plan, const struct band *band, struct packs packs, int x,
                               unsigned char *image) {
  const struct spw_conv2d *shape = &plan->shape;
  const uint32_t border = (shape->input_zero_point & 255) * 0x01010101u;
  const int width = shape->out_width, stride = shape->stride_width, shift = shape->pad_left - x * shape->dilation_width;
  const int begin = min_int(width, shift > 0 ? ceil_div(shift, stride) : 0);
  const int inside = shape->in_width + shift > 0 ? ceil_div(shape->in_width + shift, stride) : 0;
  const int end = max_int(begin, min_int(width, inside));
  const int first_row = band->first_row * shape->stride_height - shape->pad_top;
  const int planes = packs.last * plan->row_phases;
  const size_t plane_bytes = flat_plane_bytes(plan, band->rows);
  for (int plane = packs.first * plan->row_phases; plane < planes; ++plane) {
    const unsigned char *source =
        band->input + (size_t)(plane / plan->row_phases) * shape->in_height * shape->in_width * SPW_CHANNEL_PACK;
    unsigned char *to = image + ((size_t)plane * shape->kernel_width + x) * plane_bytes;
    int row = first_row + plane % plan->row_phases;
    for (int left = flat_rows(plan, band->rows); left; --left, row += shape->stride_height, to += 4 * width) {
      if (row < 0 || row >= shape->in_height || begin == end) {
        fill_pixels(to, width, SPW_CHANNEL_PACK, border);
      } else {
        fill_pixels(to, begin, SPW_CHANNEL_PACK, border);
        copy_few(to + 4 * begin, source + 4 * ((ptrdiff_t)row * shape->in_width + begin * stride - shift), end - begin,
                 stride);
        fill_pixels(to + 4 * end, width - end, SPW_CHANNEL_PACK, border);
      }
    }
  }
}

// Copies some of the pairs of packs that the band reads of one convolution's input.
static void copy_pairs(const struct plan *plan, const struct band *band, struct packs pairs, unsigned char *image) {
  const struct spw_conv2d *shape = &plan->shape;
  const size_t pack_bytes = (size_t)shape->in_height * shape->in_width * SPW_CHANNEL_PACK;
  const size_t pixel = plan->pixel_bytes, row = row_bytes(plan);
  struct spw_pair_rows rows = {
      .height = shape->in_height,
      .width = shape->in_width,
      .row_step = plan->flat || shape->kernel_height == 1 ? shape->stride_height : 1,
      .stride = shape->stride_width,
      .border = (shape->input_zero_point & 255) * 0x01010101u,
  };
  for (int pair = pairs.first; pair < pairs.last; ++pair) {
    rows.first = band->input + 2 * (size_t)pair * pack_bytes;
    rows.second = 2 * pair + 1 < plan->source_packs ? rows.first + pack_bytes : rows.first;
    if (plan->one_row) {
      const int first = 4 * band->first_row, count = min_int(4 * band->rows, shape->out_width - first);
      spw_join_pairs(rows.first + 4 * first, rows.second + 4 * first, image + (size_t)pair * band->stored_rows * row,
                     count, 1);
      continue;
    }
    for (int phase = 0; phase < (plan->flat ? plan->row_phases : 1); ++phase) {
      rows.row = band->first_row * shape->stride_height - shape->pad_top + phase;
      for (int x = 0; x < (plan->flat ? shape->kernel_width : plan->phases); ++x) {
        if (plan->flat) {
          rows.rows = flat_rows(plan, band->rows), rows.pixels = shape->out_width;
          rows.column = x * shape->dilation_width - shape->pad_left;
          const size_t plane = ((size_t)pair * plan->row_phases + phase) * shape->kernel_width + x;
          spw_copy_pair_rows(rows, image + plane * flat_plane_bytes(plan, band->rows), pixel * rows.pixels);
        } else {
          rows.rows = band->stored_rows, rows.pixels = plan->pitch, rows.column = x - shape->pad_left;
          spw_copy_pair_rows(rows, image + (size_t)pair * band->stored_rows * row + x * plan->pitch * pixel, row);
        }
      }
    }
  }
}

// Copies some of the packs that the band reads of one convolution's input. The band is a copy of its own, so that no
// store of a pixel seems to change it.
static void copy_image(const struct plan *plan, const struct band band, struct packs packs, unsigned char *image) {
  if (plan->by_rows) {
    spw_copy_window_rows(&plan->window, band.input, band.first_row * plan->shape.stride_height - plan->shape.pad_top,
                         band.rows, band.stored_rows, image + (size_t)band.stored_rows * row_bytes(plan), image);
    return;
  }
  if (plan->paired) {
    copy_pairs(plan, &band, packs, image);
    return;
  }
  for (int x = 0; plan->flat && x < plan->shape.kernel_width; ++x) copy_column(plan, &band, packs, x, image);
  for (int phase = 0; !plan->flat && phase < plan->phases; ++phase) copy_phase(plan, &band, packs, phase, image);
}

static void list_taps(const struct plan *plan, const struct band *band, struct packs packs, int32_t *offsets) {
  const struct spw_conv2d *shape = &plan->shape;
  if (plan->by_rows) {
    const struct spw_window_rows *window = &plan->window;
    for (int y = 0; y < shape->kernel_height; ++y)
      for (int four = 0; four < window->whole; ++four)
        *offsets++ = (int32_t)(spw_row_plane(window, y, four) * plan->pixel_bytes);
    for (int value = 0; value < window->rest; ++value)
      for (int tap = 0; tap < window->rest_taps; ++tap)
        *offsets++ = (int32_t)(spw_rest_plane(window, 0, value, tap) * plan->pixel_bytes);
    return;
  }
  if (shape->kernel_height * shape->kernel_width == 1 && !plan->flat) {
    const int32_t pack_bytes = band->stored_rows * (int32_t)row_bytes(plan);
    for (int pack = packs.first; pack < packs.last; ++pack) offsets[pack] = pack * pack_bytes;
    return;
  }
  offsets += packs.first * shape->kernel_height * shape->kernel_width;
  if (plan->flat) {
    const int plane_bytes = (int)flat_plane_bytes(plan, band->rows);
    for (int pack = packs.first; pack < packs.last; ++pack)
      for (int y = 0; y < shape->kernel_height; ++y)
        for (int x = 0; x < shape->kernel_width; ++x) {
          const int row = y * shape->dilation_height, plane = pack * plan->row_phases + row % plan->row_phases;
          *offsets++ = (plane * shape->kernel_width + x) * plane_bytes +
                       row / plan->row_phases * shape->out_width * (int)plan->pixel_bytes;
        }
    return;
  }
  for (int pack = packs.first; pack < packs.last; ++pack) {
    for (int y = 0; y < shape->kernel_height; ++y) {
      const int row = pack * band->stored_rows + y * shape->dilation_height;
      for (int x = 0; x < shape->kernel_width; ++x) {
        const int column = x * shape->dilation_width;
        const int stride = plan->direct ? 1 : shape->stride_width;
        const int at = (row * plan->phases + column % stride) * plan->pitch + column / stride;
        *offsets++ = at * (int32_t)plan->pixel_bytes;
      }
    }
  }
}

static void list_quads(const struct plan *plan, const struct band *band, int first, int count, struct spw_quad *quads) {
  const struct spw_conv2d *shape = &plan->shape;
  const int last_column = max_int(shape->out_width - 4, 0);
  const int first_stored = plan->direct ? 0 : band->first_row;
  int row = first / plan->row_quads, column = first % plan->row_quads * 4;
  for (const struct spw_quad *end = quads + count; quads < end; ++quads) {
    const int from = min_int(column, last_column);
    quads->input = ((row - first_stored) * plan->row_step * plan->phases * plan->pitch + from) * (int)plan->pixel_bytes;
    quads->output = (row * shape->out_width + from) * SPW_CHANNEL_PACK;
    column += 4;
    if (column >= shape->out_width) column = 0, ++row;
  }
}

// Lists the pixels of `count` quads, counted along the output's rows. In place, a row whose width is no multiple of 4
// ends with a quad that begins early, since nothing may be read behind it.
static size_t list_spans(const struct plan *plan, const struct band *band, int first, int count,
                         struct spw_span *spans) {
  const struct spw_conv2d *shape = &plan->shape;
  const int first_stored = plan->direct ? 0 : band->first_row;
  const int whole_quads = plan->direct ? shape->out_width / 4 : plan->row_quads;
  size_t listed = 0;
  for (int quad = first, end = first + count; quad < end;) {
    const int row = quad / plan->row_quads, from = quad % plan->row_quads;
    const int to = min_int(plan->row_quads, from + end - quad);
    const int at = (row - first_stored) * plan->row_step * plan->phases * plan->pitch;
    const struct {
      int column, pixels;
    } parts[] = {{4 * from, min_int(4 * min_int(to, whole_quads), shape->out_width) - 4 * from},
                 {shape->out_width - 4, to > whole_quads ? 4 : 0}};
    for (int part = 0; part < 2; ++part)
      if (parts[part].pixels > 0)
        spans[listed++] =
            (struct spw_span){(at + parts[part].column) * (int)plan->pixel_bytes,
                              (row * shape->out_width + parts[part].column) * SPW_CHANNEL_PACK, parts[part].pixels};
    quad += to - from;
  }
  return listed;
}

// Finds a panel in the stream of blocks, with the taps that its blocks are for. Returns the number of its first block.
static size_t find_blocks(const struct job *job, int panel, const struct workspace *workspace,
                          struct spw_conv_run *run) {
  if (job->weights->pattern != SPW_PATTERN_4X4) return (size_t)panel * run->taps;
  const uint32_t *first = spw_weights_section(job->weights, job->weights->sparsity_offset);
  const uint8_t *steps = (const uint8_t *)(first + job->plan.convolutions * job->plan.panels + 1) + first[panel];
  const int32_t *offsets = workspace->offsets;
  run->taps = first[panel + 1] - first[panel];
  run->offsets = workspace->panel_offsets;
  for (size_t block = 0; block < run->taps; ++block) workspace->panel_offsets[block] = *(offsets += steps[block]);
  return first[panel];
}

// Where a panel of float or depthwise weights lies: of equal size but for a last one of a single pack.
static size_t panel_offset(const struct job *job, int convolution, int panel) {
  const struct plan *plan = &job->plan;
  const enum spw_weight_format format = (enum spw_weight_format)job->weights->format;
  const size_t whole = spw_panel_bytes(format, panel_weights(plan, plan->panel_packs));
  const size_t rest = spw_panel_bytes(format, panel_weights(plan, 1));
  const size_t of_convolution =
      (size_t)(plan->out_packs / plan->panel_packs) * whole + (size_t)(plan->out_packs % plan->panel_packs) * rest;
  return (size_t)convolution * of_convolution + (size_t)panel * whole;
}

// Expands a panel of dense weights and brings it into pairs. first_pack: of output channels, over all convolutions.
static const int8_t *pair_panel(const struct job *job, size_t first_pack, int packs, int8_t *expanded) {
  const struct plan *plan = &job->plan;
  const enum spw_weight_format format = (enum spw_weight_format)job->weights->format;
  const size_t blocks = stored_blocks(plan);
  int8_t *panel = expanded + expanded_bytes(plan);
  for (int pack = 0; pack < packs; ++pack) {
    const size_t first = (first_pack + pack) * blocks, early = first % spw_shared_blocks(format);
    const int8_t *values = spw_weights_section(job->weights, job->weights->values_offset);
    values += spw_panel_bytes(format, 16 * (first - early));
    if (job->unpack) {
      const int8_t *codebook = spw_weights_section(job->weights, job->weights->codebook_offset);
      job->unpack(early + blocks, (const uint8_t *)values, codebook, expanded);
      values = expanded + 16 * early;
    }
    spw_pair_blocks(values, plan->source_packs, plan->shape.kernel_height * plan->shape.kernel_width,
                    panel + SPW_PAIR_BLOCK * pack, SPW_PAIR_BLOCK * (size_t)packs);
  }
  return panel;
}

// panel: counted over all convolutions.
static void run_panel(const struct job *job, struct spw_conv_run *run, int image, int panel,
                      const struct workspace *workspace) {
  const struct plan *plan = &job->plan;
  const struct spw_conv2d *shape = &plan->shape;
  const int convolution = panel / plan->panels, first_pack = panel % plan->panels * plan->panel_packs;
  const enum spw_weight_format format = (enum spw_weight_format)job->weights->format;
  run->packs = min_int(plan->panel_packs, plan->out_packs - first_pack);
  run->offsets = workspace->offsets;
  run->taps = plan->taps;
  const size_t pack = (size_t)convolution * plan->out_packs + first_pack;
  size_t blocks = (panel_weights(plan, 1) + 15) / 16, early = 0, offset = 0;
  if (plan->paired) {
    run->weights = pair_panel(job, pack, run->packs, workspace->panel);
  } else if (plan->spans) {
    const size_t first = find_blocks(job, panel, workspace, run);
    early = first % spw_shared_blocks(format);
    blocks = early + run->taps;
    offset = spw_panel_bytes(format, 16 * (first - early));
  } else {
    offset = panel_offset(job, convolution, panel % plan->panels);
  }
  if (!plan->paired)
    run->weights = (const uint8_t *)spw_weights_section(job->weights, job->weights->values_offset) + offset;
  if (job->unpack && !plan->paired) {
    const int8_t *codebook = spw_weights_section(job->weights, job->weights->codebook_offset);
    job->unpack(blocks, run->weights, codebook, workspace->panel);
    run->weights = workspace->panel + 16 * early;
  }
  run->initial = (const int32_t *)spw_weights_section(job->weights, job->weights->initial_offset) + 4 * pack;
  run->scale = (const float *)spw_weights_section(job->weights, job->weights->scale_offset) + 4 * pack;
  run->bias = (const float *)spw_weights_section(job->weights, job->weights->bias_offset) + 4 * pack;
  const size_t element = ((size_t)image * ceil_div(shape->out_channels, 4) + pack) * run->plane;
  const size_t output_bytes = shape->float_output ? sizeof(float) : element_bytes(shape->type);
  run->output = job->output + element * output_bytes;
  run->residual = job->residual ? job->residual + element * element_bytes(shape->type) : NULL;
  job->kernel(run);
}

static struct workspace workspace_of(const struct job *job, int thread) {
  const struct plan *plan = &job->plan;
  const struct spw_context *context = job->context;
  const size_t own = job->copies ? lists_bytes(plan) : context->workspace_bytes;
  unsigned char *base = context->workspace + (size_t)thread * own;
  unsigned char *shared = context->workspace + (size_t)context->threads * own;
  struct workspace workspace = {.prepared = (struct prepared *)base};
  workspace.offsets = (int32_t *)(base += ALIGNMENT);
  workspace.panel_offsets = (int32_t *)(base += offsets_bytes(plan));
  workspace.spans = (struct spw_span *)(base += offsets_bytes(plan));
  workspace.quads = (struct spw_quad *)base;
  workspace.panel = (int8_t *)(base += pixels_bytes(plan));
  workspace.image = base + panel_bytes(plan);
  if (job->copies) workspace.offsets = (int32_t *)shared, workspace.image = shared + offsets_bytes(plan);
  return workspace;
}

static int share_of(int all, int index, int parts) { return (int)((int64_t)all * index / parts); }

static struct band whole_band(const struct job *job) {
  const int rows = job->plan.units;
  return (struct band){.rows = rows, .input = job->input, .stored_rows = input_rows(&job->plan, rows)};
}

// Copies some packs of the image that all threads share, and lists their taps.
static void copy_packs(void *argument, size_t index, int thread) {
  const struct job *job = argument;
  const struct workspace workspace = workspace_of(job, thread);
  const struct band band = whole_band(job);
  const struct packs packs = {share_of(job->plan.in_packs, (int)index, job->copies),
                              share_of(job->plan.in_packs, (int)index + 1, job->copies)};
  copy_image(&job->plan, band, packs, workspace.image);
  list_taps(&job->plan, &band, packs, workspace.offsets);
}

// Lists the pixels of `units` units.
static void list_pixels(const struct plan *plan, const struct band *band, int first_unit, int units,
                        const struct workspace *workspace, struct spw_conv_run *run) {
  const int first_quad = first_unit * unit_quads(plan), quads = units * unit_quads(plan);
  if (plan->flat) {
    const int row_values = plan->shape.out_width * SPW_CHANNEL_PACK;
    *workspace->spans =
        (struct spw_span){(first_unit - band->first_row) * plan->shape.out_width * (int)plan->pixel_bytes,
                          first_unit * row_values, units * plan->shape.out_width};
    run->spans = 1;
  } else if (plan->one_row) {
    const int pixels = min_int(4 * units, plan->shape.out_width - 4 * first_unit);
    *workspace->spans = (struct spw_span){(first_unit - band->first_row) * 4 * (int)plan->pixel_bytes,
                                          first_unit * 4 * SPW_CHANNEL_PACK, pixels};
    run->spans = 1;
  } else if (plan->spans) {
    run->spans = list_spans(plan, band, first_quad, quads, workspace->spans);
  } else {
    list_quads(plan, band, first_quad, quads, workspace->quads);
    run->quads = (size_t)quads;
  }
}

// Units that go through all panels before the next ones do. All of a band, but for a copy by rows: a band has many rows,
// since its first and last ones are copied for its neighbours too, and its few weights are quickly expanded again.
static int units_together(const struct plan *plan, int units) {
  while (plan->by_rows && units > 1 && input_rows(plan, units) * row_bytes(plan) > ROWS_PART_BYTES) --units;
  return units;
}

static void run_task(void *argument, size_t index, int thread) {
  const struct job *job = argument;
  const struct plan *plan = &job->plan;
  const struct spw_conv2d *shape = &plan->shape;
  const struct workspace workspace = workspace_of(job, thread);
  struct prepared *prepared = workspace.prepared;
  const int split = (int)(index % (size_t)job->splits), bands = (int)(index / (size_t)job->splits);
  const int image = bands / job->bands, first_unit = bands % job->bands * job->band_units;
  const int units = min_int(job->band_units, plan->units - first_unit);

  struct band band = {.first_row = first_unit, .rows = units};
  band.stored_rows = plan->direct ? shape->in_height : input_rows(plan, units);
  if (job->copies) band = whole_band(job);
  if (prepared->band != bands) {
    if (!plan->matrix_vector && !job->copies)
      list_taps(plan, &band, (struct packs){0, plan->in_packs}, workspace.offsets);
    *prepared = (struct prepared){bands, -1};
  }
  struct spw_conv_run run = {
      .operator = shape,
      .span = workspace.spans,
      .quad = workspace.quads,
      .pixels = plan->quad_width,
      .plane = (size_t)shape->out_height * shape->out_width * SPW_CHANNEL_PACK,
  };
  const size_t pack_bytes = (size_t)shape->in_height * shape->in_width * SPW_CHANNEL_PACK * element_bytes(shape->type);
  const int all_packs = ceil_div(shape->in_channels, SPW_CHANNEL_PACK);
  const int panels = plan->convolutions * plan->panels;
  const int first = share_of(panels, split, job->splits), last = share_of(panels, split + 1, job->splits);
  const int together = units_together(plan, units);
  for (int part = 0; part < units; part += together) {
    if (!plan->matrix_vector)
      list_pixels(plan, &band, first_unit + part, min_int(together, units - part), &workspace, &run);
    for (int panel = first; panel < last; ++panel) {
      const int convolution = panel / plan->panels;
      band.input = job->input + ((size_t)image * all_packs + (size_t)convolution * plan->source_packs) * pack_bytes;
      run.activation = plan->direct ? band.input : workspace.image;
      if (!plan->direct && !job->copies && convolution != prepared->convolution) {
        copy_image(plan, band, (struct packs){0, plan->in_packs}, workspace.image);
        prepared->convolution = convolution;
      }
      run_panel(job, &run, image, panel, &workspace);
    }
  }
}

static enum weights_kind kind_of(const struct spw_weights_header *weights) {
  if (weights->pattern != SPW_PATTERN_4X4) return weights->pattern == SPW_PATTERN_ROWS ? ROWS : DENSE;
  const uint32_t panels = weights->groups * ((weights->out_channels / weights->groups + 3) / 4);
  const uint32_t *first = spw_weights_section(weights, weights->sparsity_offset);
  return first[panels] <= FLAT_TAPS * panels ? VERY_SPARSE : SPARSE;
}

static enum spw_conv_role role_of(const struct plan *plan) {
  if (plan->paired) return plan->shape.float_output ? SPW_ROLE_CONVPAIRS_QA8_F32 : SPW_ROLE_CONVPAIRS_QA8;
  const enum spw_conv_role first = plan->depthwise       ? SPW_ROLE_DWCONV_QA8
                                   : plan->matrix_vector ? SPW_ROLE_GEMV_QA8
                                                         : SPW_ROLE_CONV_QA8;
  if (plan->shape.type == SPW_CONV2D_F32) return first + (SPW_ROLE_CONV_F32 - SPW_ROLE_CONV_QA8);
  if (plan->shape.type == SPW_CONV2D_F16) return first + (SPW_ROLE_CONV_F16 - SPW_ROLE_CONV_QA8);
  return first + (plan->shape.float_output ? SPW_ROLE_CONV_QA8_F32 - SPW_ROLE_CONV_QA8 : 0);
}

// Decides on the tasks.
static void divide_work(struct job *job) {
  const struct plan *plan = &job->plan;
  const struct spw_context *context = job->context;
  const int panels = plan->convolutions * plan->panels, batch = plan->shape.batch, threads = context->threads;
  size_t blocks = panel_weights(plan, plan->panel_packs) / 16 * panels;
  if (job->weights->pattern == SPW_PATTERN_4X4)
    blocks = ((const uint32_t *)spw_weights_section(job->weights, job->weights->sparsity_offset))[panels];
  const size_t work = blocks * (plan->matrix_vector ? 1 : (size_t)(plan->units * unit_quads(plan))) * batch;
  const int most = threads > 1 ? threads * TASKS_A_THREAD : 1;
  const int tasks = work / TASK_WORK < (size_t)most ? max_int(1, (int)(work / TASK_WORK)) : most;
  // Smaller bands than those of one thread only where panels are too few to give each thread a task.
  const int least = min_int(plan->units, ceil_div(BAND_QUADS, unit_quads(plan)));
  const int whole = plan->direct ? TILE_QUADS : plan->one_row ? PAIR_TILE_QUADS : 1;
  // A copy by rows is dear, and its weights are quickly expanded again.
  const int bands = plan->by_rows ? min_int(tasks, 2 * threads) : ceil_div(min_int(tasks, threads), panels * batch);
  job->band_units = min_int(plan->band_units, max_int(least, ceil_div(ceil_div(plan->units, bands), whole) * whole));
  job->bands = ceil_div(plan->units, job->band_units);
  job->splits = min_int(panels, ceil_div(tasks, job->bands * batch));
  if (threads == 1 || job->splits == 1 || plan->direct || plan->by_rows || batch > 1 || plan->convolutions > 1) return;
  const size_t image = image_bytes(plan, plan->units);
  const size_t shared = offsets_bytes(plan) + align_up(image);
  if (image >= SHARED_PIXELS * plan->pixel_bytes &&
      (size_t)threads * lists_bytes(plan) + shared <= (size_t)threads * context->workspace_bytes)
    job->copies = min_int(plan->in_packs, most);
}

void spw_conv2d_run(const struct spw_conv2d *operator, const void *weights, const void *input, const void *residual,
                    void *output, struct spw_context *context) {
  if (spw_dwrows_fits(operator)) {
    spw_dwrows_run(operator, weights, input, residual, output, context);
    return;
  }
  if (spw_winograd_suits(operator)) {
    spw_winograd_conv2d(operator, weights, input, residual, output, context);
    return;
  }
  const struct spw_weights_header *header = weights;
  if (spw_winograd_qa8_fits(operator) && header->pattern != SPW_PATTERN_ROWS &&
      !(context->instruction_sets & SPW_ISA_DOTPROD)) {
    spw_winograd_qa8_conv2d(operator, weights, input, residual, output, context);
    return;
  }
  enum weights_kind kind = kind_of(header);
  if (kind == DENSE && context->instruction_sets & SPW_ISA_I8MM) kind = PAIRED;
  struct job job = {.plan = make_plan(operator, kind),
                    .weights = header,
                    .input = input,
                    .residual = residual,
                    .output = output,
                    .context = context};
  const struct plan *plan = &job.plan;
  job.kernel = spw_find_conv_kernel(role_of(plan), context->instruction_sets);
  if (job.weights->codebook_entries)
    job.unpack = spw_find_unpack_kernel(job.weights->format, context->instruction_sets);

  divide_work(&job);
  for (int thread = 0; thread < context->threads; ++thread)
    *workspace_of(&job, thread).prepared = (struct prepared){-1, -1};
  if (job.copies) context->parallel_for(context, (size_t)job.copies, copy_packs, &job);
  context->parallel_for(context, (size_t)operator->batch * job.bands * job.splits, run_task, &job);
}
