// The driver of convolutions by Winograd's algorithm, for 3x3 windows at stride 1.
//
// A task takes a band of tiles of one image through all stages, for some of the panels of output channels. Its working
// set is what the thread's workspace holds: the transformed input of the band; for a block of input channels the
// transformed weights of one panel, expanded for each band as codebooks are, so that packed weights stay small; and the
// 36 products of one panel, which the dense convolution kernels make: to them a tile is a pixel and an input pack a tap.
// Several threads divide a band's panels finely enough for cores of unequal speed to end together; a thread transforms
// the input once for consecutive tasks.
#include "winograd.h"

#include <math.h>

#include "../formats.h"

enum {
  INPUT_BYTES = 384 * 1024,  // of transformed input in a band, when that leaves
  BAND_TILES = 16,           // at least so many, without which transforming weights would dominate
  BLOCK_PACKS = 16,          // input packs whose weights are transformed at a time
  LEAST_CHANNELS = 16,
  TASKS_A_THREAD = 8,   // so that cores of unequal speed end together
  TASK_PRODUCTS = 128,  // pairs of packs by tiles: what a task should have at least, or taking it costs too much
  ALIGNMENT = 64,
};

struct plan {
  size_t pixel_bytes;  // of 4 channels
  int columns, tiles;  // of an image
  int in_packs, out_packs;
  int panel_packs, panels;  // output packs whose products are made together
  int band_tiles;
  int columns_at_once;  // of places whose weights are transformed at a time
};

static int ceil_div(int value, int divisor) { return (value + divisor - 1) / divisor; }

static int min_int(int left, int right) { return left < right ? left : right; }

static int max_int(int left, int right) { return left > right ? left : right; }

