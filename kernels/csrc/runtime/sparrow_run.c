// Command-line runner: reads raw inputs, runs the network on each, writes raw outputs.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "program.h"

extern const sparrow_program SPARROW_PROGRAM;

static const char usage[] =
    "usage: sparrow_run --input FILE --output FILE [--threads N] [--warmup N] [--repeat N]\n"
    "       sparrow_run --describe\n"
    "\n"
    "FILE holds one or more inputs after another, each the network's inputs in order, raw little-endian.\n"
    "  --threads N   threads to run on (1)\n"
    "  --warmup N    runs of the first input before the measured ones (0)\n"
    "  --repeat N    measured runs of each input (1)\n"
    "  --describe    print inputs, outputs and layers as JSON\n"
    "Exit codes: 0 ok, 1 error, 2 usage.\n";

enum { EXIT_ERROR = 1, EXIT_USAGE = 2 };

// Unallocated hints, no operation on every core: a counting emulator takes them for the borders of the measured region.
static void region_begin(void) { __asm__ volatile("hint #120" ::: "memory"); }
static void region_end(void) { __asm__ volatile("hint #121" ::: "memory"); }

struct options {
  const char *input, *output;
  int threads, warmup, repeat, describe;
};

static int parse_count(const char *text, int lowest, int *value) {
  char *end;
  errno = 0;
  long number = strtol(text, &end, 10);
  if (errno || *end || end == text || number < lowest || number > 1000000) return 0;
  *value = (int)number;
  return 1;
}

static int parse(int count, char **arguments, struct options *options) {
  *options = (struct options){.threads = 1, .repeat = 1};
  for (int index = 1; index < count; index++) {
    const char *name = arguments[index], *value = index + 1 < count ? arguments[index + 1] : NULL;
    if (!strcmp(name, "--describe")) {
      options->describe = 1;
      continue;
    }
    int known = 1, valid = value != NULL;
    if (!strcmp(name, "--input")) options->input = value;
    else if (!strcmp(name, "--output")) options->output = value;
    else if (!strcmp(name, "--threads")) valid = valid && parse_count(value, 1, &options->threads);
    else if (!strcmp(name, "--warmup")) valid = valid && parse_count(value, 0, &options->warmup);
    else if (!strcmp(name, "--repeat")) valid = valid && parse_count(value, 1, &options->repeat);
    else known = 0;
    if (!known || !valid) {
      fprintf(stderr, "sparrow_run: %s %s\n%s", known ? "bad or missing value for" : "unknown option", name, usage);
      return 0;
    }
    index++;
  }
  if (!options->describe && (!options->input || !options->output)) {
    fprintf(stderr, "sparrow_run: --input and --output are needed\n%s", usage);
    return 0;
  }
  return 1;
}

static void describe_tensors(const char *key, const sparrow_tensor *tensors, size_t count) {
  static const char *const types[] = {"float32", "int8", "uint8", "int32", "int64", "bool"};
  printf("  \"%s\": [", key);
  for (size_t index = 0; index < count; index++) {
    printf("%s\n    {\"name\": \"%s\", \"type\": \"%s\", \"shape\": [", index ? "," : "", tensors[index].name,
           types[tensors[index].type]);
    for (int axis = 0; axis < tensors[index].rank; axis++)
      printf("%s%lld", axis ? ", " : "", (long long)tensors[index].shape[axis]);
    printf("], \"bytes\": %zu}", tensors[index].bytes);
  }
  printf("\n  ],\n");
}

static void describe(const sparrow_program *program) {
  printf("{\n  \"name\": \"%s\",\n  \"weights_sha256\": \"%s\",\n  \"weights_bytes\": %zu,\n  \"arena_bytes\": %zu,\n",
         program->name, program->hash, program->weights_bytes, program->arena_bytes);
  describe_tensors("inputs", program->inputs, program->input_count);
  describe_tensors("outputs", program->outputs, program->output_count);
  printf("  \"steps\": [");
  for (size_t index = 0; index < program->step_count; index++)
    printf("%s\"%s\"", index ? ", " : "", program->steps[index].name);
  printf("]\n}\n");
}

static size_t total_bytes(const sparrow_tensor *tensors, size_t count) {
  size_t bytes = 0;
  for (size_t index = 0; index < count; index++) bytes += tensors[index].bytes;
  return bytes;
}

static void slice(sparrow_buffer *buffers, unsigned char *memory, const sparrow_tensor *tensors, size_t count) {
  for (size_t index = 0; index < count; index++) {
    buffers[index] = (sparrow_buffer){memory, tensors[index].bytes};
    memory += tensors[index].bytes;
  }
}

static int fail(const char *what, const char *why) {
  fprintf(stderr, "sparrow_run: %s: %s\n", what, why);
  return EXIT_ERROR;
}

static int run_file(sparrow_model *model, const sparrow_program *program, const struct options *options, FILE *input,
                    FILE *output) {
  size_t input_bytes = total_bytes(program->inputs, program->input_count);
  size_t output_bytes = total_bytes(program->outputs, program->output_count);
  unsigned char *memory = malloc(input_bytes + output_bytes);
  sparrow_buffer *buffers = malloc((program->input_count + program->output_count) * sizeof *buffers);
  int status = memory && buffers ? 0 : fail("malloc", "no memory for inputs and outputs");
  size_t got, images = 0;
  while (!status && (got = fread(memory, 1, input_bytes, input)) > 0) {
    if (got != input_bytes) {
      fprintf(stderr, "sparrow_run: %s: input %zu has %zu bytes, expected %zu\n", options->input, images, got,
              input_bytes);
      status = EXIT_ERROR;
      break;
    }
    sparrow_buffer *outputs = buffers + program->input_count;
    slice(buffers, memory, program->inputs, program->input_count);
    slice(outputs, memory + input_bytes, program->outputs, program->output_count);
    int warmup = images ? 0 : options->warmup;
    for (int run = 0; run < warmup + options->repeat && !status; run++) {
      if (run >= warmup) region_begin();
      status = sparrow_run(model, buffers, program->input_count, outputs, program->output_count);
      if (run >= warmup) region_end();
    }
    if (status) status = fail("run", sparrow_last_error(model));
    else if (fwrite(memory + input_bytes, 1, output_bytes, output) != output_bytes)
      status = fail(options->output, strerror(errno));
    images++;
  }
  if (!status && ferror(input)) status = fail(options->input, strerror(errno));
  if (!status && !images) status = fail(options->input, "the file is empty");
  free(buffers);
  free(memory);
  return status;
}

int main(int count, char **arguments) {
  struct options options;
  if (!parse(count, arguments, &options)) return EXIT_USAGE;
  const sparrow_program *program = &SPARROW_PROGRAM;
  if (options.describe) {
    describe(program);
    return 0;
  }
  sparrow_model *model;
  if (sparrow_create(program, options.threads, &model)) return fail("create", sparrow_last_error(NULL));
  int status = EXIT_ERROR;
  FILE *input = fopen(options.input, "rb");
  FILE *output = input ? fopen(options.output, "wb") : NULL;
  if (!input || !output) fail(input ? options.output : options.input, strerror(errno));
  else status = run_file(model, program, &options, input, output);
  if (output && fclose(output) && !status) status = fail(options.output, strerror(errno));
  if (input) fclose(input);
  sparrow_destroy(model);
  return status;
}
