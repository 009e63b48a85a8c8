// Counts the instructions that a guest program retires under QEMU's user-mode emulation, thread by thread.
//
// The guest marks what is to be counted with unallocated hints, which every AArch64 core runs as NOP:
//   hint #120   a region begins, in its section 0
//   hint #121   the region ends
//   hint #122   on the thread that began the region: its section ends, the next one begins
//   hint #123   on any thread: one task is taken from a list that the threads share
//   hint #124   such a list is handed out; the one before it is done
// What all threads retire between the first two belongs to the region, those two hints do not; hint #122 is the last
// instruction of the section that it ends. A program may have many regions, one after another. They are taken for
// repetitions of the same work: sections are summed up by their index over all regions, but for their lists, which are
// those of the first. Outside of regions, the last three hints mean nothing.
//
// How it counts: each virtual CPU (one a guest thread) has one counter that only grows, by the length of each
// translation block as the block is entered. A mark subtracts what of its block is still to come, so that regions and
// sections are exact to the instruction. The only cost is one call and one addition a block; nothing is shared between
// threads, so no count is lost. All a mark does is to take the counters' values. What is counted in detail goes to a
// tally of the thread's own for the current section.
//
// Arguments: output=FILE, and optionally
//   blocks=1     also count how often each translation block runs. A mark splits its block into segments that are
//                counted apart, so that executions times lengths add up to the instructions.
//   memory=1     also count loads, stores and their bytes, and follow the memory that is resident.
//   cache=SIZE:WAYS:LINE:SIZE:WAYS:LINE
//                also simulate a first and a second level of data cache, sizes in bytes, lines a power of two, least
//                recently used line out first, one pair a thread; given again, another pair beside it. They are warm
//                when a region begins: only the counting stops outside.
//
// At exit it writes to FILE, as JSON:
//   {"schema": "sparrow-instruction-count", "version": 2, "unbalanced_marks": 0,
//    "program": [for each thread: instructions of the whole program],
//    "peak_memory_bytes": pages that were resident at once, times 4096,
//    "regions": [for each region: [for each thread: instructions], ...],
//    "sections": [for each section: {"tasks": .., "instructions": [for each thread], "memory": [for each thread:
//                 [loads, stores, bytes loaded, bytes stored], ...], "caches": [for each pair: [for each thread:
//                 [lines that the first level lacked, lines that the second lacked as well], ...], ...],
//                 "lists": [[for each task, in the order of taking: instructions], ...]}, ...],
//    "blocks": [{"code": instruction bytes in hexadecimal, "executions": {section: [for each thread], ...}}, ...]}
// where peak memory, memory, caches and blocks are left out unless asked for, and blocks name only the sections that
// they ran in. A task lasts until its thread takes the next one, or its section or the next list begins; it may be off
// by a block. QEMU splits accesses of 16 bytes in two. The same bytes may come as several blocks, from several
// addresses.
//
// A page is resident from the first instruction that runs in it, loads from it or stores to it until munmap, mremap,
// madvise or brk gives it back. That repeats exactly and knows nothing of the emulator's own memory; a kernel that
// reads files ahead may hold more.
//
// QEMU's plugin interface is declared here because Linux distributions do not package its header.
// Built with -DPLUGIN_API=1 for QEMU before 9.0, 2 for 9.0, 3 for 9.1 and later.
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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
extern void qemu_plugin_register_vcpu_syscall_cb(plugin_id,
                                                 void (*)(plugin_id, unsigned, int64_t, uint64_t, uint64_t, uint64_t,
                                                          uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));
extern void qemu_plugin_register_vcpu_syscall_ret_cb(plugin_id, void (*)(plugin_id, unsigned, int64_t, int64_t));
extern bool qemu_plugin_mem_is_store(uint32_t);
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
#if PLUGIN_API >= 3
extern size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *, void *, size_t);
#else
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
#endif

EXPORT int qemu_plugin_version = PLUGIN_API;

