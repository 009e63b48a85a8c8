// Sparrow's C interface: runs a compiled network on a 64-bit ARM core. Needs nothing but pthreads and libm.
//
//   sparrow_model *model;
//   if (sparrow_create(&NAME_program, 4, &model)) { fputs(sparrow_last_error(NULL), stderr); return 1; }
//   sparrow_buffer input = {pixels, sizeof pixels}, output = {logits, sizeof logits};
//   if (sparrow_run(model, &input, 1, &output, 1)) { fputs(sparrow_last_error(model), stderr); return 1; }
//   sparrow_destroy(model);
//
// A model belongs to one thread at a time; different models may run at once, of the same program too.
#ifndef SPARROW_H
#define SPARROW_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SPARROW_API __attribute__((visibility("default")))

// A compiled network, constant and shared. Each bundle's header declares its own.
typedef struct sparrow_program sparrow_program;

// An instance of a program: its scratch memory and its threads.
typedef struct sparrow_model sparrow_model;

enum sparrow_status {
  SPARROW_OK = 0,
  SPARROW_ERROR_ARGUMENT = 1,  // a pointer, count or size that does not fit; sparrow_last_error() says which
  SPARROW_ERROR_MEMORY = 2,    // no memory, or no more threads
  SPARROW_ERROR_DAMAGED = 3,   // the weights are not what the compiler wrote
  SPARROW_ERROR_OPERATOR = 4,  // an operator refused its operands
};

enum sparrow_type {
  SPARROW_FLOAT32 = 0,
  SPARROW_INT8 = 1,
  SPARROW_UINT8 = 2,
  SPARROW_INT32 = 3,
  SPARROW_INT64 = 4,
  SPARROW_BOOL = 5,
};

enum { SPARROW_MAX_RANK = 8 };

// An input or output: dense, row-major, the layout of the network that was compiled (usually NCHW).
typedef struct sparrow_tensor {
  const char *name;
  enum sparrow_type type;
  int32_t rank;
  int64_t shape[SPARROW_MAX_RANK];
  size_t bytes;
} sparrow_tensor;

// Memory of the caller's. bytes must equal sparrow_tensor.bytes: a wrong size is an error, never a short copy.
typedef struct sparrow_buffer {
  void *data;
  size_t bytes;
} sparrow_buffer;

// Makes an instance that runs on `threads` threads, the calling one included (1 to 64). Checks the program's weights.
// On error *model is NULL and sparrow_last_error(NULL) tells why, in the calling thread.
SPARROW_API int sparrow_create(const sparrow_program *program, int threads, sparrow_model **model);

// Describes input or output `index`; NULL past the last. Valid as long as the program.
SPARROW_API const sparrow_tensor *sparrow_input(const sparrow_program *program, size_t index);
SPARROW_API const sparrow_tensor *sparrow_output(const sparrow_program *program, size_t index);

// Runs the network once. Buffers in the order of sparrow_input() and sparrow_output().
SPARROW_API int sparrow_run(sparrow_model *model, const sparrow_buffer *inputs, size_t input_count,
                            const sparrow_buffer *outputs, size_t output_count);

// Changes the number of threads (1 to 64); idle threads sleep.
SPARROW_API int sparrow_set_threads(sparrow_model *model, int threads);

// Binds the model's threads, the calling one included, to processor cores: one core a thread in the order given where
// there are as many cores as threads, else each thread to all of them. Holds until sparrow_set_threads(), after which it
// is called again. On error, a core that is offline for example, a part of the threads may be bound.
SPARROW_API int sparrow_set_cpus(sparrow_model *model, const int *cpus, size_t count);

// Is called by sparrow_run(), on its thread, before each step of the network, and after the last with the number of
// steps and the name NULL.
typedef void (*sparrow_observer)(void *argument, size_t step, const char *name);

// Sets the observer, to time the steps for example; NULL for none.
SPARROW_API void sparrow_set_observer(sparrow_model *model, sparrow_observer observer, void *argument);

// Text of the last error of this model, or with NULL of this thread's last sparrow_create(). Never NULL.
SPARROW_API const char *sparrow_last_error(const sparrow_model *model);

// Ends the threads and frees the memory. NULL is allowed.
SPARROW_API void sparrow_destroy(sparrow_model *model);

#ifdef __cplusplus
}
#endif
#endif
