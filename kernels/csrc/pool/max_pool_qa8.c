// Max pooling of int8.
#include "../spw.h"

#define max_pool spw_max_pool_qa8_run

typedef int8_t element;
typedef int32_t pixel;

static const pixel lowest = (int32_t)0x80808080;

static inline element higher(element left, element right) { return left > right ? left : right; }

#include "max_pool.h"
