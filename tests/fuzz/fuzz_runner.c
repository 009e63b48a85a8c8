// Fuzz target: the command line of sparrow_run and the files that it reads.
//
// The input is one argument a line, an empty line, and then the content of every file that is opened for reading.
// Nothing is written, and what would only take long is cut down.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const void *content;
static size_t content_bytes;

static FILE *open_in_memory(const char *name, const char *mode) {
  if (*mode == 'w' || !*name) return fopen(*name ? "/dev/null" : "", mode);
  return content_bytes ? fmemopen((void *)content, content_bytes, "rb") : fopen("/dev/null", "rb");
}

#define fopen open_in_memory
#define main sparrow_run_main
#define SPARROW_PROGRAM tiny_program
#include "sparrow_run.c"
#undef fopen

// A program of the least that a program has: two bytes in, in two tensors, three out.
static int copy(const struct sparrow_frame *frame) {
  unsigned char *out = frame->outputs[0].data;
  memcpy(frame->arena, frame->inputs[0].data, 1);
  out[0] = out[1] = frame->arena[0];
  memcpy(frame->outputs[1].data, frame->inputs[1].data, 1);
  return out[0] == 0xFF;  // an operator that refuses its operand
}

static const sparrow_tensor inputs[] = {{"a", SPARROW_UINT8, 1, {1}, 1}, {"b", SPARROW_BOOL, 0, {0}, 1}};
static const sparrow_tensor outputs[] = {{"c", SPARROW_UINT8, 1, {2}, 2}, {"d", SPARROW_INT8, 2, {1, 1}, 1}};
static const struct sparrow_step steps[] = {{"copy", copy}};
const sparrow_program tiny_program = {
    .version = SPARROW_PROGRAM_VERSION,
    .name = "tiny",
    .hash = "",
    .weights = (const unsigned char *)"",
    .weights_checksum = 0xcbf29ce484222325u,
    .arena_bytes = 1,
    .inputs = inputs,
    .input_count = 2,
    .outputs = outputs,
    .output_count = 2,
    .steps = steps,
    .step_count = 1,
};

enum { MAX_ARGUMENTS = 32 };

unsigned long accepted_inputs;  // those that run the program to its end

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  char *text = malloc(size + 1), *arguments[MAX_ARGUMENTS + 1] = {(char[]){"sparrow_run"}}, *at = text;
  if (!text) abort();
  memcpy(text, data, size);
  text[size] = 0;
  int count = 1;
  while (count < MAX_ARGUMENTS && *at && *at != '\n') {
    arguments[count++] = at;
    at += strcspn(at, "\n");
    if (*at) *at++ = 0;
  }
  if (*at == '\n') at++;
  content = at;
  content_bytes = (size_t)(text + size - at);
  struct options options;
  if (parse(count, arguments, &options)) {
    if (options.threads < 1 || options.repeat < 1 || options.warmup < 0 || options.cpu_count > MAX_CPUS) abort();
    options.threads = options.threads > 80 ? options.threads : 1 + options.threads % 3;
    options.repeat = 1 + options.repeat % 3;
    options.warmup %= 3;
    options.min_seconds = 0;
    sparrow_model *model;
    if (options.describe) {
      describe(&tiny_program);
    } else if (!sparrow_create(&tiny_program, options.threads, &model)) {
      accepted_inputs += !run(model, &tiny_program, &options);
      sparrow_destroy(model);
    }
  }
  free(text);
  return 0;
}
