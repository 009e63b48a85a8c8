#include "thread_pool.h"

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "system.h"

enum { FUTEX_WAIT_PRIVATE = 128, FUTEX_WAKE_PRIVATE = 129 };

struct worker {
  struct thread_pool *pool;
  pthread_t handle;
  int index;
};

struct thread_pool {
  _Atomic uint32_t generation;  // counts jobs; workers sleep on it
  _Atomic uint32_t busy;        // workers that have not finished the job; the caller sleeps on it
  _Atomic size_t next;          // first task that nobody has taken
  size_t tasks;
  spw_task task;
  void *argument;
  int stop;
  int threads;
  struct worker workers[SPARROW_MAX_THREADS - 1];
};

static void futex(_Atomic uint32_t *word, int operation, uint32_t value) {
  sparrow_system_call(SYSTEM_FUTEX, (long)word, operation, (void *)(uintptr_t)value, NULL);
}

static void run_task(spw_task task, void *argument, size_t index, int thread) {
  SPARROW_MARK(123);  // a task from the shared list
  task(argument, index, thread);
}

static void take_tasks(struct thread_pool *pool, int thread) {
  for (;;) {
    size_t index = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
    if (index >= pool->tasks) return;
    run_task(pool->task, pool->argument, index, thread);
  }
}

static void *worker_main(void *argument) {
  struct worker *worker = argument;
  struct thread_pool *pool = worker->pool;
  uint32_t seen = 0;
  for (;;) {
    while (atomic_load_explicit(&pool->generation, memory_order_acquire) == seen)
      futex(&pool->generation, FUTEX_WAIT_PRIVATE, seen);
    seen++;
    if (pool->stop) return NULL;
    take_tasks(pool, worker->index);
    if (atomic_fetch_sub_explicit(&pool->busy, 1, memory_order_acq_rel) == 1) futex(&pool->busy, FUTEX_WAKE_PRIVATE, 1);
  }
}

static void start_job(struct thread_pool *pool) {
  atomic_store_explicit(&pool->busy, (uint32_t)pool->threads - 1, memory_order_relaxed);
  atomic_fetch_add_explicit(&pool->generation, 1, memory_order_release);
  futex(&pool->generation, FUTEX_WAKE_PRIVATE, INT_MAX);
}

struct thread_pool *thread_pool_create(int threads) {
  struct thread_pool *pool = calloc(1, sizeof *pool);
  if (!pool) return NULL;
  pool->threads = 1;
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

void thread_pool_run(struct thread_pool *pool, size_t tasks, spw_task task, void *argument) {
  if (pool->threads == 1 || tasks == 1) {
    for (size_t index = 0; index < tasks; index++) run_task(task, argument, index, 0);
    return;
  }
  pool->tasks = tasks;
  pool->task = task;
  pool->argument = argument;
  atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
  start_job(pool);
  take_tasks(pool, 0);
  for (uint32_t left; (left = atomic_load_explicit(&pool->busy, memory_order_acquire)) != 0;)
    futex(&pool->busy, FUTEX_WAIT_PRIVATE, left);
}

void thread_pool_destroy(struct thread_pool *pool) {
  if (!pool) return;
  pool->stop = 1;
  start_job(pool);
  for (int index = 1; index < pool->threads; index++) pthread_join(pool->workers[index - 1].handle, NULL);
  free(pool);
}
