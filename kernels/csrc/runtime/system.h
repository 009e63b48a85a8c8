// What the runtime asks of the processor and of the operating system's kernel itself. Bundles are for 64-bit ARM; on
// any other host, where the scalar twins are tested and fuzzed, marks are left out and the C library makes the calls.
#ifndef SPARROW_SYSTEM_H
#define SPARROW_SYSTEM_H

#ifdef __aarch64__

enum {
  SYSTEM_FUTEX = 98,
  SYSTEM_SETAFFINITY = 122,
  SYSTEM_GETAFFINITY = 123,
  SYSTEM_YIELD = 124,
  SYSTEM_GETCPU = 168,
};

// An unallocated hint, no operation on every core: a counting emulator takes it for a border.
#define SPARROW_MARK(number) __asm__ volatile("hint #" #number::: "memory")

// In place of the C library's functions: those for affinity differ between glibc, musl and bionic.
static inline long sparrow_system_call(long number, long first, long second, void *third, void *fourth) {
  register long x0 __asm__("x0") = first;
  register long x1 __asm__("x1") = second;
  register void *x2 __asm__("x2") = third;
  register void *x3 __asm__("x3") = fourth;
  register long x8 __asm__("x8") = number;
  __asm__ volatile("svc #0" : "+r"(x0) : "r"(x1), "r"(x2), "r"(x3), "r"(x8) : "memory");
  return x0;
}

#else

#include <sys/syscall.h>
#include <unistd.h>

enum {
  SYSTEM_FUTEX = SYS_futex,
  SYSTEM_SETAFFINITY = SYS_sched_setaffinity,
  SYSTEM_GETAFFINITY = SYS_sched_getaffinity,
  SYSTEM_YIELD = SYS_sched_yield,
  SYSTEM_GETCPU = SYS_getcpu,
};

#define SPARROW_MARK(number) ((void)0)

static inline long sparrow_system_call(long number, long first, long second, void *third, void *fourth) {
  return syscall(number, first, second, third, fourth);
}

#endif
#endif
