// The contract between Sparrow's operators and whoever calls them: the compiled program, its runtime, the tests.
//
// An operator is one plain C driver. It owns the loops over tiles and hands tasks to the caller's parallel loop;
// the micro-kernels below it see tiles alone: no allocation, no threads, no globals.
//
// Activations are channel-packed, "NCHW4c": [batch][ceil(channels / 4)][height][width][4]. Four channels of a pixel
// are one 32-bit lane of int8, which is what sdot consumes, and neighbouring pixels of a row are contiguous, which
// lets a convolution read sixteen of them with four vector loads and no im2col. Channels past the last are padding:
// their value on input does not matter (their weights are zero), on output they hold the output's zero point.
#ifndef SPW_H
#define SPW_H

#include <stddef.h>
#include <stdint.h>

enum { SPW_CHANNEL_PACK = 4 };

// Bits of spw_context.instruction_sets.
enum spw_instruction_set {
  SPW_ISA_NEON = 1 << 0,
  SPW_ISA_DOTPROD = 1 << 1,
  SPW_ISA_FP16 = 1 << 2,
  SPW_ISA_I8MM = 1 << 3,
};

typedef void (*spw_task)(void *argument, size_t index, int thread);

// What an operator may use while it runs.
struct spw_context {
  uint32_t instruction_sets;  // enum spw_instruction_set; without NEON the scalar twins run
  int32_t threads;            // parallel_for calls tasks with thread in [0, threads)
  unsigned char *workspace;   // threads * workspace_bytes, 64-byte aligned
  size_t workspace_bytes;     // for each thread, at least spw_conv2d_workspace()
  void (*parallel_for)(struct spw_context *context, size_t tasks, spw_task task, void *argument);
};

enum spw_conv2d_type {
  SPW_CONV2D_QA8 = 0,  // int8 activations, weights as their packed header says, int8 or float output
  SPW_CONV2D_F32 = 1,  // float activations and weights, float output
  SPW_CONV2D_F16 = 2,  // half activations, weights and output
};

// A convolution, depthwise convolution or linear layer (1x1 kernel on a 1x1 image), geometry fixed at compile time.
//
// Integer: accumulator = initial[c] + sum over taps of weight * activation, where initial[c] = -input_zero_point *
//          sum of the channel's weights; value = fma(accumulator, scale[c], bias[c]); with a residual, value =
//          fma(residual - residual_zero_point, residual_scale, value); int8 output = clamp(round_half_even(value) +
//          output_zero_point, clamp_min, clamp_max); float output = min(max(value, float_min), float_max).
//          initial, scale and bias live in the packed weights.
// Float:   output = min(max(bias[c] + sum + residual, float_min), float_max); for SPW_CONV2D_F16 in half precision on
//          processors that have it, elsewhere in float and rounded once.
struct spw_conv2d {
  enum spw_conv2d_type type;
  int32_t float_output;  // 1: integer arithmetic, float result
  int32_t batch;
  int32_t in_channels, in_height, in_width;
  int32_t out_channels, out_height, out_width;
  int32_t kernel_height, kernel_width;
  int32_t stride_height, stride_width;
  int32_t dilation_height, dilation_width;
  int32_t pad_top, pad_left;  // bottom and right follow from the output's size
  int32_t groups;             // 1, in_channels (depthwise), or a divisor that leaves multiples of 4 in both
  int32_t input_zero_point;   // also the value of the padding around the image
  int32_t output_zero_point;
  int32_t clamp_min, clamp_max;  // in output units
  int32_t residual_zero_point;
  float residual_scale;  // residual's scale over the output's; 1 for float
  float float_min, float_max;
  int32_t winograd;  // 1: int8 by Winograd's algorithm on processors without dotprod; equal outputs
};

// Bytes of workspace that each thread needs for this operator.
size_t spw_conv2d_workspace(const struct spw_conv2d *operator);

// Runs the operator. weights: what kernels/formats.py packed for it, checked before by spw_weights_check().
// input [batch][ceil(in_channels / 4)][in_height][in_width][4] int8 or float; residual, of the output's shape and
// the input's type, or NULL, never the output itself; output [batch][ceil(out_channels / 4)][out_height][out_width][4] int8 or float.
void spw_conv2d_run(const struct spw_conv2d *operator, const void * weights, const void *input, const void *residual,
                    void *output, struct spw_context *context);

// Checks magic, version, sizes and checksum of packed weights, and that they fit the operator.
// Returns NULL when they do, otherwise a static text that says what is wrong.
const char *spw_weights_check(const struct spw_conv2d *operator, const void * weights, size_t weights_bytes);

// Operators without weights; `planes` counts the packs of 4 channels of all images, [height][width][4] each.

// Maximum of each window; what lies outside the image does not count. Halves are given as their bits.
#define SPW_MAX_POOL(name, element)                                                                        \
  void name(const element *input, int32_t planes, int32_t in_height, int32_t in_width, int32_t out_height, \
            int32_t out_width, int32_t kernel_height, int32_t kernel_width, int32_t stride_height,         \
            int32_t stride_width, int32_t pad_top, int32_t pad_left, element *output, struct spw_context *context)
SPW_MAX_POOL(spw_max_pool_qa8_run, int8_t);
SPW_MAX_POOL(spw_max_pool_f16_run, uint16_t);
SPW_MAX_POOL(spw_max_pool_f32_run, float);

// clamp(round_half_even(input / scale) + zero_point, -128, 127) of an image [batch][channels][pixels], NaN as if below
// all numbers; output [batch][ceil(channels / 4)][pixels][4], padding channels 0.
void spw_quantize_qa8_f32_run(const float *input, int32_t batch, int32_t channels, int32_t pixels, float scale,
                              int32_t zero_point, int8_t *output, struct spw_context *context);

#endif
