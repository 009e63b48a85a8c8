// Threads that sleep until there is work. They need pthread_create and the futex system call, and no structure of a
// C library (mutexes, conditions): those differ in size between glibc, musl and bionic, and one object file serves all.
//
// Tasks are divided beforehand, in proportion to the speeds of the cores that the threads were last seen on, so that a
// thread's tasks lie next to each other; whoever is done takes from the others. A slow core leaves the last tasks to
// faster ones that end them sooner, unless its thread is the caller, and nobody waits for a thread that took none.
#ifndef SPARROW_THREAD_POOL_H
#define SPARROW_THREAD_POOL_H

#include "../spw.h"

enum { SPARROW_MAX_THREADS = 64 };

struct thread_pool;

// Starts threads - 1 workers; the caller of thread_pool_run is the first thread. NULL without memory or threads.
struct thread_pool *thread_pool_create(int threads);

// Calls task(argument, index, thread) for every index below tasks and returns when all are done.
void thread_pool_run(struct thread_pool *pool, size_t tasks, spw_task task, void *argument);

// Calls task(argument, thread, thread) on every thread; none may return before all have been called.
void thread_pool_run_on_each(struct thread_pool *pool, spw_task task, void *argument);

void thread_pool_destroy(struct thread_pool *pool);

#endif
