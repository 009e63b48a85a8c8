// Winograd convolution of int8, one number at a time: what the vector kernels of this family compute.
#include <string.h>

#include "epilogue_scalar.h"
#include "winograd_qa8.h"

static const int8_t G[6][3] = {{1, 0, 0}, {1, 1, 1}, {1, -1, 1}, {1, 2, 4}, {4, -2, 1}, {0, 0, 1}};
static const int8_t BT[6][6] = {{2, 3, -4, -3, 2, 0}, {0, -2, -5, -1, 2, 0}, {0, 2, 1, -5, 2, 0},
                                {0, -1, -2, 1, 2, 0}, {0, 2, -1, -2, 1, 0},  {0, 2, 3, -4, -3, 2}};
static const int8_t AT[4][6] = {
    {15, -5, 5, 1, -8, 0}, {0, -5, -5, 2, 4, 0}, {0, -5, 5, 4, -2, 0}, {0, -5, -5, 8, 1, 15}};

// The transpose of matrix[rows][columns] * in[columns][columns] * matrix transposed, modulo 2^32. Places lie column
// after column: the first transforms turn windows on their side, the last one puts them upright.
static void transform(const int8_t *matrix, int rows, int columns, const uint32_t *in, uint32_t *out) {
  uint32_t half_done[36];
  for (int row = 0; row < rows; ++row)
    for (int x = 0; x < columns; ++x) {
      half_done[row * columns + x] = 0;
      for (int y = 0; y < columns; ++y)
        half_done[row * columns + x] += (uint32_t)matrix[row * columns + y] * in[y * columns + x];
    }
  for (int row = 0; row < rows; ++row)
    for (int column = 0; column < rows; ++column) {
      out[column * rows + row] = 0;
      for (int x = 0; x < columns; ++x)
        out[column * rows + row] += half_done[row * columns + x] * (uint32_t)matrix[column * columns + x];
    }
}

static void transform_weights(const struct spw_winograd_run *run) {
  int16_t *to = run->to;
  const size_t step = (size_t)run->in_packs * (size_t)run->packs * 16;
  for (int pack = 0; pack < run->in_packs; ++pack)
    for (int in = 0; in < 4; ++in)
      for (int out = 0; out < 4; ++out) {
        uint32_t window[9], places[SPW_WINOGRAD_PLACES];
        for (int tap = 0; tap < 9; ++tap)
          window[tap] = (uint32_t)((const int8_t *)run->from)[16 * (9 * pack + tap) + 4 * out + in];
        transform(*G, 6, 3, window, places);
        for (int place = 0; place < SPW_WINOGRAD_PLACES; ++place)
          to[(size_t)place * step + (size_t)(16 * pack * run->packs + 4 * in + out)] = (int16_t)places[place];
      }
}

static void transform_input(const struct spw_winograd_run *run) {
  const int columns = (run->operator->out_width + 3) / 4, tiles = columns * ((run->operator->out_height + 3) / 4);
  for (int index = 0; index < run->tiles; ++index) {
    const int tile = run->first_tile + index < tiles ? run->first_tile + index : tiles - 1;
    const int row = 4 * (tile / columns - run->first_tile / columns), column = 4 * (tile % columns);
    for (int lane = 0; lane < 4; ++lane) {
      uint32_t window[SPW_WINOGRAD_PLACES], places[SPW_WINOGRAD_PLACES];
      for (int at = 0; at < SPW_WINOGRAD_PLACES; ++at) {
        const int8_t *from = (const int8_t *)run->from + (size_t)(row + at / 6) * run->row_bytes;
        window[at] = (uint32_t)from[4 * (column + at % 6) + lane];
      }
      transform(*BT, 6, 6, window, places);
      for (int place = 0; place < SPW_WINOGRAD_PLACES; ++place) {
        int16_t *to = (int16_t *)((unsigned char *)run->to + (size_t)place * run->place_bytes);
        to[4 * index + lane] = (int16_t)places[place];
      }
    }
  }
}

static void multiply(const struct spw_winograd_run *run) {
  uint32_t *sum = run->to;
  for (int place = 0; place < SPW_WINOGRAD_PLACES; ++place)
    for (int out = 0; out < 4 * run->packs; ++out)
      for (int tile = 0; tile < run->tiles; ++tile) {
        const size_t at = (size_t)(((place * run->packs + out / 4) * run->tiles + tile) * 4 + out % 4);
        if (!run->accumulate) sum[at] = 0;
        for (int in = 0; in < 4 * run->in_packs; ++in) {
          const int16_t *input = (const int16_t *)((const unsigned char *)run->from + (size_t)place * run->place_bytes);
          const int16_t *weights = run->weights + 16 * run->packs * (place * run->in_packs + in / 4);
          sum[at] += (uint32_t)(weights[16 * (out / 4) + 4 * (in % 4) + out % 4] *
                                input[4 * (in / 4 * run->tiles + tile) + in % 4]);
        }
      }
}

static void transform_output(const struct spw_winograd_run *run, int float_output) {
  const struct spw_conv2d *shape = run->operator;
  const int columns = (shape->out_width + 3) / 4;
  const struct spw_conv_run finish = {.operator = shape,
                                      .plane = (size_t)shape->out_height * (size_t)shape->out_width * 4,
                                      .scale = run->scale,
                                      .bias = run->bias,
                                      .residual = run->residual,
                                      .output = run->to};
  for (int pack = 0; pack < run->packs; ++pack)
    for (int index = 0; index < run->tiles; ++index) {
      const int top = (run->first_tile + index) / columns * 4, left = (run->first_tile + index) % columns * 4;
      uint32_t outputs[4][16];
      for (int lane = 0; lane < 4; ++lane) {
        uint32_t places[SPW_WINOGRAD_PLACES];
        for (int place = 0; place < SPW_WINOGRAD_PLACES; ++place)
          places[place] = ((const uint32_t *)run->from)[((place * run->packs + pack) * run->tiles + index) * 4 + lane];
        transform(*AT, 4, 6, places, outputs[lane]);
      }
      for (int y = 0; y < 4 && top + y < shape->out_height; ++y)
        for (int x = 0; x < 4 && left + x < shape->out_width; ++x) {
          int32_t sum[4];
          for (int lane = 0; lane < 4; ++lane) {
            const int32_t exact = (int32_t)(outputs[lane][4 * y + x] * SPW_WINOGRAD_INVERSE) >> SPW_WINOGRAD_SHIFT;
            sum[lane] = (int32_t)((uint32_t)exact + (uint32_t)run->initial[4 * pack + lane]);
          }
          spw_finish_qa8(&finish, 4 * pack, (size_t)((top + y) * shape->out_width + left + x) * 4, sum, float_output);
        }
    }
}

static void run_stage(const struct spw_winograd_run *run, int float_output) {
  switch (run->stage) {
    case SPW_WINOGRAD_WEIGHTS:
      transform_weights(run);
      break;
    case SPW_WINOGRAD_INPUT:
      transform_input(run);
      break;
    case SPW_WINOGRAD_MULTIPLY:
      multiply(run);
      break;
    case SPW_WINOGRAD_OUTPUT:
      transform_output(run, float_output);
      break;
  }
}

void spw_winograd_clamp_qa8t_qa8t_qs8c__scalar(const struct spw_winograd_run *run) { run_stage(run, 0); }

void spw_winograd_clamp_f32_qa8t_qs8c__scalar(const struct spw_winograd_run *run) { run_stage(run, 1); }
