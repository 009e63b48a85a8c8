// Marks what is counted of an OpenMP program: one inference is a region, and each of its parallel regions, in OpenMP's
// sense, a section of it, so that a prediction knows where threads wait for one another.
//
// The library comes before GCC's OpenMP runtime in the search for symbols and stands in front of its one entry point.
#include <stddef.h>

#define EXPORT __attribute__((visibility("default")))

typedef void parallel_function(void (*body)(void *), void *data, unsigned threads, unsigned flags);

// The runtime's own; set before the first parallel region.
EXPORT parallel_function *gomp_parallel;

EXPORT parallel_function GOMP_parallel;

EXPORT void begin_region(void) { __asm__ volatile("hint #120" ::: "memory"); }
EXPORT void end_region(void) { __asm__ volatile("hint #121" ::: "memory"); }

EXPORT void GOMP_parallel(void (*body)(void *), void *data, unsigned threads, unsigned flags) {
  if (threads == 1) {
    gomp_parallel(body, data, threads, flags);
    return;
  }
  __asm__ volatile("hint #122" ::: "memory");
  gomp_parallel(body, data, threads, flags);
  __asm__ volatile("hint #122" ::: "memory");
}
