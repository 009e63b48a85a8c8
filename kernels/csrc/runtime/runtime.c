// Instances of a program: memory, threads, argument checks, error text, and the few symbols that TVM's code calls.
#define _POSIX_C_SOURCE 200809L

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>

#include "program.h"
#include "system.h"
#include "thread_pool.h"

enum { ALIGNMENT = 64, ERROR_BYTES = 256 };
enum { MAX_CPUS = 1024, MASK_BITS = 64, MASK_WORDS = MAX_CPUS / MASK_BITS };

struct sparrow_model {
  struct spw_context context;  // first: parallel_for gets back from it to the model
  const sparrow_program *program;
  struct thread_pool *pool;
  unsigned char *arena;
  sparrow_observer observer;
  void *observer_argument;
  char error[ERROR_BYTES];
};

// The text of each thread's last error. Not _Thread_local: a library that an app loads cannot have that before Android 10.
static pthread_once_t error_once = PTHREAD_ONCE_INIT;
static pthread_key_t error_key;
static int error_key_made;

static void make_error_key(void) { error_key_made = !pthread_key_create(&error_key, free); }

static char *thread_error(void) {
  static char no_memory[ERROR_BYTES];
  pthread_once(&error_once, make_error_key);
  if (!error_key_made) return no_memory;
  char *text = pthread_getspecific(error_key);
  if (text) return text;
  text = calloc(1, ERROR_BYTES);
  if (text && !pthread_setspecific(error_key, text)) return text;
  free(text);
  return no_memory;
}

__attribute__((format(printf, 2, 3))) static void set_error(sparrow_model *model, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(model ? model->error : thread_error(), ERROR_BYTES, format, arguments);
  va_end(arguments);
}

uint64_t sparrow_checksum(const unsigned char *data, size_t bytes) {
  uint64_t hash = 0xcbf29ce484222325u, word;
  size_t index = 0;
  for (; index + 8 <= bytes; index += 8) {
    memcpy(&word, data + index, 8);
    hash = (hash ^ word) * 0x100000001b3u;
    hash ^= hash >> 32;
  }
  for (; index < bytes; index++) hash = (hash ^ data[index]) * 0x100000001b3u;
  return hash;
}

// Bits of AT_HWCAP and AT_HWCAP2 on 64-bit ARM Linux; elsewhere the scalar twins run.
static uint32_t detect_instruction_sets(void) {
#ifndef __aarch64__
  return 0;
#endif
  unsigned long capabilities = getauxval(16), more = getauxval(26);
  uint32_t sets = SPW_ISA_NEON;
  if (capabilities & (1ul << 20)) sets |= SPW_ISA_DOTPROD;
  if (capabilities & (1ul << 10)) sets |= SPW_ISA_FP16;
  if (more & (1ul << 13)) sets |= SPW_ISA_I8MM;
  return sets;
}

static void parallel_for(struct spw_context *context, size_t tasks, spw_task task, void *argument) {
  thread_pool_run(((sparrow_model *)context)->pool, tasks, task, argument);
}

static const char *check_program(const sparrow_program *program) {
  if (program->version != SPARROW_PROGRAM_VERSION) return "the program is of another version than the runtime";
  if (sparrow_checksum(program->weights, program->weights_bytes) != program->weights_checksum)
    return "the weights are damaged";
  for (size_t index = 0; index < program->layer_count; index++) {
    const struct sparrow_layer *layer = &program->layers[index];
    if (layer->weights_offset > program->weights_bytes ||
        layer->weights_bytes > program->weights_bytes - layer->weights_offset)
      return "a layer's weights lie outside the weights";
    const char *wrong =
        spw_weights_check(&layer->operator, program->weights + layer->weights_offset, layer->weights_bytes);
    if (wrong) return wrong;
  }
  return NULL;
}

