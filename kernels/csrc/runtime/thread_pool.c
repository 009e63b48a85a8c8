#define _POSIX_C_SOURCE 200809L

#include "thread_pool.h"

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "system.h"

enum { FUTEX_WAIT_PRIVATE = 128, FUTEX_WAKE_PRIVATE = 129 };
enum { MAX_CPUS = 64, FULL_SPEED = 1024 };

// Tasks that were given to one thread, on a cache line of their own.
struct share {
  // Number of the job above, tasks that nobody has taken below: one word, so that a worker that comes late finds none.
  _Alignas(64) _Atomic uint64_t left;
  size_t end;  // of its tasks; they are taken in order
};

struct worker {
  struct thread_pool *pool;
  pthread_t handle;
  int index;
};

struct thread_pool {
  struct share shares[SPARROW_MAX_THREADS];
  _Atomic uint32_t generation;  // counts jobs; workers sleep on it
  _Atomic uint32_t unfinished;  // tasks of the job; the caller sleeps on it
  spw_task task;
  void *argument;
  _Atomic int on_each;  // every thread takes one task
  _Atomic int stop;
  int threads;
  uint32_t capacities[MAX_CPUS];  // of cores, all 0 where they are equal or unknown
  int unequal;
  _Atomic uint32_t speeds[SPARROW_MAX_THREADS];  // of the core that each thread was last seen on
  struct worker workers[SPARROW_MAX_THREADS - 1];
};

static void futex(_Atomic uint32_t *word, int operation, uint32_t value) {
  sparrow_system_call(SYSTEM_FUTEX, (long)word, operation, (void *)(uintptr_t)value, NULL);
}

static uint32_t read_number(int cpu, const char *property) {
  char text[80];
  snprintf(text, sizeof text, "/sys/devices/system/cpu/cpu%d/%s", cpu, property);
  FILE *file = fopen(text, "r");
  if (!file) return 0;
  const uint32_t number = fgets(text, sizeof text, file) ? (uint32_t)strtoul(text, NULL, 10) : 0;
  fclose(file);
  return number;
}

// What Linux says of the speeds of the cores, the fastest FULL_SPEED; kernels before 5.0 tell frequencies alone.
static void read_capacities(struct thread_pool *pool) {
  static const char *const sources[] = {"cpu_capacity", "cpufreq/cpuinfo_max_freq"};
  for (size_t source = 0; source < 2 && !pool->capacities[0]; source++)
    for (int cpu = 0; cpu < MAX_CPUS && (pool->capacities[cpu] = read_number(cpu, sources[source])) != 0; cpu++)
      pool->unequal |= pool->capacities[cpu] != pool->capacities[0];
  uint64_t most = 1;
  for (int cpu = 0; cpu < MAX_CPUS; cpu++) most = pool->capacities[cpu] > most ? pool->capacities[cpu] : most;
  for (int cpu = 0; cpu < MAX_CPUS; cpu++)
    pool->capacities[cpu] = (uint32_t)((uint64_t)pool->capacities[cpu] * FULL_SPEED / most);
}

static uint32_t speed_of(struct thread_pool *pool, int thread) {
  const uint32_t speed = atomic_load_explicit(&pool->speeds[thread], memory_order_relaxed);
  return speed ? speed : FULL_SPEED;  // not seen yet
}

static uint32_t all_speeds(struct thread_pool *pool) {
  uint32_t sum = 0;
  for (int thread = 0; thread < pool->threads; thread++) sum += speed_of(pool, thread);
  return sum;
}

// How many tasks this thread leaves to faster ones: all together do them, and the fastest one more, while it does one.
static uint32_t tasks_to_leave(struct thread_pool *pool, int thread) {
  unsigned cpu = MAX_CPUS;
  sparrow_system_call(SYSTEM_GETCPU, (long)&cpu, 0, NULL, NULL);
  if (cpu < MAX_CPUS) atomic_store_explicit(&pool->speeds[thread], pool->capacities[cpu], memory_order_relaxed);
  const uint64_t speed = speed_of(pool, thread);
  uint64_t highest = speed;
  for (int other = 0; other < pool->threads; other++) {
    const uint64_t its = speed_of(pool, other);
    highest = its > highest ? its : highest;
  }
  return (uint32_t)(all_speeds(pool) * (highest - speed) / (highest * speed));
}

static uint32_t tasks_left(struct thread_pool *pool) {
  uint32_t sum = 0;
  for (int thread = 0; thread < pool->threads; thread++)
    sum += (uint32_t)atomic_load_explicit(&pool->shares[thread].left, memory_order_relaxed);
  return sum;
}

static void run_task(spw_task task, void *argument, size_t index, int thread) {
  SPARROW_MARK(123);  // a task from the shared list
  task(argument, index, thread);
}

