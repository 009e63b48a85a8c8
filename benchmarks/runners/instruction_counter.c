// Counts the instructions that a guest program retires under QEMU's user-mode emulation, thread by thread.
//
// The guest marks the region that is to be counted with unallocated hints, which every AArch64 core runs as NOP:
// "hint #120" begins a region and "hint #121" ends it. What all threads retire in between belongs to the region,
// the two hints themselves do not. A program may have many regions, one after another.
//
// How it counts: each virtual CPU (one a guest thread) has one counter that only grows, by the length of each
// translation block as the block is entered. A hint subtracts what of its block is still to come, so that a region
// is exact to the instruction. The only cost is one call and one addition a block; nothing is shared between
// threads, so no count is lost. Other marks can be added beside the two: all a mark has to do is to take the
// counters' values.
//
// The plugin's argument is output=FILE. At exit it writes there, as JSON:
//   {"schema": "sparrow-instruction-count", "version": 1, "unbalanced_marks": 0,
//    "program": [for each thread: instructions of the whole program],
//    "regions": [for each region: [for each thread: instructions], ...]}
//
// QEMU's plugin interface is declared here because Linux distributions do not package its header.
// Built with -DPLUGIN_API=1 for QEMU before 9.0, 2 for 9.0, 3 for 9.1 and later.
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum callback_flags { NO_REGISTERS };

extern void qemu_plugin_register_vcpu_init_cb(plugin_id, void (*)(plugin_id, unsigned));
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *),
                                                 enum callback_flags, void *);
extern void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, void (*)(unsigned, void *),
                                                   enum callback_flags, void *);
extern void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
#if PLUGIN_API >= 3
extern size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *, void *, size_t);
#else
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
#endif

EXPORT int qemu_plugin_version = PLUGIN_API;

enum { MAX_THREADS = 256, BEGIN_HINT = 120, END_HINT = 121 };

// A cache line each: threads must not slow one another down.
struct counter {
  _Alignas(64) uint64_t retired;
};

static struct counter counters[MAX_THREADS];
static unsigned threads;  // highest index seen, plus one

// Everything below is guarded by the lock; marks are rare.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool region_open;
static uint64_t at_begin[MAX_THREADS];
static uint64_t (*regions)[MAX_THREADS];
static size_t region_count, region_capacity, unbalanced_marks;
static char *output_path;

static void fail(const char *what) {
  fprintf(stderr, "instruction counter: %s\n", what);
  abort();
}

static uint64_t retired_by(unsigned thread) { return __atomic_load_n(&counters[thread].retired, __ATOMIC_RELAXED); }

static void on_thread(plugin_id id, unsigned thread) {
  (void)id;
  if (thread >= MAX_THREADS) fail("the program has more than 256 threads");
  pthread_mutex_lock(&lock);
  if (thread >= threads) threads = thread + 1;
  pthread_mutex_unlock(&lock);
}

// length: instructions of the block. Only the owner writes a counter, so a plain addition loses nothing.
static void on_block(unsigned thread, void *length) {
  __atomic_store_n(&counters[thread].retired, counters[thread].retired + (uintptr_t)length, __ATOMIC_RELAXED);
}

// to_come: instructions of the block after the hint.
static void on_begin(unsigned thread, void *to_come) {
  pthread_mutex_lock(&lock);
  if (region_open) unbalanced_marks++;
  region_open = true;
  for (unsigned other = 0; other < MAX_THREADS; other++) at_begin[other] = retired_by(other);
  at_begin[thread] -= (uintptr_t)to_come;
  pthread_mutex_unlock(&lock);
}

// to_come: instructions of the block from the hint on, itself included.
static void on_end(unsigned thread, void *to_come) {
  pthread_mutex_lock(&lock);
  if (!region_open) {
    unbalanced_marks++;
  } else {
    region_open = false;
    if (region_count == region_capacity) {
      region_capacity = region_capacity ? 2 * region_capacity : 16;
      regions = realloc(regions, region_capacity * sizeof *regions);
      if (!regions) fail("no memory for another region");
    }
    uint64_t *region = regions[region_count++];
    for (unsigned other = 0; other < MAX_THREADS; other++) region[other] = retired_by(other) - at_begin[other];
    region[thread] -= (uintptr_t)to_come;
  }
  pthread_mutex_unlock(&lock);
}

static uint32_t instruction_word(const struct qemu_plugin_insn *instruction) {
  uint32_t word = 0;
#if PLUGIN_API >= 3
  qemu_plugin_insn_data(instruction, &word, sizeof word);
#else
  memcpy(&word, qemu_plugin_insn_data(instruction), sizeof word);
#endif
  return word;
}

static uint32_t hint_word(uint32_t number) { return 0xd503201fu | number << 5; }

static void on_translation(plugin_id id, struct qemu_plugin_tb *block) {
  (void)id;
  size_t length = qemu_plugin_tb_n_insns(block);
  qemu_plugin_register_vcpu_tb_exec_cb(block, on_block, NO_REGISTERS, (void *)length);
  for (size_t index = 0; index < length; index++) {
    struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(block, index);
    uint32_t word = instruction_word(instruction);
    if (word == hint_word(BEGIN_HINT))
      qemu_plugin_register_vcpu_insn_exec_cb(instruction, on_begin, NO_REGISTERS, (void *)(length - index - 1));
    else if (word == hint_word(END_HINT))
      qemu_plugin_register_vcpu_insn_exec_cb(instruction, on_end, NO_REGISTERS, (void *)(length - index));
  }
}

static void write_counts(FILE *file, const uint64_t *counts) {
  fputc('[', file);
  for (unsigned thread = 0; thread < threads; thread++)
    fprintf(file, "%s%llu", thread ? ", " : "", (unsigned long long)counts[thread]);
  fputc(']', file);
}

static void on_exit_of_guest(plugin_id id, void *unused) {
  (void)id, (void)unused;
  uint64_t program[MAX_THREADS];
  for (unsigned thread = 0; thread < MAX_THREADS; thread++) program[thread] = retired_by(thread);
  FILE *file = fopen(output_path, "w");
  if (!file) fail("cannot write the output file");
  fprintf(file, "{\"schema\": \"sparrow-instruction-count\", \"version\": 1, \"unbalanced_marks\": %zu,\n\"program\": ",
          unbalanced_marks + region_open);
  write_counts(file, program);
  fputs(",\n\"regions\": [", file);
  for (size_t index = 0; index < region_count; index++) {
    fputs(index ? ",\n" : "\n", file);
    write_counts(file, regions[index]);
  }
  fputs("]}\n", file);
  if (fclose(file)) fail("cannot write the output file");
}

// The second argument describes the emulated machine; nothing of it is needed.
EXPORT int qemu_plugin_install(plugin_id id, const void *machine, int argument_count, char **arguments) {
  (void)machine;
  static const char option[] = "output=";
  if (argument_count != 1 || strncmp(arguments[0], option, sizeof option - 1) != 0) {
    fprintf(stderr, "instruction counter: expected the one argument output=FILE\n");
    return 1;
  }
  output_path = strdup(arguments[0] + sizeof option - 1);
  if (!output_path) return 1;
  qemu_plugin_register_vcpu_init_cb(id, on_thread);
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
  qemu_plugin_register_atexit_cb(id, on_exit_of_guest, NULL);
  return 0;
}
