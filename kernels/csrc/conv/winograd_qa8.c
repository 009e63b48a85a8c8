// The driver of int8 convolutions by Winograd's algorithm, for 3x3 windows at stride 1 on processors without dotprod.
//
// Such a processor multiplies 8 bytes with one instruction but widens the sums with another and repeats weights with a
// third; 4 products of 16 bits and their sums take one. With a quarter of the products that is less work wherever
// enough pixels share the transformed weights: deploy/winograd_cost.py knows where, and says so in the operator. Sums
// are those of the direct form to the last bit, so the choice is free at load time.
//
// A task takes a band of tiles of one image through all stages, for some of the pairs of panels. The thread's workspace
// holds the transformed input of the band; the bytes of a pair's weights, zero blocks included; for a block of input
// packs their transforms; and the sums of the pair. Several threads divide a band's pairs finely enough for cores of
// unequal speed to end together: a thread transforms the input once for consecutive tasks, and where one band is all
// there is, all threads transform it together before.
#include <string.h>

#include "../formats.h"
#include "winograd_qa8.h"

enum {
  INPUT_BYTES = 384 * 1024,  // of transformed input in a band, when that leaves
  BAND_TILES = 16,           // at least so many, without which transforming weights would dominate
  BLOCK_PACKS = 16,          // input packs whose weights are transformed at a time
  PAIR = 2,                  // panels whose products share the loads of transformed inputs
  TASKS_A_THREAD = 8,        // so that cores of unequal speed end together
  TASK_PRODUCTS = 256,       // pairs of packs by tiles: what a task should have at least, or taking it costs too much
  UNPACK_SLACK = 128,        // by which an unpacker may begin early and end late
  ALIGNMENT = 64,
};

struct plan {
  int tiles;  // of an image
  int in_packs, out_packs, pairs;
  int columns, band_tiles;
  int image_rows;    // at most, behind a band
  size_t row_bytes;  // of them
};

static int ceil_div(int value, int divisor) { return (value + divisor - 1) / divisor; }

static int min_int(int left, int right) { return left < right ? left : right; }

static int max_int(int left, int right) { return left > right ? left : right; }

