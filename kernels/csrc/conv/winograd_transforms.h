// The three transforms, written once for scalars and for vectors. The file that includes this defines
//
//   element, vector         float or half; 4 channels of TILES tiles, or as many weights
//   TILES                   1 or 2
//   INLINE                  for functions
//   load, store             a vector at an address
//   gather, scatter         4 channels of each tile, from and to an address each
//   add, subtract, scale    a + b, a - b, a * constant
//   multiply_add            a + b * constant, rounded once
//   load_bias               the bias of 4 channels, for each tile
//   clamp                   to the operator's float_min and float_max
#include <string.h>

#include "winograd.h"

// Tiles of a vector: where they lie in the image, and how much of them.
struct place {
  int y, x;  // of the first output
};

INLINE void place_tiles(const struct spw_winograd_run *run, int tile, struct place places[TILES]) {
  const int columns = (run->operator->out_width + 3) / 4, rows = (run->operator->out_height + 3) / 4;
  for (int index = 0; index < TILES; ++index) {
    int number = run->first_tile + tile + index;
    if (number >= rows * columns) number = rows * columns - 1;
    places[index] = (struct place){number / columns * 4, number % columns * 4};
  }
}

INLINE int clip(int value, int low, int high) { return value < low ? low : value > high ? high : value; }

// Copies the part of a rows x rows window at (y, x) that lies in an image of height x width pixels.
static void copy_window(const element *from, size_t from_pitch, element *to, size_t to_pitch, int rows, int y, int x,
                        int height, int width) {
  const int top = clip(-y, 0, rows), bottom = clip(height - y, top, rows);
  const int left = clip(-x, 0, rows), right = clip(width - x, left, rows);
  for (int row = top; row < bottom; ++row)
    memcpy(to + row * (ptrdiff_t)to_pitch + 4 * left, from + row * (ptrdiff_t)from_pitch + 4 * left,
           (size_t)(right - left) * 4 * sizeof(element));
}

static const float ROOT = 1.41421356f;

// One of the six rows of G, of three vectors. The rows of the inner points are multiplied by what saves operations here,
// -3/2 and 3, which At takes back for nothing.
INLINE vector transform_weights(vector first, vector second, vector third, const int row) {
  const vector near = multiply_add(first, third, 0.5f), far = multiply_add(third, first, 0.5f);
  switch (row) {
    case 0:
      return first;
    case 1:
      return multiply_add(near, second, ROOT / 2);
    case 2:
      return multiply_add(near, second, -ROOT / 2);
    case 3:
      return multiply_add(far, second, ROOT / 2);
    case 4:
      return multiply_add(far, second, -ROOT / 2);
    default:
      return third;
  }
}

INLINE void weights_stage(const struct spw_winograd_run *run, const int first, const int columns) {
  enum { VECTOR = 4 * TILES };
  const int tap = 16 * run->packs, row = 4 * run->packs, skipped = 4 * (run->all_packs - run->packs);
  const size_t place = (size_t)run->in_packs * 16 * (size_t)run->all_packs;
  const element *from = run->from;
  element *to = run->to;
  for (int pack = 0; pack < run->in_packs; ++pack, from += 9 * tap) {
    for (int at = 0; at < tap; at += VECTOR, to += VECTOR + (at & (row - 1) ? 0 : skipped)) {
      element *next = to;
      vector weight[9];
      UNROLL for (int index = 0; index < 9; ++index) weight[index] = load(from + index * tap + at);
      UNROLL for (int x = 0; x < columns; ++x) {
        vector half_done[3];
        UNROLL for (int y = 0; y < 3; ++y) half_done[y] =
            transform_weights(weight[3 * y], weight[3 * y + 1], weight[3 * y + 2], first + x);
        UNROLL for (int y = 0; y < 6; ++y, next += place)
            store(next, transform_weights(half_done[0], half_done[1], half_done[2], y));
      }
    }
  }
}

// Bt, of six vectors `step` apart.
INLINE void transform_input(const vector *in, vector *out, const int step) {
  const vector near = multiply_add(in[4 * step], in[2 * step], -2), near_odd = multiply_add(in[3 * step], in[step], -2);
  const vector far = multiply_add(in[4 * step], in[2 * step], -0.5f);
  const vector far_odd = multiply_add(in[3 * step], in[step], -0.5f);
  out[0] = multiply_add(add(in[0], in[4 * step]), in[2 * step], -2.5f);
  out[1] = multiply_add(near, near_odd, ROOT / 2);
  out[2] = multiply_add(near, near_odd, -ROOT / 2);
  out[3] = multiply_add(far, far_odd, ROOT);
  out[4] = multiply_add(far, far_odd, -ROOT);
  out[5] = multiply_add(add(in[step], in[5 * step]), in[3 * step], -2.5f);
}

