// Classifies what a file of raw float32 holds: classify FILE [THREADS]
//
//   gcc -O2 -I r20 -include r20.h -DPROGRAM=r20_program classify.c r20/libr20.a -lm -pthread -o classify
//
// It asks the program for its sizes, so that it serves any network of one input whose first output rates classes.
#define _POSIX_C_SOURCE 200809L

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { TOP = 5, MAX_OUTPUTS = 16 };

static double milliseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
}

static int read_input(const char *path, sparrow_buffer buffer) {
  FILE *file = fopen(path, "rb");
  size_t got = file && buffer.data ? fread(buffer.data, 1, buffer.bytes, file) : 0;
  if (file) fclose(file);
  if (got != buffer.bytes) fprintf(stderr, "classify: %s: got %zu bytes, expected %zu\n", path, got, buffer.bytes);
  return got == buffer.bytes;
}

// Prints the classes that are rated highest; what was printed is rated lowest then.
static void print_top(float *scores, size_t count) {
  for (size_t place = 0; place < TOP && place < count; place++) {
    size_t best = 0;
    for (size_t index = 1; index < count; index++)
      if (scores[index] > scores[best]) best = index;
    printf("%9.4f  class %zu\n", (double)scores[best], best);
    scores[best] = -1e30f;
  }
}

static int classify(sparrow_model *model, sparrow_buffer input, const sparrow_buffer *outputs, size_t output_count) {
  // The first run wakes the cores.
  if (sparrow_run(model, &input, 1, outputs, output_count)) return 0;
  double begin = milliseconds();
  if (sparrow_run(model, &input, 1, outputs, output_count)) return 0;
  fprintf(stderr, "%.2f ms\n", milliseconds() - begin);
  print_top(outputs[0].data, outputs[0].bytes / sizeof(float));
  return 1;
}

int main(int count, char **arguments) {
  if (count < 2) {
    fprintf(stderr, "usage: classify FILE [THREADS]\n");
    return 2;
  }
  sparrow_buffer input = {NULL, sparrow_input(&PROGRAM, 0)->bytes}, outputs[MAX_OUTPUTS];
  size_t output_count = 0;
  int status = 1;
  input.data = malloc(input.bytes);
  for (const sparrow_tensor *tensor; output_count < MAX_OUTPUTS; output_count++) {
    if (!(tensor = sparrow_output(&PROGRAM, output_count))) break;
    outputs[output_count] = (sparrow_buffer){malloc(tensor->bytes), tensor->bytes};
  }
  sparrow_model *model = NULL;
  if (read_input(arguments[1], input)) {
    if (sparrow_create(&PROGRAM, count > 2 ? atoi(arguments[2]) : 4, &model))
      fprintf(stderr, "classify: %s\n", sparrow_last_error(NULL));
    else if (classify(model, input, outputs, output_count)) status = 0;
    else fprintf(stderr, "classify: %s\n", sparrow_last_error(model));
  }
  sparrow_destroy(model);
  for (size_t index = 0; index < output_count; index++) free(outputs[index].data);
  free(input.data);
  return status;
}