enum { MAX_THREADS = 256, MAX_PAIRS = 64, MAX_SECTIONS = 1 << 16, PAGE_SHIFT = 12 };
enum mark { BEGIN_HINT = 120, END_HINT = 121, SECTION_HINT = 122, TASK_HINT = 123, LIST_HINT = 124 };
enum { OUTSIDE = 0 };  // of regions; 1 + k stands for section k

// What one thread did in one section.
struct tally {
  uint64_t tasks, loads, stores, bytes_loaded, bytes_stored;
  uint64_t misses[MAX_PAIRS][2];
  uint64_t *executions;  // by segment number
  size_t capacity;
};

// Only the thread itself writes here. A cache line of its own: threads must not slow one another down.
static struct thread {
  _Alignas(64) uint64_t retired;
  size_t place;         // OUTSIDE or 1 + section, as this thread saw it last
  struct tally *tally;  // tallies[place]
  struct tally **tallies;
  size_t tally_capacity;
  uint64_t last_granule, last_page;  // plus one
  uint64_t *l1_lines[MAX_PAIRS], *l2_lines[MAX_PAIRS];
  uint64_t arguments[3];  // of the system call that it is in
  size_t task;            // that it works on, plus one, of the last list
  uint64_t task_begin;
} threads[MAX_THREADS];
static unsigned thread_count;  // highest index seen, plus one

static size_t current_place;  // OUTSIDE or 1 + section

// Everything below is guarded by the lock; marks are rare.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
typedef uint64_t by_thread[MAX_THREADS];
static by_thread at_begin, at_section;
static by_thread *regions, *sections;
static size_t region_count, region_capacity, section_count, section_capacity, unbalanced_marks;
static unsigned region_thread;
static char *output_path;
static pid_t process;

// The lists of tasks of the first region.
static struct list {
  size_t section;
  uint64_t *tasks;  // instructions of each
  size_t count, capacity;
} *lists;
static size_t list_count, list_capacity;
static bool list_open;  // the last list's section has not ended

// A run of instructions without a mark inside: a whole block, or a part of one. Never freed.
struct segment {
  size_t number, length, block_length;
  uint32_t words[];
};
static bool count_blocks;
static struct segment **segments;
static size_t segment_count, segment_capacity;

// Lines lie set by set, the latest used of a set first, as line numbers plus one, zero where empty.
struct cache_geometry {
  unsigned long long bytes, ways, line;
  unsigned shift;           // log2 of the line
  uint64_t sets, set_mask;  // mask 0 unless the number of sets is a power of two
};
static bool watch_memory;
// Pairs with the same first level share it: what misses there goes to the second level of each.
static struct cache_geometry l1s[MAX_PAIRS], l2s[MAX_PAIRS];
static unsigned l1_count, pair_count, l1_of_pair[MAX_PAIRS];
static unsigned granule_shift = 6;  // of the shortest line: a second access to a granule in a row changes nothing

// One bit a page of the 48-bit address space, a bitmap a GiB.
enum { PAGES_A_BITMAP = 1 << 18, BITMAPS = 1 << 18 };
static uint64_t *bitmaps[BITMAPS];
static uint64_t resident, peak, program_break;

static void fail(const char *what) {
  fprintf(stderr, "instruction counter: %s\n", what);
  abort();
}

static void *allocate(size_t count, size_t bytes) {
  void *memory = calloc(count, bytes);
  if (!memory) fail("no memory");
  return memory;
}

// `memory` with room for more than `index` elements; what is new is zero.
static void *grow(void *memory, size_t *capacity, size_t index, size_t bytes) {
  if (index < *capacity) return memory;
  size_t wanted = 2 * index + 16;
  char *grown = realloc(memory, wanted * bytes);
  if (!grown) fail("no memory");
  memset(grown + *capacity * bytes, 0, (wanted - *capacity) * bytes);
  *capacity = wanted;
  return grown;
}

