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
// Arguments: output=FILE, and optionally
//   blocks=1     also count how often each translation block runs inside the regions. A mark splits its block into
//                segments that are counted apart, so that executions times lengths add up to the instructions.
//   cache=SIZE:WAYS:LINE,SIZE:WAYS:LINE
//                also simulate a first and a second level of data cache, sizes in bytes, least recently used line
//                out first, one pair a thread. It is warm when a region begins: only the counting stops outside.
//
// At exit it writes to FILE, as JSON:
//   {"schema": "sparrow-instruction-count", "version": 1, "unbalanced_marks": 0,
//    "program": [for each thread: instructions of the whole program],
//    "regions": [for each region: [for each thread: instructions], ...],
//    "blocks": [{"code": instruction bytes in hexadecimal, "executions": [for each thread: executions]}, ...],
//    "caches": [for each thread: {"accesses": .., "bytes": .., "l1_misses": .., "l2_misses": ..}, ...]}
// where the last two are left out unless asked for, and sum up all regions. QEMU splits accesses of 16 bytes in two.
// The same bytes may come as several blocks, from several addresses.
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
enum memory_access { READ = 1, WRITE = 2, READ_OR_WRITE = 3 };

extern void qemu_plugin_register_vcpu_init_cb(plugin_id, void (*)(plugin_id, unsigned));
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *),
                                                 enum callback_flags, void *);
extern void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, void (*)(unsigned, void *),
                                                   enum callback_flags, void *);
extern void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *, void (*)(unsigned, uint32_t, uint64_t, void *),
                                             enum callback_flags, enum memory_access, void *);
extern unsigned qemu_plugin_mem_size_shift(uint32_t);
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
static bool region_open;  // also read without the lock, by what is counted in regions alone
static uint64_t at_begin[MAX_THREADS];
static uint64_t (*regions)[MAX_THREADS];
static size_t region_count, region_capacity, unbalanced_marks;
static char *output_path;

// A run of instructions without a mark: a whole block, or what lies between the marks of one. Never freed.
struct segment {
  size_t number, length;
  uint32_t words[];
};
static bool count_blocks;
static struct segment **segments;
static size_t segment_count, segment_capacity;

// Executions by segment number; each thread touches its own alone.
static struct executions {
  _Alignas(64) uint64_t *counts;
  size_t capacity;
} executions[MAX_THREADS];

struct cache_geometry {
  unsigned long long bytes, ways, line;
};
static bool simulate_caches;
static struct cache_geometry geometry[2];

// Line numbers plus one, zero where empty; the lines of a set follow one another, the latest used first.
static struct caches {
  _Alignas(64) uint64_t *lines[2];
  uint64_t accesses, bytes, misses[2];
} caches[MAX_THREADS];

static void fail(const char *what) {
  fprintf(stderr, "instruction counter: %s\n", what);
  abort();
}

static uint64_t retired_by(unsigned thread) { return __atomic_load_n(&counters[thread].retired, __ATOMIC_RELAXED); }

static bool in_region(void) { return __atomic_load_n(&region_open, __ATOMIC_RELAXED); }

static void set_region_open(bool open) { __atomic_store_n(&region_open, open, __ATOMIC_RELAXED); }

static void on_thread(plugin_id id, unsigned thread) {
  (void)id;
  if (thread >= MAX_THREADS) fail("the program has more than 256 threads");
  pthread_mutex_lock(&lock);
  if (thread >= threads) threads = thread + 1;
  pthread_mutex_unlock(&lock);
  for (int level = 0; simulate_caches && level < 2; level++)
    if (!caches[thread].lines[level]) {
      caches[thread].lines[level] = calloc(geometry[level].bytes / geometry[level].line, sizeof(uint64_t));
      if (!caches[thread].lines[level]) fail("no memory for the simulated caches");
    }
}

// length: instructions of the block. Only the owner writes a counter, so a plain addition loses nothing.
static void on_block(unsigned thread, void *length) {
  __atomic_store_n(&counters[thread].retired, counters[thread].retired + (uintptr_t)length, __ATOMIC_RELAXED);
}

