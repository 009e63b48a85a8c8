// Fuzz target: the tables and the packed weights of a program, as the runtime finds them in a bundle.
//
// The input is a struct choices and then packed weights. Whatever sparrow_create() accepts must run without an access
// outside its buffers: the sanitizers watch, and every buffer has exactly the size that it needs.
#include <stdlib.h>
#include <string.h>

#include "program.h"
#include "formats.c"  // in place of linking it: checksum() is private there

// Read by make_corpus.py as well. Every value stands for one of a few sensible ones, so that most inputs mean something.
struct choices {
  uint8_t type, float_output, groups, residual;
  uint8_t in_channels, out_channels, kernel_height, kernel_width;
  uint8_t stride, dilation, pad, size;
  uint8_t sign;  // bit 0: the right checksum is put in, bit 1: the right size
  int8_t zero_point;
  uint8_t threads, arena;
  uint32_t weights_offset, weights_bytes;  // of the layer; added to the right ones
};

static struct spw_conv2d layer_operator(const struct choices *choices) {
  const int32_t kernel_height = 1 + choices->kernel_height % 5, kernel_width = 1 + choices->kernel_width % 5;
  const int32_t stride = 1 + choices->stride % 3, dilation = 1 + choices->dilation % 2, pad = choices->pad % 3;
  int32_t in_channels = 1 + choices->in_channels % 40, out_channels = 1 + choices->out_channels % 40, groups = 1;
  if (choices->groups % 3 == 1) groups = out_channels = in_channels;
  if (choices->groups % 3 == 2) {
    groups = 2;
    in_channels = 8 + 8 * (in_channels % 3);
    out_channels = 8 + 8 * (out_channels % 3);
  }
  const int32_t span_height = dilation * (kernel_height - 1) + 1, span_width = dilation * (kernel_width - 1) + 1;
  const int32_t span = span_height > span_width ? span_height : span_width, in_size = span + choices->size % 12;
  return (struct spw_conv2d){
      .type = (enum spw_conv2d_type)(choices->type % 3),
      .float_output = choices->type % 3 == SPW_CONV2D_QA8 && choices->float_output % 2,
      .batch = 1,
      .in_channels = in_channels,
      .in_height = in_size,
      .in_width = in_size,
      .out_channels = out_channels,
      .out_height = (in_size + 2 * pad - span_height) / stride + 1,
      .out_width = (in_size + 2 * pad - span_width) / stride + 1,
      .kernel_height = kernel_height,
      .kernel_width = kernel_width,
      .stride_height = stride,
      .stride_width = stride,
      .dilation_height = dilation,
      .dilation_width = dilation,
      .pad_top = pad,
      .pad_left = pad,
      .groups = groups,
      .input_zero_point = choices->zero_point,
      .output_zero_point = -3,
      .clamp_min = -128,
      .clamp_max = 127,
      .residual_zero_point = 2,
      .residual_scale = 1,
      .float_min = -100,
      .float_max = 100,
  };
}

static size_t packed_bytes(const struct spw_conv2d *operator, int output) {
  const size_t channels = (size_t)(output ? operator->out_channels : operator->in_channels);
  const size_t pixels = output ? (size_t)operator->out_height * (size_t)operator->out_width
                               : (size_t)operator->in_height * (size_t)operator->in_width;
  const size_t size = operator->type == SPW_CONV2D_F16                                         ? 2
                      : operator->type == SPW_CONV2D_F32 || (output && operator->float_output) ? 4
                                                                                               : 1;
  return (channels + 3) / 4 * 4 * pixels * size;
}

unsigned long accepted_inputs;  // for the driver: mutated inputs should get past the checks, too

static struct sparrow_layer layer;  // of the program that runs
static void *residual;

static int run_layer(const struct sparrow_frame *frame) {
  spw_conv2d_run(&layer.operator, frame->weights + layer.weights_offset, frame->inputs[0].data, residual,
                 frame->outputs[0].data, frame->context);
  return 0;
}

static void *zeros(size_t bytes) {
  void *memory = NULL;
  if (posix_memalign(&memory, 64, bytes)) abort();
  return memset(memory, 0, bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  struct choices choices;
  if (size < sizeof choices || size > (1 << 20)) return 0;
  memcpy(&choices, data, sizeof choices);
  size -= sizeof choices;
  unsigned char *weights = zeros(size);
  if (size) memcpy(weights, data + sizeof choices, size);
  struct spw_weights_header *header = (struct spw_weights_header *)weights;
  if (size >= sizeof *header) {
    if (choices.sign & 2) header->total_bytes = (uint32_t)size;
    if (choices.sign & 1 && header->total_bytes >= sizeof *header && header->total_bytes <= size)
      header->checksum = checksum(header);
  }
  layer = (struct sparrow_layer){layer_operator(&choices), choices.weights_offset, size + choices.weights_bytes};
  const sparrow_tensor input = {"in", SPARROW_INT8, 1, {1}, packed_bytes(&layer.operator, 0)};
  const sparrow_tensor output = {"out", SPARROW_INT8, 1, {1}, packed_bytes(&layer.operator, 1)};
  const struct sparrow_step step = {"layer", run_layer};
  const sparrow_program program = {
      .version = SPARROW_PROGRAM_VERSION,
      .name = "fuzzed",
      .hash = "",
      .weights = weights,
      .weights_bytes = size,
      .weights_checksum = sparrow_checksum(weights, size),
      .arena_bytes = choices.arena == 255 ? SIZE_MAX - 8 : choices.arena,
      .inputs = &input,
      .input_count = 1,
      .outputs = &output,
      .output_count = 1,
      .steps = &step,
      .step_count = 1,
      .layers = &layer,
      .layer_count = 1,
  };
  sparrow_model *model;
  if (!sparrow_create(&program, 1 + choices.threads % 3, &model)) {
    const sparrow_buffer in = {zeros(input.bytes), input.bytes}, out = {zeros(output.bytes), output.bytes};
    const size_t residual_bytes = layer.operator.float_output ? output.bytes / 4 : output.bytes;
    residual = choices.residual % 2 ? zeros(residual_bytes) : NULL;
    memset(in.data, choices.size, in.bytes);
    if (sparrow_run(model, &in, 1, &out, 1)) abort();
    accepted_inputs++;
    sparrow_destroy(model);
    free(residual);
    free(in.data);
    free(out.data);
  } else if (!*sparrow_last_error(NULL)) {
    abort();  // refused without a reason
  }
  free(weights);
  return 0;
}