static uint64_t retired_by(unsigned thread) { return __atomic_load_n(&threads[thread].retired, __ATOMIC_RELAXED); }

static struct tally *tally_of(struct thread *own) {
  size_t place = __atomic_load_n(&current_place, __ATOMIC_RELAXED);
  if (place != own->place) {
    own->tallies = grow(own->tallies, &own->tally_capacity, place, sizeof *own->tallies);
    if (!own->tallies[place]) own->tallies[place] = allocate(1, sizeof **own->tallies);
    own->place = place;
    own->tally = own->tallies[place];
  }
  return own->tally;
}

static void on_thread(plugin_id id, unsigned thread) {
  (void)id;
  if (thread >= MAX_THREADS) fail("the program has more than 256 threads");
  pthread_mutex_lock(&lock);
  if (thread >= thread_count) thread_count = thread + 1;
  pthread_mutex_unlock(&lock);
  struct thread *own = &threads[thread];
  if (own->tally) return;  // it takes the place of one that has ended
  own->place = SIZE_MAX;
  tally_of(own);
  for (unsigned index = 0; index < l1_count; index++)
    own->l1_lines[index] = allocate(l1s[index].sets * l1s[index].ways, sizeof(uint64_t));
  for (unsigned index = 0; index < pair_count; index++)
    own->l2_lines[index] = allocate(l2s[index].sets * l2s[index].ways, sizeof(uint64_t));
}

// Only the owner writes a counter, so a plain addition loses nothing.
static void retire(struct thread *own, uint64_t instructions) {
  __atomic_store_n(&own->retired, own->retired + instructions, __ATOMIC_RELAXED);
}

static void on_block(unsigned thread, void *length) { retire(&threads[thread], (uintptr_t)length); }

static void end_task(struct thread *own) {
  if (own->task) lists[list_count - 1].tasks[own->task - 1] = retired_by((unsigned)(own - threads)) - own->task_begin;
  own->task = 0;
}

static void end_list(void) {
  for (unsigned thread = 0; thread < thread_count; thread++) end_task(&threads[thread]);
  list_open = false;
}

// Ends the current section of the region where this thread has `to_come` instructions of its block before it.
static void end_section(unsigned thread, uint64_t to_come) {
  size_t section = current_place - 1;
  if (section >= MAX_SECTIONS) fail("a region has more than 65536 sections");
  sections = grow(sections, &section_capacity, section, sizeof *sections);
  if (section >= section_count) section_count = section + 1;
  end_list();
  for (unsigned other = 0; other < thread_count; other++) {
    uint64_t now = retired_by(other) - (other == thread ? to_come : 0);
    sections[section][other] += now - at_section[other];
    at_section[other] = now;
  }
}

static void set_place(size_t place) { __atomic_store_n(&current_place, place, __ATOMIC_RELAXED); }

// to_come: instructions of the block after the hint.
static void on_begin(unsigned thread, void *to_come) {
  pthread_mutex_lock(&lock);
  if (current_place != OUTSIDE) unbalanced_marks++;
  region_thread = thread;
  for (unsigned other = 0; other < MAX_THREADS; other++) at_begin[other] = retired_by(other);
  at_begin[thread] -= (uintptr_t)to_come;
  memcpy(at_section, at_begin, sizeof at_section);
  set_place(1);
  pthread_mutex_unlock(&lock);
}

static void on_section(unsigned thread, void *to_come) {
  pthread_mutex_lock(&lock);
  if (current_place != OUTSIDE && thread == region_thread) {
    end_section(thread, (uintptr_t)to_come);
    set_place(current_place + 1);
  }
  pthread_mutex_unlock(&lock);
}

// to_come: instructions of the block from the hint on, itself included.
static void on_end(unsigned thread, void *to_come) {
  pthread_mutex_lock(&lock);
  if (current_place == OUTSIDE) {
    unbalanced_marks++;
  } else {
    end_section(thread, (uintptr_t)to_come);
    set_place(OUTSIDE);
    regions = grow(regions, &region_capacity, region_count, sizeof *regions);
    for (unsigned other = 0; other < thread_count; other++)
      regions[region_count][other] = at_section[other] - at_begin[other];
    region_count++;
  }
  pthread_mutex_unlock(&lock);
}

