// Quantization of float, the way into integer arithmetic: plain loops that every compiler turns into vectors.
//
// ONNX divides by the scale, and whether a quotient is a tie between two integers hangs on its last bit: a product with
// the reciprocal will not do, and a division of vectors takes as long as dozens of multiplications. So the product is
// corrected by its remainder, which a fused multiplication gives exactly: that is the rounded quotient (Markstein,
// "Computation of elementary functions on the IBM RISC System/6000 processor", 1990).
#include <math.h>

#include "../spw.h"

enum {
  CHUNK = 64,    // pixels that are quantized before their channels are packed
  RANGE = 4096,  // pixels of a task
};

static inline int min_int(int left, int right) { return left < right ? left : right; }

// to[i] = clamp(round_half_even(from[i] / scale) + zero_point, -128, 127)
static inline void quantize(int8_t *restrict to, const float *restrict from, int count, float scale, int zero_point) {
  const float low = (float)(-128 - zero_point), high = (float)(127 - zero_point);
  // Beyond these, reciprocals or remainders are not exact; no network has such a scale, but a file may.
  if (!(scale >= 0x1p-80f && scale <= 0x1p80f)) {
    for (int index = 0; index < count; ++index) {
      const float quotient = fminf(fmaxf(rintf(from[index] / scale), low), high);
      to[index] = (int8_t)((int32_t)quotient + zero_point);
    }
    return;
  }
  const float reciprocal = 1.0f / scale, lowest = low * scale, highest = high * scale;
  for (int index = 0; index < count; ++index) {
    const float value = fminf(fmaxf(from[index], lowest), highest), near = value * reciprocal;
    const float quotient = fmaf(fmaf(-near, scale, value), reciprocal, near);
    to[index] = (int8_t)((int32_t)rintf(quotient) + zero_point);
  }
}

struct job {
  const float *input;
  int channels, packs, pixels, ranges;
  float scale;
  int zero_point;
  int8_t *output;
};

static void quantize_range(void *argument, size_t index, int thread) {
  (void)thread;
  const struct job *job = argument;
  const size_t pack = index / (size_t)job->ranges, image = pack / (size_t)job->packs, pixels = (size_t)job->pixels;
  const int channel = (int)(pack % (size_t)job->packs) * SPW_CHANNEL_PACK;
  const int channels = min_int(job->channels - channel, SPW_CHANNEL_PACK);
  const float *from = job->input + (image * (size_t)job->channels + (size_t)channel) * pixels;
  int8_t *to = job->output + pack * pixels * SPW_CHANNEL_PACK;
  const int begin = (int)(index % (size_t)job->ranges) * RANGE, end = min_int(begin + RANGE, job->pixels);
  for (int first = begin; first < end; first += CHUNK) {
    const int count = min_int(CHUNK, end - first);
    int8_t values[SPW_CHANNEL_PACK][CHUNK] = {{0}};
    for (int lane = 0; lane < channels; ++lane)
      quantize(values[lane], from + (size_t)lane * pixels + first, count, job->scale, job->zero_point);
    for (int pixel = 0; pixel < count; ++pixel)
      for (int lane = 0; lane < SPW_CHANNEL_PACK; ++lane)
        to[(size_t)(first + pixel) * SPW_CHANNEL_PACK + (size_t)lane] = values[lane][pixel];
  }
}

void spw_quantize_qa8_f32_run(const float *input, int32_t batch, int32_t channels, int32_t pixels, float scale,
                              int32_t zero_point, int8_t *output, struct spw_context *context) {
  struct job job = {
      .input = input,
      .channels = channels,
      .packs = (channels + SPW_CHANNEL_PACK - 1) / SPW_CHANNEL_PACK,
      .pixels = pixels,
      .ranges = (pixels + RANGE - 1) / RANGE,
      .scale = scale,
      .zero_point = zero_point,
      .output = output,
  };
  context->parallel_for(context, (size_t)batch * (size_t)job.packs * (size_t)job.ranges, quantize_range, &job);
}