static size_t align(size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

int sparrow_set_threads(sparrow_model *model, int threads) {
  if (!model) return SPARROW_ERROR_ARGUMENT;
  if (threads < 1 || threads > SPARROW_MAX_THREADS) {
    set_error(model, "threads: got %d, expected 1 to %d", threads, SPARROW_MAX_THREADS);
    return SPARROW_ERROR_ARGUMENT;
  }
  size_t bytes = 0;
  for (size_t index = 0; index < model->program->layer_count; index++) {
    size_t need = spw_conv2d_workspace(&model->program->layers[index].operator);
    if (need > bytes) bytes = need;
  }
  bytes = align(bytes);
  void *workspace = NULL;
  struct thread_pool *pool = thread_pool_create(threads);
  if (!pool || posix_memalign(&workspace, ALIGNMENT, bytes * (size_t)threads + ALIGNMENT)) {
    thread_pool_destroy(pool);
    set_error(model, "no memory for %d threads with %zu bytes of workspace each", threads, bytes);
    return SPARROW_ERROR_MEMORY;
  }
  thread_pool_destroy(model->pool);
  free(model->context.workspace);
  model->pool = pool;
  model->context.threads = threads;
  model->context.workspace = workspace;
  model->context.workspace_bytes = bytes;
  return SPARROW_OK;
}

struct binding {
  const int *cpus;
  size_t count;
  int threads;
  _Atomic int arrived;
  _Atomic int refused;  // a core that a thread could not be bound to, plus 1
};

static void bind_thread(void *argument, size_t index, int thread) {
  struct binding *binding = argument;
  (void)index;
  // Nobody returns before all have been called.
  atomic_fetch_add(&binding->arrived, 1);
  while (atomic_load(&binding->arrived) < binding->threads) sparrow_system_call(SYSTEM_YIELD, 0, 0, NULL, NULL);
  int one = binding->count == (size_t)binding->threads;
  const int *cpus = one ? &binding->cpus[thread] : binding->cpus;
  size_t count = one ? 1 : binding->count;
  uint64_t wanted[MASK_WORDS] = {0}, got[MASK_WORDS] = {0};
  for (size_t cpu = 0; cpu < count; cpu++) wanted[cpus[cpu] / MASK_BITS] |= (uint64_t)1 << cpus[cpu] % MASK_BITS;
  // The system drops cores that are offline from the mask and refuses an empty one.
  if (sparrow_system_call(SYSTEM_SETAFFINITY, 0, sizeof wanted, wanted, NULL) >= 0)
    sparrow_system_call(SYSTEM_GETAFFINITY, 0, sizeof got, got, NULL);
  for (size_t cpu = 0; cpu < count; cpu++)
    if (!(got[cpus[cpu] / MASK_BITS] >> cpus[cpu] % MASK_BITS & 1)) atomic_store(&binding->refused, cpus[cpu] + 1);
}

int sparrow_set_cpus(sparrow_model *model, const int *cpus, size_t count) {
  if (!model) return SPARROW_ERROR_ARGUMENT;
  if (!cpus || !count) {
    set_error(model, "cpus: got none");
    return SPARROW_ERROR_ARGUMENT;
  }
  for (size_t index = 0; index < count; index++) {
    int wrong = cpus[index] < 0 || cpus[index] >= MAX_CPUS;
    for (size_t earlier = 0; earlier < index; earlier++) wrong |= cpus[earlier] == cpus[index];
    if (wrong) {
      set_error(model, "cpus: got %d, expected different numbers from 0 to %d", cpus[index], MAX_CPUS - 1);
      return SPARROW_ERROR_ARGUMENT;
    }
  }
  struct binding binding = {.cpus = cpus, .count = count, .threads = model->context.threads};
  thread_pool_run_on_each(model->pool, bind_thread, &binding);
  if (binding.refused) {
    set_error(model, "core %d is not there, is offline, or is closed to this process", binding.refused - 1);
    return SPARROW_ERROR_ARGUMENT;
  }
  return SPARROW_OK;
}

void sparrow_set_observer(sparrow_model *model, sparrow_observer observer, void *argument) {
  if (!model) return;
  model->observer = observer;
  model->observer_argument = argument;
}

int sparrow_create(const sparrow_program *program, int threads, sparrow_model **result) {
  if (!program || !result) {
    set_error(NULL, "sparrow_create: got a NULL pointer");
    return SPARROW_ERROR_ARGUMENT;
  }
  *result = NULL;
  const char *wrong = check_program(program);
  if (wrong) {
    set_error(NULL, "%s: %s (expected SHA-256 %s)", program->name, wrong, program->hash);
    return SPARROW_ERROR_DAMAGED;
  }
  sparrow_model *model = calloc(1, sizeof *model);
  void *arena = NULL;
  if (!model || program->arena_bytes > SIZE_MAX - ALIGNMENT ||
      posix_memalign(&arena, ALIGNMENT, program->arena_bytes + ALIGNMENT)) {
    free(model);
    set_error(NULL, "%s: no memory for an arena of %zu bytes", program->name, program->arena_bytes);
    return SPARROW_ERROR_MEMORY;
  }
  model->program = program;
  model->arena = arena;
  model->context.instruction_sets = detect_instruction_sets();
  model->context.parallel_for = parallel_for;
  int status = sparrow_set_threads(model, threads);
  if (status) {
    set_error(NULL, "%s: %s", program->name, model->error);
    sparrow_destroy(model);
    return status;
  }
  *result = model;
  return SPARROW_OK;
}

const sparrow_tensor *sparrow_input(const sparrow_program *program, size_t index) {
  return program && index < program->input_count ? &program->inputs[index] : NULL;
}

const sparrow_tensor *sparrow_output(const sparrow_program *program, size_t index) {
  return program && index < program->output_count ? &program->outputs[index] : NULL;
}

static int check_buffers(sparrow_model *model, const char *what, const sparrow_tensor *tensors, size_t expected,
                         const sparrow_buffer *buffers, size_t count) {
  if (count != expected || !buffers) {
    set_error(model, "%ss: got %zu, expected %zu", what, buffers ? count : 0, expected);
    return SPARROW_ERROR_ARGUMENT;
  }
  for (size_t index = 0; index < count; index++) {
    if (!buffers[index].data || buffers[index].bytes != tensors[index].bytes) {
      set_error(model, "%s %s: got %zu bytes, expected %zu", what, tensors[index].name,
                buffers[index].data ? buffers[index].bytes : 0, tensors[index].bytes);
      return SPARROW_ERROR_ARGUMENT;
    }
  }
  return SPARROW_OK;
}

int sparrow_run(sparrow_model *model, const sparrow_buffer *inputs, size_t input_count, const sparrow_buffer *outputs,
                size_t output_count) {
  if (!model) return SPARROW_ERROR_ARGUMENT;
  const sparrow_program *program = model->program;
  int status = check_buffers(model, "input", program->inputs, program->input_count, inputs, input_count);
  if (!status) status = check_buffers(model, "output", program->outputs, program->output_count, outputs, output_count);
  if (status) return status;
  struct sparrow_frame frame = {&model->context, model->arena, program->weights, inputs, outputs};
  for (size_t index = 0; index < program->step_count; index++) {
    if (model->observer) model->observer(model->observer_argument, index, program->steps[index].name);
    SPARROW_MARK(122);  // a section ends
    if (program->steps[index].run(&frame)) {
      set_error(model, "step %zu, %s: %s", index, program->steps[index].name, thread_error());
      return SPARROW_ERROR_OPERATOR;
    }
  }
  if (model->observer) model->observer(model->observer_argument, program->step_count, NULL);
  return SPARROW_OK;
}

const char *sparrow_last_error(const sparrow_model *model) { return model ? model->error : thread_error(); }

void sparrow_destroy(sparrow_model *model) {
  if (!model) return;
  thread_pool_destroy(model->pool);
  free(model->context.workspace);
  free(model->arena);
  free(model);
}

int sparrow_call_tvm(sparrow_tvm_function function, struct sparrow_dl_tensor *tensors,
                     struct sparrow_tvm_value *arguments, int32_t count) {
  struct sparrow_tvm_value result = {0};
  for (int32_t index = 0; index < count; index++) {
    arguments[index] = (struct sparrow_tvm_value){.type_index = 7, .value.pointer = &tensors[index]};
  }
  return function(NULL, arguments, count, &result);
}

// Symbols that code generated by TVM refers to. Several programs in one executable share them.

SPARROW_API void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  char *text = thread_error();
  size_t used = (size_t)snprintf(text, ERROR_BYTES, "%s: ", kind);
  for (int32_t index = 0; index < count && used < ERROR_BYTES; index++)
    used += (size_t)snprintf(text + used, ERROR_BYTES - used, "%s", parts[index]);
}

static void *allocate_workspace(int device_type, int device_id, uint64_t bytes, int type_code, int type_bits) {
  (void)device_type, (void)device_id, (void)type_code, (void)type_bits;
  void *memory = NULL;
  return posix_memalign(&memory, ALIGNMENT, bytes) ? NULL : memory;
}

static int free_workspace(int device_type, int device_id, void *memory) {
  (void)device_type, (void)device_id;
  free(memory);
  return 0;
}

void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = allocate_workspace;
int (*__TVMBackendFreeWorkspace)(int, int, void *) = free_workspace;