static void on_list(unsigned thread, void *unused) {
  (void)unused;
  pthread_mutex_lock(&lock);
  if (current_place != OUTSIDE && region_count == 0 && thread == region_thread) {
    end_list();
    lists = grow(lists, &list_capacity, list_count, sizeof *lists);
    lists[list_count++].section = current_place - 1;
    list_open = true;
  }
  pthread_mutex_unlock(&lock);
}

static void on_task(unsigned thread, void *unused) {
  (void)unused;
  struct thread *own = &threads[thread];
  tally_of(own)->tasks++;
  pthread_mutex_lock(&lock);
  if (list_open) {
    struct list *list = &lists[list_count - 1];
    end_task(own);
    list->tasks = grow(list->tasks, &list->capacity, list->count, sizeof *list->tasks);
    own->task = ++list->count;
    own->task_begin = own->retired;
  }
  pthread_mutex_unlock(&lock);
}

static void execute(struct thread *own, const struct segment *segment) {
  struct tally *tally = tally_of(own);
  if (segment->number >= tally->capacity)
    tally->executions = grow(tally->executions, &tally->capacity, segment->number, sizeof *tally->executions);
  tally->executions[segment->number]++;
}

static void on_recorded_block(unsigned thread, void *first_segment) {
  const struct segment *segment = first_segment;
  retire(&threads[thread], segment->block_length);
  execute(&threads[thread], segment);
}

static void on_segment(unsigned thread, void *segment) { execute(&threads[thread], segment); }

