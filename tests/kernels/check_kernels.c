// Runs every operator of a case file with every instruction set of this processor.
//
//   check_kernels CASES
//
// CASES is written by kernel_cases.py: a count, then for each case a struct case_header and the bytes that it announces,
// each part padded to 64. The scalar twins have to give the expected output (to the bit for integers), the vector
// kernels the output of their twins to the bit; those of halves have twins with fp16 and without, and i8mm without NEON
// runs the twins of its kernels. Every buffer ends where an unmapped page begins and starts behind guard bytes, so that
// no kernel reads or writes past its end unseen.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#ifdef __aarch64__
#include <sys/auxv.h>
#endif

#include "spw.h"

struct case_header {
  char name[96];
  struct spw_conv2d operator;
  float tolerance;  // of float outputs, relative to 1 + |expected|
  uint32_t weights_bytes, input_bytes, residual_bytes, output_bytes;
};

enum { GUARD = 64, GUARD_BYTE = 0xA5, MAX_THREADS = 5 };

struct buffer {
  unsigned char *data, *mapping;
  size_t bytes, mapped;
};

static struct buffer make_buffer(size_t bytes, const void *content) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE), usable = (bytes + GUARD + page - 1) / page * page;
  struct buffer buffer = {.bytes = bytes, .mapped = usable + page};
  buffer.mapping = mmap(NULL, buffer.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (buffer.mapping == MAP_FAILED || mprotect(buffer.mapping + usable, page, PROT_NONE)) exit(2);
  memset(buffer.mapping, GUARD_BYTE, usable);
  buffer.data = buffer.mapping + usable - bytes;
  if (content) memcpy(buffer.data, content, bytes);
  return buffer;
}

static int guard_is_whole(const struct buffer *buffer) {
  for (const unsigned char *byte = buffer->data - GUARD; byte < buffer->data; ++byte)
    if (*byte != GUARD_BYTE) return 0;
  return 1;
}

static void release(struct buffer *buffer) { munmap(buffer->mapping, buffer->mapped); }

static void run_in_turn(struct spw_context *context, size_t tasks, spw_task task, void *argument) {
  for (size_t index = tasks; index-- > 0;) task(argument, index, (int)(index % (size_t)context->threads));
}

static uint32_t available_instruction_sets(void) {
#ifdef __aarch64__
  const unsigned long capabilities = getauxval(AT_HWCAP), more = getauxval(AT_HWCAP2);
  return SPW_ISA_NEON | (capabilities & (1ul << 20) ? SPW_ISA_DOTPROD : 0) |
         (capabilities & (1ul << 10) ? SPW_ISA_FP16 : 0) | (more & (1ul << 13) ? SPW_ISA_I8MM : 0);
#else
  return 0;
#endif
}

static size_t padded(size_t bytes) { return (bytes + 63) / 64 * 64; }

static float float_at(const unsigned char *values, size_t index, int is_half) {
  _Float16 half;
  float whole;
  if (!is_half) return memcpy(&whole, values + sizeof whole * index, sizeof whole), whole;
  return memcpy(&half, values + sizeof half * index, sizeof half), (float)half;
}

static int differs(const struct case_header *header, const unsigned char *got, const unsigned char *expected,
                   uint32_t instruction_sets, size_t *element) {
  const int is_float = header->operator.type != SPW_CONV2D_QA8 || header->operator.float_output;
  const int is_half = header->operator.type == SPW_CONV2D_F16;
  const size_t size = is_half ? sizeof(_Float16) : is_float ? sizeof(float) : 1;
  for (size_t index = 0; index < header->output_bytes / size; ++index) {
    *element = index;
    if (is_float && !(instruction_sets & SPW_ISA_NEON)) {
      const float left = float_at(got, index, is_half), right = float_at(expected, index, is_half);
      if (!(left == right || fabsf(left - right) <= header->tolerance * (1 + fabsf(right)))) return 1;
    } else if (memcmp(got + size * index, expected + size * index, size)) {
      return 1;
    }
  }
  return 0;
}

