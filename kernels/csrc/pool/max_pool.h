// Max pooling: plain loops over neighbouring elements, which every compiler turns into vectors, so that the code that
// defines it is the fast one. The file that includes this defines
//
//   element, pixel, lowest  a number, a pack of 4 of them, and a pack of those below all others
//   higher                  the larger of two elements
//   max_pool                the function's name
//
// A window's maximum is taken over its rows first, then over its columns. For the columns, pixels that are a stride
// apart are brought together, so that neighbouring outputs read neighbouring pixels.
enum { CHUNK_PIXELS = 256 };

static inline int min_int(int left, int right) { return left < right ? left : right; }

static inline int max_int(int left, int right) { return left > right ? left : right; }

// Three at a time, since windows are often that high and wide; what is missing of them may be given twice.
static inline void maximum(element *restrict to, const element *first, const element *second, const element *third,
                           size_t elements, int begins) {
  if (begins)
    for (size_t at = 0; at < elements; ++at) to[at] = higher(higher(first[at], second[at]), third[at]);
  else
    for (size_t at = 0; at < elements; ++at) to[at] = higher(to[at], higher(higher(first[at], second[at]), third[at]));
}

// Pixel i of phase p is pixel i * stride + p; a phase's pixels begin every `pitch` pixels.
static inline void split_phases(pixel *restrict to, const pixel *restrict from, int pixels, int stride, int pitch) {
  if (stride == 2) {
    for (int index = 0; index < pixels / 2; ++index) {
      to[index] = from[2 * index];
      to[pitch + index] = from[2 * index + 1];
    }
    if (pixels % 2) to[pixels / 2] = from[pixels - 1];
    return;
  }
  for (int index = 0; index < pixels; ++index) to[index % stride * pitch + index / stride] = from[index];
}

struct job {
  const element *input;
  int in_height, in_width, out_height, out_width;
  int kernel_height, kernel_width, stride_height, stride_width;
  int pad_top, pad_left;
  element *output;
};

// Outputs `first` to `first + outputs` of a row, whose windows see input rows `begin` to `end`; all of their pixels fit
// the buffers, or there is one output, whose window may come in parts.
static void pool_outputs(const struct job *job, const element *plane, int begin, int end, int first, int outputs,
                         element *to) {
  for (int part = 0; part < job->kernel_width; part += CHUNK_PIXELS / 2) {
    const int columns = min_int(CHUNK_PIXELS / 2, job->kernel_width - part);
    const int left = first * job->stride_width - job->pad_left + part;
    const int pixels = (outputs - 1) * job->stride_width + columns;
    const int from = min_int(max_int(left, 0), left + pixels);
    const int inside = begin < end ? max_int(0, min_int(left + pixels, job->in_width) - from) : 0;
    pixel highest[CHUNK_PIXELS], phases[2 * CHUNK_PIXELS];
    for (int index = 0; index < pixels; ++index)
      if (index < from - left || index >= from - left + inside) highest[index] = lowest;
    for (int y = begin; y < end && inside; y += 3) {
      const element *rows[3];
      for (int index = 0; index < 3; ++index)
        rows[index] =
            plane + ((size_t)min_int(y + index, end - 1) * (size_t)job->in_width + (size_t)from) * SPW_CHANNEL_PACK;
      maximum((element *)(highest + from - left), rows[0], rows[1], rows[2], (size_t)inside * SPW_CHANNEL_PACK,
              y == begin);
    }
    const int split = job->stride_width > 1 && outputs > 1, stride = split ? job->stride_width : 1;
    const int pitch = (pixels + stride - 1) / stride;
    if (split) split_phases(phases, highest, pixels, stride, pitch);
    for (int x = 0; x < columns; x += 3) {
      const element *taps[3];
      for (int index = 0; index < 3; ++index) {
        const int tap = min_int(x + index, columns - 1);
        taps[index] = (const element *)((split ? phases : highest) + tap % stride * pitch + tap / stride);
      }
      maximum(to, taps[0], taps[1], taps[2], (size_t)outputs * SPW_CHANNEL_PACK, part + x == 0);
    }
  }
}

static void pool_plane(void *argument, size_t index, int thread) {
  (void)thread;
  const struct job *job = argument;
  const element *plane = job->input + index * (size_t)job->in_height * (size_t)job->in_width * SPW_CHANNEL_PACK;
  element *to = job->output + index * (size_t)job->out_height * (size_t)job->out_width * SPW_CHANNEL_PACK;
  const int together = max_int(1, (CHUNK_PIXELS - job->kernel_width) / job->stride_width);
  for (int row = 0; row < job->out_height; ++row) {
    const int top = row * job->stride_height - job->pad_top;
    const int begin = max_int(top, 0), end = min_int(top + job->kernel_height, job->in_height);
    for (int first = 0; first < job->out_width; first += together) {
      const int outputs = min_int(together, job->out_width - first);
      pool_outputs(job, plane, begin, end, first, outputs, to);
      to += outputs * SPW_CHANNEL_PACK;
    }
  }
}

SPW_MAX_POOL(max_pool, element) {
  struct job job = {input,        in_height,     in_width,     out_height, out_width, kernel_height,
                    kernel_width, stride_height, stride_width, pad_top,    pad_left,  output};
  context->parallel_for(context, (size_t)planes, pool_plane, &job);
}
