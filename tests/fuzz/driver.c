// Runs a fuzz target without a fuzzer: on files, and on copies of them that are changed by numbers of one seed.
//
//   driver COUNT SEED FILE...
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
extern unsigned long accepted_inputs;

static uint64_t state;

static uint32_t next_number(void) {  // xorshift64*
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return (uint32_t)(state * 0x2545F4914F6CDD1Du >> 32);
}

// Near the front, where the headers are, half of the time.
static size_t place(size_t size) {
  const size_t limit = next_number() % 2 && size > 128 ? 128 : size;
  return next_number() % limit;
}

static size_t mutate(uint8_t *data, size_t size) {
  static const uint8_t edges[] = {0, 1, 0x7F, 0x80, 0xFF};
  for (uint32_t changes = 1 + next_number() % 4; changes && size; changes--) {
    const size_t at = place(size), length = 1 + next_number() % 8;
    switch (next_number() % 5) {
      case 0:
        data[at] ^= (uint8_t)(1 << next_number() % 8);
        break;
      case 1:
        data[at] = (uint8_t)next_number();
        break;
      case 2:
        data[at] = edges[next_number() % sizeof edges];
        break;
      case 3:
        memmove(data + at, data + place(size), at + length < size ? 1 : 0);
        break;
      default:
        if (next_number() % 8 == 0) size = at;
        else if (at + 4 <= size) memset(data + at, edges[next_number() % sizeof edges], 4);
    }
  }
  return size;
}

int main(int count, char **arguments) {
  if (count < 4) return fprintf(stderr, "usage: driver COUNT SEED FILE...\n"), 2;
  state = strtoull(arguments[2], NULL, 10) * 2 + 1;
  const int copies = atoi(arguments[1]), files = count - 3;
  for (int index = 0; index < files + copies; index++) {
    const char *name = arguments[3 + index % files];
    FILE *file = fopen(name, "rb");
    static uint8_t content[1 << 20];
    if (!file) return fprintf(stderr, "cannot read %s\n", name), 2;
    size_t size = fread(content, 1, sizeof content, file);
    fclose(file);
    if (index >= files) size = mutate(content, size);
    uint8_t *exact = malloc(size ? size : 1);  // so that a read past its end is seen
    if (!exact) return 2;
    memcpy(exact, content, size);
    LLVMFuzzerTestOneInput(exact, size);
    free(exact);
  }
  printf("%d inputs, %lu accepted\n", files + copies, accepted_inputs);
  return 0;
}