static void take_tasks(struct thread_pool *pool, int thread) {
  const uint32_t slower = pool->unequal && !pool->on_each ? tasks_to_leave(pool, thread) : 0;
  // The caller leaves none: speeds are as last seen, and threads that take each other for faster would all go.
  const uint32_t leave = thread ? slower : 0;
  uint32_t taken = 0;
  for (int next = 0; next < pool->threads; next++) {
    struct share *share = &pool->shares[(thread + next) % pool->threads];
    uint64_t left = atomic_load_explicit(&share->left, memory_order_acquire);
    while ((uint32_t)left && (!leave || tasks_left(pool) > leave)) {
      if (!atomic_compare_exchange_weak_explicit(&share->left, &left, left - 1, memory_order_acquire,
                                                 memory_order_acquire))
        continue;
      // The job lasts until this task is reported, so its description stays.
      run_task(pool->task, pool->argument, share->end - (uint32_t)left, thread);
      taken++;
      left = atomic_load_explicit(&share->left, memory_order_acquire);
    }
  }
  if (taken && atomic_fetch_sub_explicit(&pool->unfinished, taken, memory_order_acq_rel) == taken && thread)
    futex(&pool->unfinished, FUTEX_WAKE_PRIVATE, 1);
}

static void *worker_main(void *argument) {
  struct worker *worker = argument;
  struct thread_pool *pool = worker->pool;
  uint32_t seen = 0;
  for (;;) {
    uint32_t now;
    while ((now = atomic_load_explicit(&pool->generation, memory_order_acquire)) == seen)
      futex(&pool->generation, FUTEX_WAIT_PRIVATE, seen);
    seen = now;
    if (pool->stop) return NULL;
    take_tasks(pool, worker->index);
  }
}

static void wake_workers(struct thread_pool *pool) {
  atomic_fetch_add_explicit(&pool->generation, 1, memory_order_release);
  futex(&pool->generation, FUTEX_WAKE_PRIVATE, INT_MAX);
}

struct thread_pool *thread_pool_create(int threads) {
  void *memory = NULL;
  if (posix_memalign(&memory, _Alignof(struct thread_pool), sizeof(struct thread_pool))) return NULL;
  struct thread_pool *pool = memory;
  *pool = (struct thread_pool){.threads = 1};
  if (threads > 1) read_capacities(pool);
  for (int index = 1; index < threads; index++) {
    struct worker *worker = &pool->workers[index - 1];
    *worker = (struct worker){.pool = pool, .index = index};
    if (pthread_create(&worker->handle, NULL, worker_main, worker)) {
      thread_pool_destroy(pool);
      return NULL;
    }
    pool->threads++;
  }
  return pool;
}

static void run_job(struct thread_pool *pool, size_t tasks, spw_task task, void *argument, int on_each) {
  SPARROW_MARK(124);  // a list of tasks is handed out
  pool->task = task;
  pool->argument = argument;
  pool->on_each = on_each;
  atomic_store_explicit(&pool->unfinished, (uint32_t)tasks, memory_order_relaxed);
  const uint64_t number = (uint64_t)atomic_load_explicit(&pool->generation, memory_order_relaxed) + 1;
  const size_t all = on_each ? tasks : all_speeds(pool);
  for (size_t thread = 0, before = 0, begin = 0; thread < (size_t)pool->threads; thread++) {
    before += on_each ? 1 : speed_of(pool, (int)thread);
    const size_t end = (tasks * before + all - 1) / all;
    struct share *share = &pool->shares[thread];
    share->end = end;
    atomic_store_explicit(&share->left, number << 32 | (end - begin), memory_order_release);
    begin = end;
  }
  wake_workers(pool);
  take_tasks(pool, 0);
  for (uint32_t left; (left = atomic_load_explicit(&pool->unfinished, memory_order_acquire)) != 0;)
    futex(&pool->unfinished, FUTEX_WAIT_PRIVATE, left);
}

void thread_pool_run(struct thread_pool *pool, size_t tasks, spw_task task, void *argument) {
  if (pool->threads == 1 || tasks == 1) {
    for (size_t index = 0; index < tasks; index++) run_task(task, argument, index, 0);
    return;
  }
  run_job(pool, tasks, task, argument, 0);
}

void thread_pool_run_on_each(struct thread_pool *pool, spw_task task, void *argument) {
  run_job(pool, (size_t)pool->threads, task, argument, 1);
}

void thread_pool_destroy(struct thread_pool *pool) {
  if (!pool) return;
  pool->stop = 1;
  wake_workers(pool);
  for (int index = 1; index < pool->threads; index++) pthread_join(pool->workers[index - 1].handle, NULL);
  free(pool);
}
