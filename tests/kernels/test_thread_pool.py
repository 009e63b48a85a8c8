"""The runtime's thread pool, built for this machine: every task once, whatever the number of threads and tasks."""

import shutil
import subprocess
from pathlib import Path

import pytest

from sparrow.kernels.build import INCLUDE_DIR

RUNTIME = INCLUDE_DIR / "runtime"

# Many short jobs in a row, so that workers come late to one and early to the next. Each task is done once, by a thread
# of the pool; a job on each thread is done by all of them. In every other round cores are of unequal speed, by number.
PROGRAM = r"""
#define _GNU_SOURCE
#include <sched.h>
#include "thread_pool.c"

enum { MOST_TASKS = 300, THREADS = 5 };
static _Atomic int done[MOST_TASKS], by_thread[THREADS], arrived;

static void count(void *argument, size_t index, int thread) {
  (void)argument;
  done[index]++;
  by_thread[thread]++;
}

static void wait_for_all(void *argument, size_t index, int thread) {
  (void)index;
  by_thread[thread]++;
  arrived++;
  while (arrived < *(int *)argument) sched_yield();
}

static void set_capacities(struct thread_pool *pool, uint32_t even, uint32_t odd) {
  pool->unequal = 1;
  for (int cpu = 0; cpu < MAX_CPUS; cpu++) pool->capacities[cpu] = cpu % 2 ? odd : even;
}

// A core at a fifth of the speed does one task while all together do 13.5, and the fastest one more.
static int slow_core_leaves(void) {
  struct thread_pool pool = {.threads = 4, .speeds = {1024, 768, 768}};
  set_capacities(&pool, 205, 205);
  const uint32_t slow = tasks_to_leave(&pool, 3);
  set_capacities(&pool, 1024, 1024);
  return slow == 10 && tasks_to_leave(&pool, 3) == 0;
}

// The caller was moved to a slow core, and the other thread, last seen on a fast one, does not come.
static int caller_leaves_none(void) {
  struct thread_pool pool = {.threads = 2, .speeds = {1024, 1024}};
  set_capacities(&pool, 205, 205);
  for (size_t task = 0; task < 6; task++) done[task] = 0;
  thread_pool_run(&pool, 6, count, NULL);
  for (size_t task = 0; task < 6; task++)
    if (done[task] != 1) return 0;
  return 1;
}

int main(void) {
  if (!slow_core_leaves()) return puts("tasks that a slow core leaves"), 1;
  if (!caller_leaves_none()) return puts("tasks that the caller leaves"), 1;
  for (int round = 0; round < 2 * THREADS; round++) {
    int threads = round / 2 + 1;
    struct thread_pool *pool = thread_pool_create(threads);
    if (!pool) return 2;
    if (round % 2) set_capacities(pool, 1024, 150);
    for (int job = 0; job < 500; job++) {
      const size_t tasks = job % 7 ? (size_t)(job % 13 + 1) : MOST_TASKS;
      for (size_t task = 0; task < MOST_TASKS; task++) done[task] = 0;
      thread_pool_run(pool, tasks, count, NULL);
      for (size_t task = 0; task < MOST_TASKS; task++)
        if (done[task] != (task < tasks)) return printf("%d threads, job %d: task %zu\n", threads, job, task), 1;
    }
    for (int job = 0; job < 20; job++) {
      for (int thread = 0; thread < THREADS; thread++) by_thread[thread] = 0;
      arrived = 0;
      thread_pool_run_on_each(pool, wait_for_all, &threads);
      for (int thread = 0; thread < THREADS; thread++)
        if (by_thread[thread] != (thread < threads)) return printf("%d threads: thread %d\n", threads, thread), 1;
    }
    thread_pool_destroy(pool);
  }
  puts("done");
}
"""


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_every_task_is_done_once(tmp_path: Path, sanitizer: str) -> None:
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("no C compiler for this machine")
    source, program = tmp_path / "pool.c", tmp_path / "pool"
    source.write_text(PROGRAM, encoding="utf-8")
    command = [compiler, "-std=gnu11", "-O1", "-g", f"-fsanitize={sanitizer}", f"-I{INCLUDE_DIR}", f"-I{RUNTIME}",
               str(source), "-o", str(program), "-pthread"]  # fmt: skip
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode and "sanitize" in built.stderr:
        pytest.skip("the compiler has no such sanitizer")
    assert built.returncode == 0, built.stderr
    result = subprocess.run([str(program)], capture_output=True, text=True, timeout=120, check=False)
    if "unexpected memory mapping" in result.stderr:
        pytest.skip("ThreadSanitizer does not run in this machine's address space")
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stdout + result.stderr