static size_t align_up(size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

static int round_up_4(int value) { return (value + 3) / 4 * 4; }

static struct plan make_plan(const struct spw_conv2d *operator, int bands) {
  const int half = operator->type == SPW_CONV2D_F16;
  struct plan plan = {
      .pixel_bytes = SPW_CHANNEL_PACK * (half ? sizeof(uint16_t) : sizeof(float)),
      .columns = ceil_div(operator->out_width, SPW_WINOGRAD_OUTPUTS),
      .columns_at_once = half ? 3 : 1,  // as many as a first-level cache has room for
      .in_packs = ceil_div(operator->in_channels, SPW_CHANNEL_PACK),
      .out_packs = ceil_div(operator->out_channels, SPW_CHANNEL_PACK),
  };
  plan.tiles = plan.columns * ceil_div(operator->out_height, SPW_WINOGRAD_OUTPUTS);
  const int fitting = INPUT_BYTES / (int)(SPW_WINOGRAD_PLACES * (size_t)plan.in_packs * plan.pixel_bytes) / 4 * 4;
  const int most = max_int(fitting, BAND_TILES);
  const int wanted = max_int(ceil_div(plan.tiles, most), min_int(bands, ceil_div(plan.tiles, BAND_TILES)));
  plan.band_tiles = round_up_4(ceil_div(plan.tiles, wanted));
  // 16 channels of halves at a time read the transformed input half as often as 8, and give the kernel enough sums to
  // hide how long each product takes where there are 4 tiles.
  plan.panel_packs = half && plan.out_packs % 4 == 0 ? 4 : 2;
  plan.panels = ceil_div(plan.out_packs, plan.panel_packs);
  return plan;
}

int spw_winograd_suits(const struct spw_conv2d *operator) {
  if (operator->type == SPW_CONV2D_QA8 || operator->float_output || operator->kernel_height != 3 ||
      operator->kernel_width != 3 || operator->stride_height != 1 || operator->stride_width != 1 ||
      operator->dilation_height != 1 || operator->dilation_width != 1 || operator->groups != 1 ||
      operator->in_channels < LEAST_CHANNELS || operator->out_channels < LEAST_CHANNELS)
    return 0;
  // Vector instructions for one input channel and one pack of output channels: products, transformed weights, and the
  // shares of the transformed inputs and outputs; against the products of the direct form.
  const struct plan plan = make_plan(operator, 1);
  // 8 channels of half weights take as many as 4 of float, and few tiles keep no vector unit busy.
  const int products = SPW_WINOGRAD_PLACES * round_up_4(plan.tiles);
  const int weights = (operator->type == SPW_CONV2D_F16 ? 250 : 150) * ceil_div(plan.tiles, plan.band_tiles);
  const int transforms = 75 * plan.tiles / plan.out_packs + 75 * plan.tiles / plan.in_packs;
  const int direct = 9 * operator->out_height * round_up_4(operator->out_width);
  return products + weights + transforms < direct;
}

// A thread's workspace, one array after the other.
struct workspace {
  int32_t *prepared;  // the band that the input is of, -1 for none
  unsigned char *input, *weights, *products;
  int32_t *offsets;
  struct spw_quad *quads;
};

static size_t input_bytes(const struct plan *plan) {
  return align_up(SPW_WINOGRAD_PLACES * (size_t)plan->in_packs * (size_t)plan->band_tiles * plan->pixel_bytes);
}

static size_t weights_bytes(const struct plan *plan) {
  return (size_t)(6 * plan->columns_at_once) * (size_t)min_int(plan->in_packs, BLOCK_PACKS) * 4 *
         (size_t)plan->panel_packs * plan->pixel_bytes;
}

static size_t products_bytes(const struct plan *plan) {
  return align_up(SPW_WINOGRAD_PLACES * (size_t)plan->band_tiles * (size_t)plan->panel_packs * plan->pixel_bytes);
}

static size_t offsets_bytes(void) { return align_up(BLOCK_PACKS * sizeof(int32_t)); }

static size_t quads_bytes(const struct plan *plan) {
  return align_up((size_t)plan->band_tiles / 4 * sizeof(struct spw_quad));
}

size_t spw_winograd_workspace(const struct spw_conv2d *operator) {
  const struct plan plan = make_plan(operator, 1);
  return ALIGNMENT + input_bytes(&plan) + weights_bytes(&plan) + products_bytes(&plan) + offsets_bytes() +
         quads_bytes(&plan);
}

struct job {
  struct plan plan;
  struct spw_conv2d operator, product;  // product: of the dense kernel, without bounds
  const struct spw_weights_header *weights;
  const unsigned char *input, *residual;
  unsigned char *output;
  const struct spw_context *context;
  spw_winograd_kernel transform;
  spw_conv_kernel multiply;
  int bands, splits;
};

static struct workspace workspace_of(const struct job *job, int thread) {
  unsigned char *base = job->context->workspace + (size_t)thread * job->context->workspace_bytes;
  struct workspace workspace = {.prepared = (int32_t *)base};
  workspace.input = base += ALIGNMENT;
  workspace.weights = base += input_bytes(&job->plan);
  workspace.products = base += weights_bytes(&job->plan);
  workspace.offsets = (int32_t *)(base += products_bytes(&job->plan));
  workspace.quads = (struct spw_quad *)(base + offsets_bytes());
  return workspace;
}

static size_t panel_bytes(const struct plan *plan) { return (size_t)plan->in_packs * 9 * 8 * plan->pixel_bytes; }

// The 36 products of a panel, or of two as they are stored, summed over the input channels.
static void multiply_panel(const struct job *job, const struct workspace *workspace, int tiles, int packs,
                           const unsigned char *panel) {
  static const float zero[16];
  const struct plan *plan = &job->plan;
  const size_t tap_bytes = (size_t)packs * 4 * plan->pixel_bytes;
  const int stored_packs = min_int(packs, 2);
  const size_t pack_bytes = (size_t)tiles * plan->pixel_bytes;
  const size_t product_bytes = (size_t)packs * pack_bytes;
  for (int first = 0; first < plan->in_packs; first += BLOCK_PACKS) {
    const int block = min_int(BLOCK_PACKS, plan->in_packs - first);
    for (int column = 0; column < 6; column += plan->columns_at_once) {
      for (int pack = 0; pack < packs; pack += 2) {
        const struct spw_winograd_run weights = {
            .stage = SPW_WINOGRAD_WEIGHTS,
            .operator = &job->operator,
            .from = panel + (size_t)pack / 2 * panel_bytes(plan) +
                    (size_t)(first * 9 * stored_packs) * 4 * plan->pixel_bytes,
            .to = workspace->weights + (size_t)pack * plan->pixel_bytes,
            .in_packs = block,
            .packs = stored_packs,
            .all_packs = packs,
            .column = column,
            .columns = plan->columns_at_once,
        };
        job->transform(&weights);
      }
      for (int index = 0; index < 6 * plan->columns_at_once; ++index) {
        const size_t place = (size_t)(6 * column + index);
        unsigned char *product = workspace->products + place * product_bytes;
        const struct spw_conv_run run = {
            .operator = &job->product,
            .taps = (size_t)block,
            .offsets = workspace->offsets,
            .activation = workspace->input + (place * (size_t)plan->in_packs + (size_t)first) * pack_bytes,
            .weights = workspace->weights + (size_t)index * (size_t)block * tap_bytes,
            .quads = (size_t)tiles / 4,
            .quad = workspace->quads,
            .pixels = 4,
            .packs = packs,
            .plane = (size_t)tiles * SPW_CHANNEL_PACK,
            .bias = zero,
            .residual = first ? product : NULL,
            .output = product,
        };
        job->multiply(&run);
      }
    }
  }
}

static void run_task(void *argument, size_t index, int thread) {
  const struct job *job = argument;
  const struct plan *plan = &job->plan;
  const struct spw_conv2d *operator = &job->operator;
  const struct workspace workspace = workspace_of(job, thread);
  const int split = (int)(index % (size_t)job->splits), bands = (int)(index / (size_t)job->splits);
  const int image = bands / job->bands, first_tile = bands % job->bands * plan->band_tiles;
  const int tiles = round_up_4(min_int(plan->band_tiles, plan->tiles - first_tile));
  const int element = (int)(plan->pixel_bytes / SPW_CHANNEL_PACK);
  const int prepared = *workspace.prepared == bands;
  for (int pack = 0; !prepared && pack < min_int(plan->in_packs, BLOCK_PACKS); ++pack)
    workspace.offsets[pack] = pack * tiles * (int)plan->pixel_bytes;
  for (int quad = 0; !prepared && quad < tiles / 4; ++quad)
    workspace.quads[quad] = (struct spw_quad){.input = quad * 16 * element, .output = quad * 16};

  const size_t in_plane = (size_t)operator->in_height * (size_t)operator->in_width * plan->pixel_bytes;
  const size_t out_plane = (size_t)operator->out_height * (size_t)operator->out_width * plan->pixel_bytes;
  struct spw_winograd_run run = {
      .stage = SPW_WINOGRAD_INPUT,
      .operator = operator,
      .from = job->input + (size_t)image * (size_t)plan->in_packs * in_plane,
      .to = workspace.input,
      .in_packs = plan->in_packs,
      .first_tile = first_tile,
      .tiles = tiles,
  };
  if (!prepared) job->transform(&run);
  *workspace.prepared = bands;
  run.stage = SPW_WINOGRAD_OUTPUT;
  run.from = workspace.products;
  const unsigned char *values = spw_weights_section(job->weights, job->weights->values_offset);
  const float *bias = spw_weights_section(job->weights, job->weights->bias_offset);
  const int first = (int)((int64_t)plan->panels * split / job->splits);
  const int last = (int)((int64_t)plan->panels * (split + 1) / job->splits);
  for (int panel = first; panel < last; ++panel) {
    const int pack = plan->panel_packs * panel;
    run.packs = min_int(plan->panel_packs, plan->out_packs - pack);
    multiply_panel(job, &workspace, tiles, run.packs, values + (size_t)(pack / 2) * panel_bytes(plan));
    const size_t at = ((size_t)image * (size_t)plan->out_packs + (size_t)pack) * out_plane;
    run.to = job->output + at;
    run.residual = job->residual ? job->residual + at : NULL;
    run.bias = bias + 4 * pack;
    job->transform(&run);
  }
}

void spw_winograd_conv2d(const struct spw_conv2d *operator, const void *weights, const void *input,
                         const void *residual, void *output, struct spw_context *context) {
  const int wanted = ceil_div(context->threads, operator->batch);
  const int half = operator->type == SPW_CONV2D_F16;
  struct job job = {
      .plan = make_plan(operator, wanted),
      .operator = *operator,
      .product = {.type = operator->type, .float_min = -INFINITY, .float_max = INFINITY},
      .weights = weights,
      .input = input,
      .residual = residual,
      .output = output,
      .context = context,
      .transform =
          spw_find_winograd_kernel(half ? SPW_ROLE_WINOGRAD_F16 : SPW_ROLE_WINOGRAD_F32, context->instruction_sets),
      .multiply = spw_find_conv_kernel(half ? SPW_ROLE_CONV_F16 : SPW_ROLE_CONV_F32, context->instruction_sets),
  };
  job.bands = ceil_div(job.plan.tiles, job.plan.band_tiles);
  const int threads = context->threads, batch = operator->batch, most = threads > 1 ? threads * TASKS_A_THREAD : 1;
  const int64_t work = (int64_t)job.plan.in_packs * job.plan.out_packs * job.plan.tiles * batch / TASK_PRODUCTS;
  job.splits = min_int(job.plan.panels, ceil_div(work < most ? max_int(1, (int)work) : most, job.bands * batch));
  for (int thread = 0; thread < threads; ++thread) *workspace_of(&job, thread).prepared = -1;
  context->parallel_for(context, (size_t)operator->batch * (size_t)job.bands * (size_t)job.splits, run_task, &job);
}
