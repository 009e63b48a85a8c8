// Exercises the C interface of a bundle: prints one line for each check, ends with "done".
#include <stdio.h>
#include <string.h>

#include "network.h"

static float image[3 * 16 * 16 + 1], logits[10], again[10];

int main(void) {
  sparrow_model *model = NULL, *other = NULL;
  printf("null program: %d\n", sparrow_create(NULL, 1, &model));
  printf("no threads: %d %s\n", sparrow_create(&network_program, 0, &model), sparrow_last_error(NULL));
  printf("too many threads: %d\n", sparrow_create(&network_program, 65, &model));
  if (sparrow_create(&network_program, 2, &model) || sparrow_create(&network_program, 1, &other)) return 1;
  const sparrow_tensor *input = sparrow_input(&network_program, 0), *output = sparrow_output(&network_program, 0);
  printf("input: %s %d %zu, output: %s %zu, more: %d\n", input->name, input->rank, input->bytes, output->name,
         output->bytes, sparrow_input(&network_program, 1) != NULL);
  sparrow_buffer in = {image, input->bytes}, out = {logits, output->bytes}, out_again = {again, output->bytes};
  sparrow_buffer wrong = {image, input->bytes - 4}, null = {NULL, input->bytes};
  printf("short input: %d %s\n", sparrow_run(model, &wrong, 1, &out, 1), sparrow_last_error(model));
  printf("null data: %d\n", sparrow_run(model, &null, 1, &out, 1));
  printf("no outputs: %d %s\n", sparrow_run(model, &in, 1, &out, 0), sparrow_last_error(model));
  for (int index = 0; index < 3 * 16 * 16; index++) image[index] = (float)(index % 37) / 37 - 0.5f;
  printf("run: %d\n", sparrow_run(model, &in, 1, &out, 1));
  printf("threads: %d\n", sparrow_set_threads(model, 4));
  printf("run: %d\n", sparrow_run(model, &in, 1, &out_again, 1));
  printf("equal: %d\n", !memcmp(logits, again, sizeof logits));
  // Neither buffer aligned to more than a float.
  memmove(image + 1, image, sizeof image - sizeof *image);
  sparrow_buffer shifted = {image + 1, input->bytes};
  memset(again, 0, sizeof again);
  printf("run: %d %s\n", sparrow_run(other, &shifted, 1, &out_again, 1), sparrow_last_error(other));
  printf("equal: %d\n", !memcmp(logits, again, sizeof logits));
  sparrow_destroy(model);
  sparrow_destroy(other);
  sparrow_destroy(NULL);
  printf("done\n");
  return 0;
}
