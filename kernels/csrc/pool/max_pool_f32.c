// Max pooling of float.
#include <math.h>

#include "../spw.h"

#define max_pool spw_max_pool_f32_run

typedef float element;
typedef struct {
  float lane[4];
} pixel;

static const pixel lowest = {{-INFINITY, -INFINITY, -INFINITY, -INFINITY}};

static inline element higher(element left, element right) { return left > right ? left : right; }

#include "max_pool.h"