// to_come: instructions of the block after the hint.
static void on_begin(unsigned thread, void *to_come) {
  pthread_mutex_lock(&lock);
  if (region_open) unbalanced_marks++;
  set_region_open(true);
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
    set_region_open(false);
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

static void on_segment(unsigned thread, void *data) {
  if (!in_region()) return;
  const struct segment *segment = data;
  struct executions *own = &executions[thread];
  if (segment->number >= own->capacity) {
    size_t capacity = 2 * segment->number + 1024;
    own->counts = realloc(own->counts, capacity * sizeof *own->counts);
    if (!own->counts) fail("no memory for the executions of blocks");
    memset(own->counts + own->capacity, 0, (capacity - own->capacity) * sizeof *own->counts);
    own->capacity = capacity;
  }
  own->counts[segment->number]++;
}

// Whether the line was in the cache; it is its set's latest used afterwards.
static bool touch(uint64_t *lines, const struct cache_geometry *cache, uint64_t line) {
  uint64_t *set = lines + line % (cache->bytes / cache->line / cache->ways) * cache->ways;
  size_t way = 0;
  while (way + 1 < cache->ways && set[way] != line + 1) way++;
  bool hit = set[way] == line + 1;
  memmove(set + 1, set, way * sizeof *set);
  set[0] = line + 1;
  return hit;
}

static void on_access(unsigned thread, uint32_t info, uint64_t address, void *unused) {
  (void)unused;
  struct caches *own = &caches[thread];
  bool counted = in_region();
  uint64_t bytes = 1ull << qemu_plugin_mem_size_shift(info), line_bytes = geometry[0].line;
  own->accesses += counted;
  own->bytes += counted ? bytes : 0;
  for (uint64_t line = address / line_bytes; line <= (address + bytes - 1) / line_bytes; line++)
    for (int level = 0; level < 2; level++) {
      if (touch(own->lines[level], &geometry[level], line * line_bytes / geometry[level].line)) break;
      own->misses[level] += counted;
    }
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

// The instructions of a block from `first` up to `stop`, as a new segment.
static struct segment *add_segment(const struct qemu_plugin_tb *block, size_t first, size_t stop) {
  struct segment *segment = malloc(sizeof *segment + (stop - first) * sizeof segment->words[0]);
  if (!segment) fail("no memory for another block");
  segment->length = stop - first;
  for (size_t index = first; index < stop; index++)
    segment->words[index - first] = instruction_word(qemu_plugin_tb_get_insn(block, index));
  pthread_mutex_lock(&lock);
  if (segment_count == segment_capacity) {
    segment_capacity = segment_capacity ? 2 * segment_capacity : 1024;
    segments = realloc(segments, segment_capacity * sizeof *segments);
    if (!segments) fail("no memory for another block");
  }
  segment->number = segment_count;
  segments[segment_count++] = segment;
  pthread_mutex_unlock(&lock);
  return segment;
}

static bool is_mark(const struct qemu_plugin_insn *instruction) {
  uint32_t word = instruction_word(instruction);
  return word == hint_word(BEGIN_HINT) || word == hint_word(END_HINT);
}

// A segment counts when it is entered with a region open: with its block, or by the mark before it, whose own callback
// is registered first and has opened or closed the region by then.
static void count_segments(struct qemu_plugin_tb *block, size_t length) {
  for (size_t first = 0, stop; first < length; first = stop + 1) {
    for (stop = first; stop < length && !is_mark(qemu_plugin_tb_get_insn(block, stop)); stop++) {}
    if (first == stop) continue;
    struct segment *segment = add_segment(block, first, stop);
    if (first == 0)
      qemu_plugin_register_vcpu_tb_exec_cb(block, on_segment, NO_REGISTERS, segment);
    else
      qemu_plugin_register_vcpu_insn_exec_cb(qemu_plugin_tb_get_insn(block, first - 1), on_segment, NO_REGISTERS,
                                             segment);
  }
}

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
    if (simulate_caches)
      qemu_plugin_register_vcpu_mem_cb(instruction, on_access, NO_REGISTERS, READ_OR_WRITE, NULL);
  }
  if (count_blocks) count_segments(block, length);
}

