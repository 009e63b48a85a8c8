// Threads that sleep until there is work. Depends on pthread_create and the futex system call alone: structures of a
// C library (mutexes, conditions) differ in size between glibc, musl and bionic, and one object file serves all three.
#ifndef SPARROW_THREAD_POOL_H
#define SPARROW_THREAD_POOL_H

#include "../spw.h"

enum { SPARROW_MAX_THREADS = 64 };

struct thread_pool;

// Starts threads - 1 workers; the caller of thread_pool_run is the last thread. NULL without memory or threads.
struct thread_pool *thread_pool_create(int threads);

// Calls task(argument, index, thread) for every index below tasks and returns when all are done.
void thread_pool_run(struct thread_pool *pool, size_t tasks, spw_task task, void *argument);

void thread_pool_destroy(struct thread_pool *pool);

#endif