// The bitmap that holds a page, NULL if none of its GiB was ever touched and it is not to be made.
static uint64_t *bitmap_of(uint64_t page, bool make) {
  uint64_t **place = &bitmaps[page / PAGES_A_BITMAP % BITMAPS], *found = __atomic_load_n(place, __ATOMIC_ACQUIRE);
  if (found || !make) return found;
  uint64_t *fresh = allocate(PAGES_A_BITMAP / 64, sizeof *fresh);
  if (__atomic_compare_exchange_n(place, &found, fresh, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) return fresh;
  free(fresh);
  return found;
}

static void touch_page(uint64_t page) {
  uint64_t *word = bitmap_of(page, true) + page % PAGES_A_BITMAP / 64, bit = 1ull << page % 64;
  if (__atomic_load_n(word, __ATOMIC_RELAXED) & bit || __atomic_fetch_or(word, bit, __ATOMIC_RELAXED) & bit) return;
  uint64_t now = __atomic_add_fetch(&resident, 1, __ATOMIC_RELAXED), highest = __atomic_load_n(&peak, __ATOMIC_RELAXED);
  while (now > highest &&
         !__atomic_compare_exchange_n(&peak, &highest, now, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
}

// Whether the page was resident.
static bool release_page(uint64_t page) {
  uint64_t *words = bitmap_of(page, false), bit = 1ull << page % 64;
  if (!words || !(__atomic_fetch_and(words + page % PAGES_A_BITMAP / 64, ~bit, __ATOMIC_RELAXED) & bit)) return false;
  __atomic_sub_fetch(&resident, 1, __ATOMIC_RELAXED);
  return true;
}

static uint64_t pages_up_to(uint64_t address) { return (address + (1 << PAGE_SHIFT) - 1) >> PAGE_SHIFT; }

// Releases the pages of some memory. Those below the size `moved` are resident at `target` afterwards.
static void release(uint64_t address, uint64_t bytes, uint64_t target, uint64_t moved) {
  uint64_t first = address >> PAGE_SHIFT, stop = pages_up_to(address + bytes);
  for (uint64_t page = first; page < stop; page++) {
    if (!bitmap_of(page, false)) page |= PAGES_A_BITMAP - 1;  // none of this GiB
    else if (release_page(page) && page - first < pages_up_to(moved)) touch_page((target >> PAGE_SHIFT) + page - first);
  }
}

static void on_system_call(plugin_id id, unsigned thread, int64_t number, uint64_t first, uint64_t second,
                           uint64_t third, uint64_t fourth, uint64_t fifth, uint64_t sixth, uint64_t seventh,
                           uint64_t eighth) {
  (void)id, (void)number, (void)fourth, (void)fifth, (void)sixth, (void)seventh, (void)eighth;
  uint64_t *arguments = threads[thread].arguments;
  arguments[0] = first, arguments[1] = second, arguments[2] = third;
}

static void on_system_call_end(plugin_id id, unsigned thread, int64_t number, int64_t result) {
  enum { BRK = 214, MUNMAP = 215, MREMAP = 216, MADVISE = 233, DONTNEED = 4, LARGEST_ERROR = 4095 };
  (void)id;
  struct thread *own = &threads[thread];
  const uint64_t *arguments = own->arguments;
  if (result < 0 && result >= -LARGEST_ERROR) return;
  if (number == MUNMAP || (number == MADVISE && arguments[2] == DONTNEED)) {
    release(arguments[0], arguments[1], 0, 0);
  } else if (number == MREMAP) {
    release(arguments[0], arguments[1], (uint64_t)result, arguments[2]);
  } else if (number == BRK) {
    uint64_t now = pages_up_to((uint64_t)result) << PAGE_SHIFT;
    if (now < program_break) release(now, program_break - now, 0, 0);
    program_break = now;
  } else {
    return;
  }
  own->last_granule = own->last_page = 0;
}

// Whether the line was in the cache; it is its set's latest used afterwards.
static bool touch_line(uint64_t *lines, const struct cache_geometry *cache, uint64_t line) {
  uint64_t *set = lines + (cache->set_mask ? line & cache->set_mask : line % cache->sets) * cache->ways;
  if (set[0] == line + 1) return true;
  size_t way = 1;
  while (way < cache->ways && set[way] != line + 1) way++;
  bool hit = way < cache->ways;
  memmove(set + 1, set, (hit ? way : cache->ways - 1) * sizeof *set);
  set[0] = line + 1;
  return hit;
}

static void simulate(struct thread *own, struct tally *tally, uint64_t first_byte, uint64_t last_byte) {
  for (unsigned l1 = 0; l1 < l1_count; l1++)
    for (uint64_t line = first_byte >> l1s[l1].shift; line <= last_byte >> l1s[l1].shift; line++) {
      if (touch_line(own->l1_lines[l1], &l1s[l1], line)) continue;
      for (unsigned pair = 0; pair < pair_count; pair++) {
        if (l1_of_pair[pair] != l1) continue;
        tally->misses[pair][0]++;
        uint64_t l2_line = line << l1s[l1].shift >> l2s[pair].shift;
        tally->misses[pair][1] += !touch_line(own->l2_lines[pair], &l2s[pair], l2_line);
      }
    }
}

static void on_access(unsigned thread, uint32_t info, uint64_t address, void *unused) {
  (void)unused;
  struct thread *own = &threads[thread];
  struct tally *tally = tally_of(own);
  uint64_t bytes = 1ull << qemu_plugin_mem_size_shift(info), last_byte = address + bytes - 1;
  if (qemu_plugin_mem_is_store(info)) {
    tally->stores++;
    tally->bytes_stored += bytes;
  } else {
    tally->loads++;
    tally->bytes_loaded += bytes;
  }
  uint64_t granule = address >> granule_shift;
  if (granule + 1 == own->last_granule && last_byte >> granule_shift == granule) return;
  own->last_granule = (last_byte >> granule_shift) + 1;
  if ((last_byte >> PAGE_SHIFT) + 1 != own->last_page || address >> PAGE_SHIFT != last_byte >> PAGE_SHIFT) {
    touch_page(address >> PAGE_SHIFT);
    touch_page(last_byte >> PAGE_SHIFT);
    own->last_page = (last_byte >> PAGE_SHIFT) + 1;
  }
  simulate(own, tally, address, last_byte);
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

// The mark that an instruction is, 0 for all others.
static unsigned mark_of(const struct qemu_plugin_insn *instruction) {
  uint32_t word = instruction_word(instruction), number = (word - 0xd503201fu) >> 5;
  bool hint = (word & 0xfffff01fu) == 0xd503201fu;
  return hint && number >= BEGIN_HINT && number <= LIST_HINT ? number : 0;
}

// The instructions of a block from `first` up to `stop`, as a new segment.
static struct segment *add_segment(const struct qemu_plugin_tb *block, size_t first, size_t stop, size_t block_length) {
  struct segment *segment = allocate(1, sizeof *segment + (stop - first) * sizeof segment->words[0]);
  segment->length = stop - first;
  segment->block_length = block_length;
  for (size_t index = first; index < stop; index++)
    segment->words[index - first] = instruction_word(qemu_plugin_tb_get_insn(block, index));
  pthread_mutex_lock(&lock);
  segment->number = segment_count++;
  segments = grow(segments, &segment_capacity, segment->number, sizeof *segments);
  segments[segment->number] = segment;
  pthread_mutex_unlock(&lock);
  return segment;
}

// A segment counts for the section that it is entered in: with its block, or by the mark before it, whose own callback
// is registered first and has moved on by then. A block that begins with a region's mark begins with an empty segment.
static void record_segments(struct qemu_plugin_tb *block, size_t length) {
  for (size_t first = 0, stop, next; first < length || first == 0; first = next) {
    unsigned mark = 0;
    for (stop = first; stop < length; stop++) {
      mark = mark_of(qemu_plugin_tb_get_insn(block, stop));
      if (mark && mark < TASK_HINT) break;
    }
    next = stop + 1;
    if (mark == SECTION_HINT) stop++;
    if (first && first == stop) continue;
    struct segment *segment = add_segment(block, first, stop, length);
    if (first == 0) qemu_plugin_register_vcpu_tb_exec_cb(block, on_recorded_block, NO_REGISTERS, segment);
    else
      qemu_plugin_register_vcpu_insn_exec_cb(qemu_plugin_tb_get_insn(block, first - 1), on_segment, NO_REGISTERS,
                                             segment);
  }
}

static void register_mark(struct qemu_plugin_insn *instruction, unsigned mark, size_t after) {
  switch (mark) {
    case BEGIN_HINT:
      qemu_plugin_register_vcpu_insn_exec_cb(instruction, on_begin, NO_REGISTERS, (void *)after);
      break;
    case END_HINT:
      qemu_plugin_register_vcpu_insn_exec_cb(instruction, on_end, NO_REGISTERS, (void *)(after + 1));
      break;
    case SECTION_HINT:
      qemu_plugin_register_vcpu_insn_exec_cb(instruction, on_section, NO_REGISTERS, (void *)after);
      break;
    case TASK_HINT:
      qemu_plugin_register_vcpu_insn_exec_cb(instruction, on_task, NO_REGISTERS, NULL);
      break;
    case LIST_HINT:
      qemu_plugin_register_vcpu_insn_exec_cb(instruction, on_list, NO_REGISTERS, NULL);
      break;
  }
}

static void on_translation(plugin_id id, struct qemu_plugin_tb *block) {
  (void)id;
  size_t length = qemu_plugin_tb_n_insns(block);
  for (size_t index = 0; index < length; index++) {
    struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(block, index);
    register_mark(instruction, mark_of(instruction), length - index - 1);
    if (watch_memory) qemu_plugin_register_vcpu_mem_cb(instruction, on_access, NO_REGISTERS, READ_OR_WRITE, NULL);
  }
  if (watch_memory) {
    touch_page(qemu_plugin_tb_vaddr(block) >> PAGE_SHIFT);
    touch_page((qemu_plugin_tb_vaddr(block) + 4 * length - 1) >> PAGE_SHIFT);
  }
  if (count_blocks) record_segments(block, length);
  else qemu_plugin_register_vcpu_tb_exec_cb(block, on_block, NO_REGISTERS, (void *)length);
}

static void write_counts(FILE *file, const uint64_t *counts) {
  fputc('[', file);
  for (unsigned thread = 0; thread < thread_count; thread++)
    fprintf(file, "%s%llu", thread ? ", " : "", (unsigned long long)counts[thread]);
  fputc(']', file);
}

static const struct tally *tally_at(unsigned thread, size_t section) {
  static const struct tally nothing;
  const struct thread *own = &threads[thread];
  const struct tally *found = section + 1 < own->tally_capacity ? own->tallies[section + 1] : NULL;
  return found ? found : &nothing;
}

static void write_section(FILE *file, size_t section) {
  uint64_t tasks = 0;
  for (unsigned thread = 0; thread < thread_count; thread++) tasks += tally_at(thread, section)->tasks;
  fprintf(file, "%s\n{\"tasks\": %llu, \"instructions\": ", section ? "," : "", (unsigned long long)tasks);
  write_counts(file, sections[section]);
  if (watch_memory) fputs(", \"memory\": [", file);
  for (unsigned thread = 0; watch_memory && thread < thread_count; thread++) {
    const struct tally *tally = tally_at(thread, section);
    fprintf(file, "%s[%llu, %llu, %llu, %llu]", thread ? ", " : "", (unsigned long long)tally->loads,
            (unsigned long long)tally->stores, (unsigned long long)tally->bytes_loaded,
            (unsigned long long)tally->bytes_stored);
  }
  if (watch_memory) fputs("], \"caches\": [", file);
  for (unsigned pair = 0; pair < pair_count; pair++) {
    fputs(pair ? ", [" : "[", file);
    for (unsigned thread = 0; thread < thread_count; thread++) {
      const uint64_t *misses = tally_at(thread, section)->misses[pair];
      fprintf(file, "%s[%llu, %llu]", thread ? ", " : "", (unsigned long long)misses[0], (unsigned long long)misses[1]);
    }
    fputc(']', file);
  }
  fputs(watch_memory ? "], \"lists\": [" : ", \"lists\": [", file);
  bool written = false;
  for (size_t index = 0; index < list_count; index++) {
    if (lists[index].section != section) continue;
    for (size_t task = 0; task < lists[index].count; task++)
      fprintf(file, "%s%llu", task ? ", " : written ? ", [" : "[", (unsigned long long)lists[index].tasks[task]);
    if (lists[index].count) fputc(']', file), written = true;
  }
  fputs("]}", file);
}

static void write_blocks(FILE *file) {
  fputs(",\n\"blocks\": [", file);
  bool written = false;
  for (size_t number = 0; number < segment_count; number++) {
    bool executed = false;
    for (size_t section = 0; section < section_count && segments[number]->length; section++) {
      by_thread counts = {0};
      uint64_t total = 0;
      for (unsigned thread = 0; thread < thread_count; thread++) {
        const struct tally *tally = tally_at(thread, section);
        if (number < tally->capacity) total += counts[thread] = tally->executions[number];
      }
      if (!total) continue;
      if (!executed) {
        fprintf(file, "%s\n{\"code\": \"", written ? "," : "");
        for (size_t index = 0; index < segments[number]->length; index++)
          for (unsigned byte = 0; byte < 4; byte++)
            fprintf(file, "%02x", segments[number]->words[index] >> 8 * byte & 255);
        fputs("\", \"executions\": {", file);
      }
      fprintf(file, "%s\"%zu\": ", executed ? ", " : "", section);
      write_counts(file, counts);
      executed = written = true;
    }
    if (executed) fputs("}}", file);
  }
  fputc(']', file);
}

static void on_exit_of_guest(plugin_id id, void *unused) {
  (void)id, (void)unused;
  if (getpid() != process) return;  // a child that the program forked
  by_thread program;
  for (unsigned thread = 0; thread < MAX_THREADS; thread++) program[thread] = retired_by(thread);
  FILE *file = fopen(output_path, "w");
  if (!file) fail("cannot write the output file");
  fprintf(file, "{\"schema\": \"sparrow-instruction-count\", \"version\": 2, \"unbalanced_marks\": %zu,\n",
          unbalanced_marks + (current_place != OUTSIDE));
  if (watch_memory) fprintf(file, "\"peak_memory_bytes\": %llu,\n", (unsigned long long)peak << PAGE_SHIFT);
  fputs("\"program\": ", file);
  write_counts(file, program);
  fputs(",\n\"regions\": [", file);
  for (size_t index = 0; index < region_count; index++) {
    fputs(index ? ",\n" : "\n", file);
    write_counts(file, regions[index]);
  }
  fputs("],\n\"sections\": [", file);
  for (size_t section = 0; section < section_count; section++) write_section(file, section);
  fputc(']', file);
  if (count_blocks) write_blocks(file);
  fputs("}\n", file);
  if (fclose(file)) fail("cannot write the output file");
}

static const char *value_of(const char *argument, const char *option) {
  size_t length = strlen(option);
  return strncmp(argument, option, length) == 0 && argument[length] == '=' ? argument + length + 1 : NULL;
}

static bool complete_geometry(struct cache_geometry *cache) {
  if (!cache->line || cache->line & (cache->line - 1) || !cache->ways || !cache->bytes ||
      cache->bytes % (cache->ways * cache->line))
    return false;
  cache->shift = (unsigned)__builtin_ctzll(cache->line);
  cache->sets = cache->bytes / cache->line / cache->ways;
  cache->set_mask = cache->sets & (cache->sets - 1) ? 0 : cache->sets - 1;
  return true;
}

static bool parse_pair(const char *text) {
  struct cache_geometry l1 = {0}, l2 = {0};
  int used = 0;
  if (pair_count == MAX_PAIRS ||
      sscanf(text, "%llu:%llu:%llu:%llu:%llu:%llu%n", &l1.bytes, &l1.ways, &l1.line, &l2.bytes, &l2.ways, &l2.line,
             &used) != 6 ||
      text[used] || !complete_geometry(&l1) || !complete_geometry(&l2))
    return false;
  unsigned index = 0;
  while (index < l1_count && memcmp(&l1s[index], &l1, sizeof l1)) index++;
  if (index == l1_count) l1s[l1_count++] = l1;
  if (l1.shift < granule_shift) granule_shift = l1.shift;
  l1_of_pair[pair_count] = index;
  l2s[pair_count++] = l2;
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
    } else if ((value = value_of(arguments[index], "memory")) && !strcmp(value, "1")) {
      watch_memory = true;
    } else if ((value = value_of(arguments[index], "cache")) && parse_pair(value)) {
      watch_memory = true;
    } else {
      fprintf(stderr, "instruction counter: bad argument %s\n", arguments[index]);
      return 1;
    }
  }
  if (!output_path) {
    fprintf(stderr, "instruction counter: expected output=FILE [blocks=1] [memory=1] [cache=SIZE:WAYS:LINE:"
                    "SIZE:WAYS:LINE]...\n");
    return 1;
  }
  process = getpid();
  qemu_plugin_register_vcpu_init_cb(id, on_thread);
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
  qemu_plugin_register_atexit_cb(id, on_exit_of_guest, NULL);
  if (watch_memory) {
    qemu_plugin_register_vcpu_syscall_cb(id, on_system_call);
    qemu_plugin_register_vcpu_syscall_ret_cb(id, on_system_call_end);
  }
  return 0;
}