static void write_counts(FILE *file, const uint64_t *counts) {
  fputc('[', file);
  for (unsigned thread = 0; thread < threads; thread++)
    fprintf(file, "%s%llu", thread ? ", " : "", (unsigned long long)counts[thread]);
  fputc(']', file);
}

static void write_blocks(FILE *file) {
  fputs(",\n\"blocks\": [", file);
  bool written = false;
  for (size_t number = 0; number < segment_count; number++) {
    uint64_t counts[MAX_THREADS] = {0}, total = 0;
    for (unsigned thread = 0; thread < threads; thread++)
      if (number < executions[thread].capacity) total += counts[thread] = executions[thread].counts[number];
    if (!total) continue;
    fprintf(file, "%s\n{\"code\": \"", written ? "," : "");
    for (size_t index = 0; index < segments[number]->length; index++)
      for (unsigned byte = 0; byte < 4; byte++) fprintf(file, "%02x", segments[number]->words[index] >> 8 * byte & 255);
    fputs("\", \"executions\": ", file);
    write_counts(file, counts);
    fputc('}', file);
    written = true;
  }
  fputc(']', file);
}

static void write_caches(FILE *file) {
  fputs(",\n\"caches\": [", file);
  for (unsigned thread = 0; thread < threads; thread++) {
    const struct caches *own = &caches[thread];
    fprintf(file, "%s\n{\"accesses\": %llu, \"bytes\": %llu, \"l1_misses\": %llu, \"l2_misses\": %llu}",
            thread ? "," : "", (unsigned long long)own->accesses, (unsigned long long)own->bytes,
            (unsigned long long)own->misses[0], (unsigned long long)own->misses[1]);
  }
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
  fputc(']', file);
  if (count_blocks) write_blocks(file);
  if (simulate_caches) write_caches(file);
  fputs("}\n", file);
  if (fclose(file)) fail("cannot write the output file");
}

static const char *value_of(const char *argument, const char *option) {
  size_t length = strlen(option);
  return strncmp(argument, option, length) == 0 && argument[length] == '=' ? argument + length + 1 : NULL;
}

static bool parse_caches(const char *text) {
  int used = 0;
  if (sscanf(text, "%llu:%llu:%llu,%llu:%llu:%llu%n", &geometry[0].bytes, &geometry[0].ways, &geometry[0].line,
             &geometry[1].bytes, &geometry[1].ways, &geometry[1].line, &used) != 6 || text[used])
    return false;
  for (int level = 0; level < 2; level++) {
    const struct cache_geometry *cache = &geometry[level];
    if (!cache->line || !cache->ways || !cache->bytes || cache->bytes / cache->line % cache->ways ||
        cache->bytes % cache->line || cache->bytes / cache->line < cache->ways)
      return false;
  }
  return true;
}

// The second argument describes the emulated machine; nothing of it is needed.
EXPORT int qemu_plugin_install(plugin_id id, const void *machine, int argument_count, char **arguments) {
  (void)machine;
  for (int index = 0; index < argument_count; index++) {
    const char *value;
    if ((value = value_of(arguments[index], "output"))) {
      output_path = strdup(value);
    } else if ((value = value_of(arguments[index], "blocks")) && !strcmp(value, "1")) {
      count_blocks = true;
    } else if ((value = value_of(arguments[index], "cache")) && parse_caches(value)) {
      simulate_caches = true;
    } else {
      fprintf(stderr, "instruction counter: bad argument %s\n", arguments[index]);
      return 1;
    }
  }
  if (!output_path) {
    fprintf(stderr, "instruction counter: expected output=FILE [blocks=1] [cache=SIZE:WAYS:LINE,SIZE:WAYS:LINE]\n");
    return 1;
  }
  qemu_plugin_register_vcpu_init_cb(id, on_thread);
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
  qemu_plugin_register_atexit_cb(id, on_exit_of_guest, NULL);
  return 0;
}
