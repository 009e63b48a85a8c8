// Command-line runner: reads raw inputs, runs the network on each, writes raw outputs, and times it.
#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "program.h"
#include "system.h"

extern const sparrow_program SPARROW_PROGRAM;

static const char usage[] =
    "usage: sparrow_run --input FILE --output FILE [--threads N] [--cpus LIST] [--warmup N] [--repeat N]\n"
    "                   [--min-seconds S] [--times FILE] [--profile FILE]\n"
    "       sparrow_run --describe\n"
    "\n"
    "FILE holds one or more inputs after another, each the network's inputs in order, raw little-endian.\n"
    "  --threads N      threads to run on (1)\n"
    "  --cpus LIST      cores to run on, such as 4,5,6,7: one a thread if there are as many, else all for each\n"
    "  --warmup N       runs of the first input before the measured ones (0)\n"
    "  --repeat N       measured runs of each input, at least (1)\n"
    "  --min-seconds S  seconds of measured runs of each input, at least (0)\n"
    "  --times FILE     write the nanoseconds of each measured run, one a line\n"
    "  --profile FILE   write the nanoseconds of each step as JSON; the clock slows all runs a little\n"
    "  --describe       print inputs, outputs and layers as JSON\n"
    "Exit codes: 0 ok, 1 error, 2 usage.\n";

enum { EXIT_ERROR = 1, EXIT_USAGE = 2 };

enum { MAX_CPUS = 64 };

struct options {
  const char *input, *output, *times, *profile;
  int threads, warmup, repeat, describe;
  double min_seconds;
  int cpus[MAX_CPUS];
  size_t cpu_count;
};

static int parse_count(const char *text, int lowest, int *value) {
  char *end;
  errno = 0;
  long number = strtol(text, &end, 10);
  if (errno || *end || end == text || number < lowest || number > 1000000) return 0;
  *value = (int)number;
  return 1;
}

static int parse_seconds(const char *text, double *value) {
  char *end;
  *value = strtod(text, &end);
  return !*end && end != text && *value >= 0 && *value <= 86400;
}

static int parse_cpus(const char *text, struct options *options) {
  for (options->cpu_count = 0; options->cpu_count < MAX_CPUS; text++) {
    char *end;
    long number = strtol(text, &end, 10);
    if (end == text || *text < '0' || *text > '9' || number > 1023) return 0;
    options->cpus[options->cpu_count++] = (int)number;
    if (!*end) return 1;
    if (*end != ',') return 0;
    text = end;
  }
  return 0;
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
    else if (!strcmp(name, "--cpus")) valid = valid && parse_cpus(value, options);
    else if (!strcmp(name, "--min-seconds")) valid = valid && parse_seconds(value, &options->min_seconds);
    else if (!strcmp(name, "--times")) options->times = value;
    else if (!strcmp(name, "--profile")) options->profile = value;
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

struct step_time {
  uint64_t total, least;
};

// What is written down of the measured runs, in nanoseconds.
struct measurement {
  uint64_t *times;  // of each run
  size_t count, capacity;
  struct step_time *steps;  // NULL without --profile
  uint64_t step_begin;
};

static uint64_t nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void observe(void *argument, size_t step, const char *name) {
  struct measurement *measurement = argument;
  uint64_t now = nanoseconds();
  (void)name;
  if (step) {
    struct step_time *ended = &measurement->steps[step - 1];
    uint64_t time = now - measurement->step_begin;
    ended->total += time;
    if (!ended->least || time < ended->least) ended->least = time;
  }
  measurement->step_begin = now;
}

static int run_measured(sparrow_model *model, const sparrow_program *program, const sparrow_buffer *inputs,
                        const sparrow_buffer *outputs, struct measurement *measurement) {
  if (measurement->count == measurement->capacity) {
    size_t capacity = measurement->capacity ? 2 * measurement->capacity : 1024;
    uint64_t *grown = realloc(measurement->times, capacity * sizeof *grown);
    if (!grown) return fail("malloc", "no memory for the times");
    measurement->times = grown;
    measurement->capacity = capacity;
  }
  uint64_t begin = nanoseconds();
  SPARROW_MARK(120);  // the measured region begins
  int status = sparrow_run(model, inputs, program->input_count, outputs, program->output_count);
  SPARROW_MARK(121);  // and ends
  measurement->times[measurement->count++] = nanoseconds() - begin;
  return status ? fail("run", sparrow_last_error(model)) : 0;
}

// Warm-up and measured runs of one input.
static int run_input(sparrow_model *model, const sparrow_program *program, const struct options *options, int warmup,
                     const sparrow_buffer *inputs, const sparrow_buffer *outputs, struct measurement *measurement) {
  for (int run = 0; run < warmup; run++)
    if (sparrow_run(model, inputs, program->input_count, outputs, program->output_count))
      return fail("run", sparrow_last_error(model));
  if (measurement->steps) sparrow_set_observer(model, observe, measurement);
  uint64_t begin = nanoseconds();
  int status = 0;
  for (int run = 0; !status; run++) {
    if (run >= options->repeat && (double)(nanoseconds() - begin) >= options->min_seconds * 1e9) break;
    status = run_measured(model, program, inputs, outputs, measurement);
  }
  return status;
}

static int run_file(sparrow_model *model, const sparrow_program *program, const struct options *options, FILE *input,
                    FILE *output, struct measurement *measurement) {
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
    status = run_input(model, program, options, images ? 0 : options->warmup, buffers, outputs, measurement);
    if (!status && fwrite(memory + input_bytes, 1, output_bytes, output) != output_bytes)
      status = fail(options->output, strerror(errno));
    images++;
  }
  if (!status && ferror(input)) status = fail(options->input, strerror(errno));
  if (!status && !images) status = fail(options->input, "the file is empty");
  free(buffers);
  free(memory);
  return status;
}

