// What the compiler writes and the runtime reads: a network as constant tables and one function for each step.
#ifndef SPARROW_PROGRAM_H
#define SPARROW_PROGRAM_H

#include "../spw.h"
#include "sparrow.h"

enum { SPARROW_PROGRAM_VERSION = 1 };

// Everything a step may touch.
struct sparrow_frame {
  struct spw_context *context;
  unsigned char *arena;          // program->arena_bytes, 64-byte aligned
  const unsigned char *weights;  // program->weights
  const sparrow_buffer *inputs;
  const sparrow_buffer *outputs;
};

// One operator call. `run` returns 0, or non-zero after setting the error text.
struct sparrow_step {
  const char *name;
  int (*run)(const struct sparrow_frame *frame);
};

// A Sparrow operator and where its packed weights lie.
struct sparrow_layer {
  struct spw_conv2d operator;
  size_t weights_offset, weights_bytes;
};

struct sparrow_program {
  uint32_t version;  // SPARROW_PROGRAM_VERSION
  const char *name;
  const char *hash;  // SHA-256 of the weights, hexadecimal, as in manifest.json
  const unsigned char *weights;
  size_t weights_bytes;
  uint64_t weights_checksum;  // sparrow_checksum() of the weights
  size_t arena_bytes;
  const sparrow_tensor *inputs;
  size_t input_count;
  const sparrow_tensor *outputs;
  size_t output_count;
  const struct sparrow_step *steps;
  size_t step_count;
  const struct sparrow_layer *layers;
  size_t layer_count;
};

// The TVM side of a step: DLPack's tensor and TVM's tagged value, as its C interface lays them out.
struct sparrow_dl_tensor {
  void *data;
  int32_t device_type, device_id;  // 1, 0: CPU
  int32_t rank;
  uint8_t type_code, type_bits;  // 0 signed, 1 unsigned, 2 float
  uint16_t type_lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};
_Static_assert(sizeof(struct sparrow_dl_tensor) == 48, "DLPack's DLTensor");

struct sparrow_tvm_value {
  int32_t type_index;  // 7: DLTensor*
  uint32_t padding;
  union {
    int64_t integer;
    void *pointer;
  } value;
};
_Static_assert(sizeof(struct sparrow_tvm_value) == 16, "TVM's TVMFFIAny");

typedef int32_t (*sparrow_tvm_function)(void *self, struct sparrow_tvm_value *arguments, int32_t count,
                                        struct sparrow_tvm_value *result);

// Calls a function that TVM compiled. Returns 0 or non-zero with the error text set.
// arguments: [count], room for what the function is passed.
int sparrow_call_tvm(sparrow_tvm_function function, struct sparrow_dl_tensor *tensors,
                     struct sparrow_tvm_value *arguments, int32_t count);

// FNV-style hash over 8-byte words and the remaining bytes; equal to checksum() in deploy/codegen_c.py.
uint64_t sparrow_checksum(const unsigned char *data, size_t bytes);

#endif