static size_t align_up(size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

static int round_up_4(int value) { return (value + 3) / 4 * 4; }

static struct plan make_plan(const struct spw_conv2d *operator, int bands) {
  const int columns = ceil_div(operator->out_width, 4), rows = ceil_div(operator->out_height, 4);
  struct plan plan = {
      .columns = columns,
      .tiles = columns * rows,
      .row_bytes = (size_t)(4 * columns + 2) * SPW_CHANNEL_PACK,
      .in_packs = ceil_div(operator->in_channels, SPW_CHANNEL_PACK),
      .out_packs = ceil_div(operator->out_channels, SPW_CHANNEL_PACK),
  };
  plan.pairs = ceil_div(plan.out_packs, PAIR);
  const int fitting = INPUT_BYTES / (SPW_WINOGRAD_PLACES * plan.in_packs * 8) / 4 * 4;
  const int wanted =
      max_int(ceil_div(plan.tiles, max_int(fitting, BAND_TILES)), min_int(bands, ceil_div(plan.tiles, BAND_TILES)));
  plan.band_tiles = round_up_4(ceil_div(plan.tiles, wanted));
  plan.image_rows = 4 * min_int(rows, plan.band_tiles / columns + 2) + 2;
  return plan;
}

int spw_winograd_qa8_fits(const struct spw_conv2d *operator) {
  return operator->winograd && operator->type == SPW_CONV2D_QA8 && operator->kernel_height == 3 &&
         operator->kernel_width == 3 && operator->stride_height == 1 && operator->stride_width == 1 &&
         operator->dilation_height == 1 && operator->dilation_width == 1 && operator->groups == 1 &&
         operator->in_channels <= SPW_WINOGRAD_MOST_CHANNELS;
}

// A thread's workspace, one array after the other.
struct workspace {
  int32_t *prepared;  // the band that the input is of, -1 for none
  int16_t *input, *weights;
  int32_t *sums;
  int8_t *blocks, *panels;  // blocks: those that are there
  unsigned char *image;     // rows of one input pack, border included
};

static size_t input_bytes(const struct plan *plan) {
  return align_up(SPW_WINOGRAD_PLACES * (size_t)plan->in_packs * (size_t)plan->band_tiles * 8);
}

static size_t weights_bytes(const struct plan *plan) {
  return SPW_WINOGRAD_PLACES * (size_t)min_int(plan->in_packs, BLOCK_PACKS) * PAIR * 16 * sizeof(int16_t);
}

static size_t sums_bytes(const struct plan *plan) {
  return SPW_WINOGRAD_PLACES * (size_t)plan->band_tiles * PAIR * 4 * sizeof(int32_t);
}

static size_t panel_bytes(const struct plan *plan) { return align_up(16 * 9 * (size_t)plan->in_packs + UNPACK_SLACK); }

// Without the input.
static size_t other_bytes(const struct plan *plan) {
  return ALIGNMENT + weights_bytes(plan) + sums_bytes(plan) + (1 + PAIR) * panel_bytes(plan) +
         align_up((size_t)plan->image_rows * plan->row_bytes);
}

size_t spw_winograd_qa8_workspace(const struct spw_conv2d *operator) {
  const struct plan plan = make_plan(operator, 1);
  return other_bytes(&plan) + input_bytes(&plan);
}

struct job {
  struct plan plan;
  const struct spw_conv2d *operator;
  const struct spw_weights_header *weights;
  const unsigned char *input, *residual;
  unsigned char *output;
  const struct spw_context *context;
  spw_winograd_kernel kernel;
  spw_unpack_kernel unpack;  // NULL where weights are read in place
  int bands, splits;
  int transforms;  // tasks that transform the input of the one band; 0 where each thread does it for itself
};

static struct workspace workspace_of(const struct job *job, int thread) {
  const struct plan *plan = &job->plan;
  const struct spw_context *context = job->context;
  const size_t own = job->transforms ? other_bytes(plan) : context->workspace_bytes;
  unsigned char *base = context->workspace + (size_t)thread * own;
  struct workspace workspace = {.prepared = (int32_t *)base};
  workspace.weights = (int16_t *)(base += ALIGNMENT);
  workspace.sums = (int32_t *)(base += weights_bytes(plan));
  workspace.blocks = (int8_t *)(base += sums_bytes(plan));
  workspace.panels = (int8_t *)(base += panel_bytes(plan));
  workspace.image = base += PAIR * panel_bytes(plan);
  base += align_up((size_t)plan->image_rows * plan->row_bytes);
  workspace.input = (int16_t *)(job->transforms ? context->workspace + (size_t)context->threads * own : base);
  return workspace;
}

static int share_of(int all, int index, int parts) { return (int)((int64_t)all * index / parts); }

// The weights of a panel as [taps][4 out][4 in], zero blocks included; `panel_of_pair` chooses the place for them.
static const int8_t *expand_panel(const struct job *job, const struct workspace *workspace, int panel,
                                  int panel_of_pair) {
  const enum spw_weight_format format = (enum spw_weight_format)job->weights->format;
  const size_t taps = 9 * (size_t)job->plan.in_packs;
  const int sparse = job->weights->pattern != SPW_PATTERN_DENSE;
  const uint32_t *first = spw_weights_section(job->weights, job->weights->sparsity_offset);
  const size_t block = sparse ? first[panel] : (size_t)panel * taps, count = sparse ? first[panel + 1] - block : taps;
  const size_t early = block % spw_shared_blocks(format);
  const int8_t *values = spw_weights_section(job->weights, job->weights->values_offset);
  values += spw_panel_bytes(format, 16 * (block - early));
  int8_t *to = workspace->panels + (size_t)panel_of_pair * panel_bytes(&job->plan);
  if (job->unpack) {
    const int8_t *codebook = spw_weights_section(job->weights, job->weights->codebook_offset);
    int8_t *unpacked = sparse ? workspace->blocks : to;
    job->unpack(early + count, (const uint8_t *)values, codebook, unpacked);
    values = unpacked + 16 * early;
  }
  if (!sparse) return values;
  const uint8_t *steps = (const uint8_t *)(first + job->plan.out_packs + 1) + block;
  memset(to, 0, 16 * taps);
  for (size_t index = 0, tap = 0; index < count; ++index)
    memcpy(to + 16 * (tap += steps[index]), values + 16 * index, 16);
  return to;
}

// Transforms some packs of the input of a band of tiles. Each is copied into the same border.
static void transform_input(const struct job *job, const struct workspace *workspace, int image, int first_pack,
                            int last_pack, const struct spw_winograd_run *band) {
  const struct plan *plan = &job->plan;
  struct spw_winograd_run own = *band, *run = &own;
  const int tiles = min_int(run->tiles, plan->tiles - run->first_tile);
  const struct spw_conv2d *operator = job->operator;
  const int first_row = run->first_tile / plan->columns, last_row = (run->first_tile + tiles - 1) / plan->columns;
  const int rows = 4 * (last_row - first_row + 1) + 2, shift = 4 * first_row - operator->pad_top;
  const int first = max_int(0, shift), last = min_int(operator->in_height, shift + rows);
  const int pixels = min_int(operator->in_width, 4 * plan->columns + 2 - operator->pad_left);
  const size_t row_bytes = (size_t)operator->in_width * SPW_CHANNEL_PACK;
  memset(workspace->image, operator->input_zero_point, (size_t)rows * plan->row_bytes);
  run->stage = SPW_WINOGRAD_INPUT;
  run->from = workspace->image;
  const size_t plane = (size_t)operator->in_height * row_bytes;
  const unsigned char *from = job->input + ((size_t)image * (size_t)plan->in_packs + (size_t)first_pack) * plane;
  for (int pack = first_pack; pack < last_pack; ++pack, from += plane) {
    unsigned char *to = workspace->image + (size_t)operator->pad_left * SPW_CHANNEL_PACK;
    for (int row = first; row < last && pixels > 0; ++row)
      memcpy(to + (size_t)(row - shift) * plan->row_bytes, from + (size_t)row * row_bytes,
             (size_t)pixels * SPW_CHANNEL_PACK);
    run->to = workspace->input + (size_t)pack * (size_t)run->tiles * 4;
    job->kernel(run);
  }
}

static void run_pair(const struct job *job, const struct workspace *workspace, struct spw_winograd_run *run, int pair) {
  const struct plan *plan = &job->plan;
  const int8_t *panels[PAIR];
  for (int panel = 0; panel < run->packs; ++panel)
    panels[panel] = expand_panel(job, workspace, PAIR * pair + panel, panel);
  for (int first = 0; first < plan->in_packs; first += BLOCK_PACKS) {
    run->in_packs = min_int(BLOCK_PACKS, plan->in_packs - first);
    run->stage = SPW_WINOGRAD_WEIGHTS;
    for (int panel = 0; panel < run->packs; ++panel) {
      run->from = panels[panel] + 16 * 9 * first;
      run->to = workspace->weights + 16 * panel;
      job->kernel(run);
    }
    run->stage = SPW_WINOGRAD_MULTIPLY;
    run->from = workspace->input + (size_t)first * (size_t)run->tiles * 4;
    run->to = workspace->sums;
    run->accumulate = first > 0;
    job->kernel(run);
  }
}

static struct spw_winograd_run band_run(const struct job *job, int band, const struct workspace *workspace) {
  const struct plan *plan = &job->plan;
  const int first_tile = band * plan->band_tiles;
  const int whole = round_up_4(min_int(plan->band_tiles, plan->tiles - first_tile));
  return (struct spw_winograd_run){
      .operator = job->operator,
      .first_tile = first_tile,
      .tiles = whole,
      .weights = workspace->weights,
      .row_bytes = plan->row_bytes,
      .place_bytes = (size_t)plan->in_packs * (size_t)whole * 8,
  };
}

static void transform_packs(void *argument, size_t index, int thread) {
  const struct job *job = argument;
  const struct workspace workspace = workspace_of(job, thread);
  const struct spw_winograd_run run = band_run(job, 0, &workspace);
  const int first = share_of(job->plan.in_packs, (int)index, job->transforms);
  transform_input(job, &workspace, 0, first, share_of(job->plan.in_packs, (int)index + 1, job->transforms), &run);
}

static void run_task(void *argument, size_t index, int thread) {
  const struct job *job = argument;
  const struct plan *plan = &job->plan;
  const struct spw_conv2d *operator = job->operator;
  const struct workspace workspace = workspace_of(job, thread);
  const int split = (int)(index % (size_t)job->splits), bands = (int)(index / (size_t)job->splits);
  const int image = bands / job->bands;
  struct spw_winograd_run run = band_run(job, bands % job->bands, &workspace);
  const int whole = run.tiles;
  if (!job->transforms && *workspace.prepared != bands) {
    transform_input(job, &workspace, image, 0, plan->in_packs, &run);
    *workspace.prepared = bands;
  }
  const size_t plane = (size_t)operator->out_height * (size_t)operator->out_width * SPW_CHANNEL_PACK;
  const int last = share_of(plan->pairs, split + 1, job->splits);
  for (int pair = share_of(plan->pairs, split, job->splits); pair < last; ++pair) {
    run.packs = min_int(PAIR, plan->out_packs - PAIR * pair);
    run.tiles = whole;
    run_pair(job, &workspace, &run, pair);
    const size_t element = ((size_t)image * (size_t)plan->out_packs + PAIR * (size_t)pair) * plane;
    run.stage = SPW_WINOGRAD_OUTPUT;
    run.from = workspace.sums;
    run.to = job->output + element * (operator->float_output ? sizeof(float) : sizeof(int8_t));
    run.residual = job->residual ? job->residual + element : NULL;
    run.initial = (const int32_t *)spw_weights_section(job->weights, job->weights->initial_offset) + 4 * PAIR * pair;
    run.scale = (const float *)spw_weights_section(job->weights, job->weights->scale_offset) + 4 * PAIR * pair;
    run.bias = (const float *)spw_weights_section(job->weights, job->weights->bias_offset) + 4 * PAIR * pair;
    job->kernel(&run);
  }
}

void spw_winograd_qa8_conv2d(const struct spw_conv2d *operator, const void *weights, const void *input,
                             const void *residual, void *output, struct spw_context *context) {
  const int wanted = ceil_div(context->threads, operator->batch);
  const enum spw_winograd_role role = operator->float_output ? SPW_ROLE_WINOGRAD_QA8_F32 : SPW_ROLE_WINOGRAD_QA8;
  struct job job = {
      .plan = make_plan(operator, wanted),
      .operator = operator,
      .weights = weights,
      .input = input,
      .residual = residual,
      .output = output,
      .context = context,
      .kernel = spw_find_winograd_kernel(role, context->instruction_sets),
  };
  if (job.weights->codebook_entries)
    job.unpack = spw_find_unpack_kernel(job.weights->format, context->instruction_sets);
  job.bands = ceil_div(job.plan.tiles, job.plan.band_tiles);
  const int threads = context->threads, batch = operator->batch;
  const int64_t work = (int64_t)job.plan.in_packs * job.plan.out_packs * job.plan.tiles * batch / TASK_PRODUCTS;
  const int most = threads > 1 ? threads * TASKS_A_THREAD : 1;
  const int tasks = work < most ? max_int(1, (int)work) : most;
  job.splits = min_int(job.plan.pairs, ceil_div(tasks, job.bands * batch));
  if (threads > 1 && job.splits > 1 && job.bands * batch == 1) job.transforms = min_int(job.plan.in_packs, tasks);
  for (int thread = 0; thread < threads; ++thread) *workspace_of(&job, thread).prepared = -1;
  if (job.transforms) context->parallel_for(context, (size_t)job.transforms, transform_packs, &job);
  context->parallel_for(context, (size_t)operator->batch * (size_t)job.bands * (size_t)job.splits, run_task, &job);
}