static void write_times(FILE *file, const sparrow_program *program, const struct measurement *measurement) {
  (void)program;
  for (size_t index = 0; index < measurement->count; index++)
    fprintf(file, "%llu\n", (unsigned long long)measurement->times[index]);
}

static void write_profile(FILE *file, const sparrow_program *program, const struct measurement *measurement) {
  fprintf(file, "{\n  \"count\": %zu,\n  \"steps\": [", measurement->count);
  for (size_t index = 0; index < program->step_count; index++) {
    const struct step_time *step = &measurement->steps[index];
    fprintf(file, "%s\n    {\"name\": \"%s\", \"mean_ns\": %.1f, \"min_ns\": %llu}", index ? "," : "",
            program->steps[index].name, (double)step->total / (double)measurement->count,
            (unsigned long long)step->least);
  }
  fprintf(file, "\n  ]\n}\n");
}

// A file that is opened before the runs, so that a wrong path is told at once; `name` NULL for one not asked for.
struct result_file {
  const char *name;
  FILE *file;
  void (*write)(FILE *file, const sparrow_program *program, const struct measurement *measurement);
};

static int run(sparrow_model *model, const sparrow_program *program, const struct options *options) {
  if (options->cpu_count && sparrow_set_cpus(model, options->cpus, options->cpu_count))
    return fail("--cpus", sparrow_last_error(model));
  struct measurement measurement = {0};
  struct result_file files[] = {
      {options->output, NULL, NULL}, {options->times, NULL, write_times}, {options->profile, NULL, write_profile}};
  const size_t file_count = sizeof files / sizeof *files;
  int status = 0;
  FILE *input = fopen(options->input, "rb");
  if (!input) status = fail(options->input, strerror(errno));
  for (size_t index = 0; index < file_count && !status; index++)
    if (files[index].name && !(files[index].file = fopen(files[index].name, "wb")))
      status = fail(files[index].name, strerror(errno));
  if (!status && options->profile && !(measurement.steps = calloc(program->step_count + 1, sizeof *measurement.steps)))
    status = fail("malloc", "no memory for the profile");
  if (!status) status = run_file(model, program, options, input, files[0].file, &measurement);
  for (size_t index = 0; index < file_count; index++) {
    FILE *file = files[index].file;
    if (!file) continue;
    if (!status && files[index].write) files[index].write(file, program, &measurement);
    int failed = ferror(file);
    if ((fclose(file) || failed) && !status) status = fail(files[index].name, strerror(errno));
  }
  if (input) fclose(input);
  free(measurement.steps);
  free(measurement.times);
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
  int status = run(model, program, &options);
  sparrow_destroy(model);
  return status;
}
