// The driver of depthwise convolutions of int8 with a window of 3x3 or 5x5 at stride 1 or 2.
//
// A task is a band of output rows of one image, for some of the packs of 4 channels, which have nothing to do with each
// other. The task's thread keeps one bordered band of input in its workspace, [row][pitch][4]: the border is filled in
// once, then each pack's rows are copied into it and go through the kernel, which needs no borders.
#include <string.h>

#include "../formats.h"
#include "kernel.h"

enum {
  BAND_BYTES = 16 * 1024,  // of bordered input, half of the smallest first-level cache
  PANEL_BYTES = 128,       // expanded weights of a pack: 5 * 5 * 4, and what an unpacker rounds up
  TASK_PIXELS = 1024,      // of output: what a task should have at least, or handing it out costs too much
  TASKS_A_THREAD = 8,      // so that cores of unequal speed end together
};

static int min_int(int left, int right) { return left < right ? left : right; }

static int max_int(int left, int right) { return left > right ? left : right; }

static int ceil_div(int value, int divisor) { return (value + divisor - 1) / divisor; }

int spw_dwrows_fits(const struct spw_conv2d *operator) {
  return operator->type == SPW_CONV2D_QA8 && operator->groups > 1 && operator->groups == operator->in_channels &&
         operator->kernel_height == operator->kernel_width &&
         (operator->kernel_width == 3 || operator->kernel_width == 5) &&
         operator->stride_height == operator->stride_width && operator->stride_width <= 2 &&
         operator->dilation_height == 1 && operator->dilation_width == 1;
}

static int band_input_rows(const struct spw_conv2d *operator, int rows) {
  return (rows - 1) * operator->stride_height + operator->kernel_height;
}

// Pixels of an input row in the workspace: kernels read whole vectors, up to three pixels more than the window needs.
static int input_pitch(const struct spw_conv2d *operator) {
  return (max_int(operator->out_width, 4) - 1) * operator->stride_width + operator->kernel_width + 3;
}

static int band_rows(const struct spw_conv2d *operator) {
  const int pitch_bytes = input_pitch(operator) * SPW_CHANNEL_PACK;
  const int fitting = (BAND_BYTES / pitch_bytes - operator->kernel_height) / operator->stride_height + 1;
  // An even number, since kernels compute two rows at a time, and bands of equal size.
  const int most = max_int(2, fitting - fitting % 2);
  const int equal = ceil_div(operator->out_height, ceil_div(operator->out_height, most));
  return min_int(operator->out_height, equal + equal % 2);
}

static size_t band_bytes(const struct spw_conv2d *operator) {
  return (size_t)band_input_rows(operator, band_rows(operator)) * input_pitch(operator) * SPW_CHANNEL_PACK;
}

size_t spw_dwrows_workspace(const struct spw_conv2d *operator) {
  return (PANEL_BYTES + band_bytes(operator) + 63) / 64 * 64;
}

struct job {
  const struct spw_conv2d *operator;
  const struct spw_weights_header *weights;
  const unsigned char *input, *residual;
  unsigned char *output;
  const struct spw_context *context;
  spw_conv_kernel kernel;
  spw_unpack_kernel unpack;        // NULL where weights are read in place
  int packs, rows, bands, splits;  // output rows of a band; splits: parts of the packs
};

// Where a band's input lies in the image, and in the workspace.
struct band {
  int first_row, rows;     // of the output
  int skipped;             // rows at the top of the workspace's band that are border
  int inside;              // rows that are not
  size_t source, columns;  // bytes: of the first row inside its plane, of each row
  size_t left, pitch;      // bytes: border on the left, from row to row
};

static struct band find_band(const struct spw_conv2d *operator, int first_row, int rows) {
  const int top = first_row * operator->stride_height - operator->pad_top;
  const int begin = max_int(top, 0), end = min_int(top + band_input_rows(operator, rows), operator->in_height);
  const int pitch = input_pitch(operator);
  const int columns = max_int(0, min_int(operator->in_width, pitch - operator->pad_left));
  return (struct band){
      .first_row = first_row,
      .rows = rows,
      .skipped = begin - top,
      .inside = max_int(0, end - begin),
      .source = (size_t)begin * operator->in_width * SPW_CHANNEL_PACK,
      .columns = (size_t)columns * SPW_CHANNEL_PACK,
      .left = (size_t)operator->pad_left * SPW_CHANNEL_PACK,
      .pitch = (size_t)pitch * SPW_CHANNEL_PACK,
  };
}

// A row is short: a call of memcpy for each would cost more than its moves.
static inline void copy_row(unsigned char *restrict to, const unsigned char *restrict from, size_t bytes) {
  if (bytes < 16) {
    for (size_t at = 0; at < bytes; at += 4) memcpy(to + at, from + at, 4);
    return;
  }
  size_t at = 0;
  for (; at + 64 <= bytes; at += 64) memcpy(to + at, from + at, 64);
  for (; at + 16 <= bytes; at += 16) memcpy(to + at, from + at, 16);
  memcpy(to + bytes - 16, from + bytes - 16, 16);
}