INLINE void input_stage(const struct spw_winograd_run *run) {
  const struct spw_conv2d *shape = run->operator;
  const size_t row = (size_t)shape->in_width * 4, plane = row * (size_t)shape->in_height;
  const size_t step = (size_t)run->in_packs * (size_t)run->tiles * 4;
  element border[TILES][SPW_WINOGRAD_PLACES * 4];
  for (int tile = 0; tile < run->tiles; tile += TILES) {
    struct place places[TILES];
    place_tiles(run, tile, places);
    for (int pack = 0; pack < run->in_packs; ++pack) {
      const element *from[TILES];
      size_t pitch[TILES];
      for (int index = 0; index < TILES; ++index) {
        const int y = places[index].y - shape->pad_top, x = places[index].x - shape->pad_left;
        from[index] = (const element *)run->from + (size_t)pack * plane + y * (ptrdiff_t)row + x * 4;
        pitch[index] = row;
        if (y < 0 || x < 0 || y + 6 > shape->in_height || x + 6 > shape->in_width) {
          memset(border[index], 0, sizeof border[index]);
          copy_window(from[index], row, border[index], 24, 6, y, x, shape->in_height, shape->in_width);
          from[index] = border[index];
          pitch[index] = 24;
        }
      }
      vector half_done[6][6];
      UNROLL for (int y = 0; y < 6; ++y) {
        vector in[6];
        UNROLL for (int x = 0; x < 6; ++x) in[x] = gather(from, 4 * x);
        for (int index = 0; index < TILES; ++index) from[index] += pitch[index];
        transform_input(in, half_done[y], 1);
      }
      element *to = (element *)run->to + ((size_t)pack * (size_t)run->tiles + (size_t)tile) * 4;
      UNROLL for (int x = 0; x < 6; ++x) {
        vector done[6];
        transform_input(&half_done[0][x], done, 6);
        UNROLL for (int y = 0; y < 6; ++y, to += step) store(to, done[y]);
      }
    }
  }
}

// At, of six vectors `step` apart.
INLINE void transform_output(const vector *in, vector *out, const int step) {
  const vector near = add(in[step], in[2 * step]), near_odd = subtract(in[step], in[2 * step]);
  const vector far = add(in[3 * step], in[4 * step]), far_odd = subtract(in[3 * step], in[4 * step]);
  out[0] = multiply_add(multiply_add(in[0], near, -2.0f / 3), far, 1.0f / 3);
  out[1] = scale(subtract(far_odd, near_odd), ROOT / 3);
  out[2] = multiply_add(scale(near, -1.0f / 3), far, 2.0f / 3);
  out[3] = multiply_add(multiply_add(in[5 * step], near_odd, -ROOT / 6), far_odd, 2 * ROOT / 3);
}

INLINE void output_stage(const struct spw_winograd_run *run) {
  // A copy: the compiler has to assume that every store changes what a pointer leads to.
  const struct spw_conv2d copy = *run->operator, * const shape = & copy;
  const size_t row = (size_t)shape->out_width * 4, plane = row * (size_t)shape->out_height;
  const size_t step = (size_t)run->packs * (size_t)run->tiles * 4;
  element edge[TILES][64], edge_residual[TILES][64];
  for (int tile = 0; tile < run->tiles; tile += TILES) {
    struct place places[TILES];
    int whole = 1;
    place_tiles(run, tile, places);
    for (int index = 0; index < TILES; ++index)
      whole &= places[index].y + 4 <= shape->out_height && places[index].x + 4 <= shape->out_width;
    for (int pack = 0; pack < run->packs; ++pack) {
      element *output[TILES], *to[TILES];
      const element *residual[TILES];
      for (int index = 0; index < TILES; ++index) {
        const struct place at = places[index];
        const size_t offset = (size_t)pack * plane + (size_t)at.y * row + (size_t)at.x * 4;
        output[index] = to[index] = (element *)run->to + offset;
        residual[index] = run->residual ? (const element *)run->residual + offset : NULL;
        if (!whole) {
          to[index] = edge[index];
          if (residual[index]) {
            memset(edge_residual[index], 0, sizeof edge_residual[index]);
            copy_window(residual[index], row, edge_residual[index], 16, 4, at.y, at.x, shape->out_height,
                        shape->out_width);
            residual[index] = edge_residual[index];
          }
        }
      }
      const element *from = (const element *)run->from + ((size_t)pack * (size_t)run->tiles + (size_t)tile) * 4;
      vector half_done[6][4];
      UNROLL for (int x = 0; x < 6; ++x) {
        vector in[6];
        UNROLL for (int y = 0; y < 6; ++y, from += step) in[y] = load(from);
        transform_output(in, half_done[x], 1);
      }
      const vector bias = load_bias(run->bias + 4 * pack);
      const size_t pitch = whole ? row : 16;
      UNROLL for (int y = 0; y < 4; ++y) {
        vector done[4];
        transform_output(&half_done[0][y], done, 4);
        UNROLL for (int x = 0; x < 4; ++x) {
          vector value = add(done[x], bias);
          if (run->residual) value = add(value, gather(residual, (ptrdiff_t)(y * pitch) + 4 * x));
          scatter(to, (ptrdiff_t)(y * pitch) + 4 * x, clamp(shape, value));
        }
      }
      for (int index = 0; index < TILES && !whole; ++index)
        copy_window(edge[index], 16, output[index], row, 4, places[index].y, places[index].x, shape->out_height,
                    shape->out_width);
    }
  }
}

INLINE void run_stage(const struct spw_winograd_run *run) {
  if (run->stage == SPW_WINOGRAD_INPUT) input_stage(run);
  else if (run->stage == SPW_WINOGRAD_OUTPUT) output_stage(run);
  else if (run->columns == 3) run->column ? weights_stage(run, 3, 3) : weights_stage(run, 0, 3);
  else switch (run->column) {
      case 0:
        weights_stage(run, 0, 1);
        break;
      case 1:
        weights_stage(run, 1, 1);
        break;
      case 2:
        weights_stage(run, 2, 1);
        break;
      case 3:
        weights_stage(run, 3, 1);
        break;
      case 4:
        weights_stage(run, 4, 1);
        break;
      default:
        weights_stage(run, 5, 1);
    }
}
