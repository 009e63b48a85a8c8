// Max pooling of halves, for processors without fp16 as well: their bits are compared as integers.
#include "../spw.h"

#define max_pool spw_max_pool_f16_run

typedef uint16_t element;
typedef struct {
  uint16_t lane[4];
} pixel;

static const pixel lowest = {{0xFC00, 0xFC00, 0xFC00, 0xFC00}};  // minus infinity

// Integers in the order of the halves: the larger a negative half's bits, the smaller it is.
static inline int16_t ordered(element half) { return (int16_t)(half ^ (((int16_t)half >> 15) & 0x7FFF)); }

static inline element higher(element left, element right) { return ordered(left) > ordered(right) ? left : right; }

#include "max_pool.h"