static void run_pack(const struct job *job, const struct band *band, int image, int pack, unsigned char *workspace) {
  const struct spw_conv2d *operator = job->operator;
  unsigned char *bordered = workspace + PANEL_BYTES;
  const size_t plane = (size_t)image * job->packs + pack;
  const unsigned char *from =
      job->input + plane * operator->in_height * operator->in_width * SPW_CHANNEL_PACK + band->source;
  unsigned char *to = bordered + (size_t)band->skipped * band->pitch + band->left;
  for (int row = 0; row < band->inside; ++row, to += band->pitch, from += (size_t)operator->in_width * SPW_CHANNEL_PACK)
    copy_row(to, from, band->columns);

  const enum spw_weight_format format = (enum spw_weight_format)job->weights->format;
  const size_t taps = (size_t)operator->kernel_height * operator->kernel_width;
  const unsigned char *weights = spw_weights_section(job->weights, job->weights->values_offset);
  weights += (size_t)pack * spw_panel_bytes(format, taps * SPW_CHANNEL_PACK);
  if (job->unpack) {
    const int8_t *codebook = spw_weights_section(job->weights, job->weights->codebook_offset);
    job->unpack((taps * SPW_CHANNEL_PACK + 15) / 16, weights, codebook, (int8_t *)workspace);
    weights = workspace;
  }
  const size_t channel = (size_t)pack * SPW_CHANNEL_PACK;
  const size_t element = (plane * operator->out_height + band->first_row) * operator->out_width * SPW_CHANNEL_PACK;
  const struct spw_conv_run run = {
      .operator = operator,
      .taps = taps,
      .activation = bordered,
      .weights = weights,
      .pixels = min_int(operator->out_width, 4),
      .packs = 1,
      .plane = (size_t)operator->out_height * operator->out_width * SPW_CHANNEL_PACK,
      .rows = band->rows,
      .columns = operator->out_width,
      .row_bytes = band->pitch,
      .initial = (const int32_t *)spw_weights_section(job->weights, job->weights->initial_offset) + channel,
      .scale = (const float *)spw_weights_section(job->weights, job->weights->scale_offset) + channel,
      .bias = (const float *)spw_weights_section(job->weights, job->weights->bias_offset) + channel,
      .residual = job->residual ? job->residual + element : NULL,
      .output = job->output + element * (operator->float_output ? sizeof(float) : 1),
  };
  job->kernel(&run);
}

static void run_task(void *argument, size_t index, int thread) {
  const struct job *job = argument;
  unsigned char *workspace = job->context->workspace + (size_t)thread * job->context->workspace_bytes;
  const int split = (int)(index % (size_t)job->splits), bands = (int)(index / (size_t)job->splits);
  const int image = bands / job->bands, first_row = bands % job->bands * job->rows;
  const struct band band =
      find_band(job->operator, first_row, min_int(job->rows, job->operator->out_height - first_row));
  memset(workspace + PANEL_BYTES, job->operator->input_zero_point,
         (size_t)band_input_rows(job->operator, band.rows) * band.pitch);
  const int first = (int)((int64_t)job->packs * split / job->splits);
  const int last = (int)((int64_t)job->packs * (split + 1) / job->splits);
  for (int pack = first; pack < last; ++pack) run_pack(job, &band, image, pack, workspace);
}

void spw_dwrows_run(const struct spw_conv2d *operator, const void *weights, const void *input, const void *residual,
                    void *output, struct spw_context *context) {
  struct job job = {.operator = operator,
                    .weights = weights,
                    .input = input,
                    .residual = residual,
                    .output = output,
                    .context = context,
                    .packs = ceil_div(operator->in_channels, SPW_CHANNEL_PACK),
                    .rows = band_rows(operator)};
  job.kernel = spw_find_conv_kernel(operator->float_output ? SPW_ROLE_DWROWS_QA8_F32 : SPW_ROLE_DWROWS_QA8,
                                    context->instruction_sets);
  if (job.weights->codebook_entries)
    job.unpack = spw_find_unpack_kernel(job.weights->format, context->instruction_sets);
  job.bands = ceil_div(operator->out_height, job.rows);
  const int wanted = context->threads > 1 ? context->threads * TASKS_A_THREAD : 1;
  const int pack_pixels = job.rows * operator->out_width;
  const int most = max_int(1, job.packs / ceil_div(TASK_PIXELS, pack_pixels));
  job.splits = min_int(most, ceil_div(wanted, job.bands * operator->batch));
  context->parallel_for(context, (size_t)operator->batch * job.bands * job.splits, run_task, &job);
}