// Returns 0, or prints what is wrong and returns 1. On success with the scalar twins, `expected` becomes their output.
static int run_once(const struct case_header *header, const struct buffer *weights, const struct buffer *input,
                    const struct buffer *residual, unsigned char *expected, uint32_t instruction_sets, int threads) {
  const size_t workspace_bytes = spw_conv2d_workspace(&header->operator);
  struct buffer workspace = make_buffer(workspace_bytes * (size_t)threads, NULL);
  struct buffer output = make_buffer(header->output_bytes, NULL);
  struct spw_context context = {instruction_sets, threads, workspace.data, workspace_bytes, run_in_turn};
  spw_conv2d_run(&header->operator, weights->data, input->data, residual ? residual->data : NULL, output.data,
                 &context);
  size_t element = 0;
  const char *problem = !guard_is_whole(&output)      ? "wrote before the output"
                        : !guard_is_whole(&workspace) ? "wrote before the workspace"
                        : differs(header, output.data, expected, instruction_sets, &element) ? "differs"
                                                                                             : NULL;
  if (problem)
    printf("FAIL %s, instruction sets %u, %d threads: %s at element %zu\n", header->name, instruction_sets, threads,
           problem, element);
  else if (!(instruction_sets & SPW_ISA_NEON)) memcpy(expected, output.data, header->output_bytes);
  release(&workspace);
  release(&output);
  return problem != NULL;
}

static int run_case(const struct case_header *header, const unsigned char *parts) {
  struct buffer weights = make_buffer(header->weights_bytes, parts);
  parts += padded(header->weights_bytes);
  struct buffer input = make_buffer(header->input_bytes, parts);
  parts += padded(header->input_bytes);
  struct buffer residual = make_buffer(header->residual_bytes, parts);
  parts += padded(header->residual_bytes);
  struct buffer expected[2] = {make_buffer(header->output_bytes, parts), make_buffer(header->output_bytes, parts)};
  const uint32_t available = available_instruction_sets();
  int failed = 0;
  const char *problem = spw_weights_check(&header->operator, weights.data, weights.bytes);
  if (problem) failed = printf("FAIL %s: %s\n", header->name, problem);
  for (uint32_t sets = 0; sets <= (available | SPW_ISA_FP16 | SPW_ISA_I8MM) && !failed; ++sets) {
    // The scalar twins, and each choice of instruction sets that a processor of this kind can have: NEON with any.
    const int twins = !(sets & (SPW_ISA_NEON | SPW_ISA_DOTPROD));
    if (!twins && ((sets & ~available) || !(sets & SPW_ISA_NEON))) continue;
    for (int threads = 1; threads <= MAX_THREADS && !failed; threads += MAX_THREADS - 1)
      failed = run_once(header, &weights, &input, header->residual_bytes ? &residual : NULL,
                        expected[(sets & SPW_ISA_FP16) != 0].data, sets, threads);
  }
  release(&weights);
  release(&input);
  release(&residual);
  release(&expected[0]);
  release(&expected[1]);
  return failed != 0;
}

int main(int count, char **arguments) {
  FILE *file = count == 2 ? fopen(arguments[1], "rb") : NULL;
  if (!file) return fprintf(stderr, "usage: check_kernels CASES\n"), 2;
  fseek(file, 0, SEEK_END);
  const long bytes = ftell(file);
  rewind(file);
  unsigned char *content = aligned_alloc(64, padded((size_t)bytes));
  if (!content || fread(content, 1, (size_t)bytes, file) != (size_t)bytes) return 2;
  fclose(file);
  uint32_t cases, failures = 0;
  memcpy(&cases, content, sizeof cases);
  const unsigned char *at = content + 64;
  for (uint32_t index = 0; index < cases; ++index) {
    struct case_header header;
    memcpy(&header, at, sizeof header);
    at += padded(sizeof header);
    failures += (uint32_t)run_case(&header, at);
    at += padded(header.weights_bytes) + padded(header.input_bytes) + padded(header.residual_bytes) +
          padded(header.output_bytes);
  }
  free(content);
  printf("%u cases, %u failed, instruction sets %u\n", cases, failures, available_instruction_sets());
  return failures != 0;
}
