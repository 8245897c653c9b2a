// 3x3 convolutions by Winograd's F(4x4, 3x3): 36 products where the definition takes 144.
//
// Vector lanes are output tiles of 4 x 4 pixels. Interpolation points 0, +-0.6, +-1.4 and infinity: over the whole
// network their fp32 error equals that of direct convolution, while the usual 0, +-1, +-2 double it.
//
//   y = A^T [ (G w G^T) . (B^T d B) ] A       d: 6 x 6 inputs of a tile, w: 3 x 3, y: 4 x 4
#pragma once
#include <cstring>

#include "runtime/scratch.h"
#include "simd.h"

namespace ifan {
namespace IFAN_ISA {

constexpr int kPoints = 36;                                    // products a tile, input and output channel
constexpr int kOutputs = kRegisters == 32 ? 12 : 6;            // output channels whose sums stay in registers
constexpr float kA = 0.6f, kB = 1.4f, kP = 0.36f, kQ = 1.96f;  // the points and their squares

// One dimension of B^T d, in place over d[0], d[step], ..., d[5 step]. A pixel's bits must not depend on its place, so
// how it is rounded is not left to the compiler, here and below.
template <typename V>
inline void input_transform(V* d, int step) {
  const auto add = [](V z, float k, V x) { return multiply_add(filled<V>(k), x, z); };
  const V a = d[0], b = d[step], c = d[2 * step], e = d[3 * step], f = d[4 * step], g = d[5 * step];
  const V even_a = add(f, -kQ, c), odd_a = add(e, -kQ, b), even_b = add(f, -kP, c), odd_b = add(e, -kP, b);
  d[0] = add(even_a, -kP, add(c, -kQ, a));
  d[step] = add(even_a, kA, odd_a);
  d[2 * step] = add(even_a, -kA, odd_a);
  d[3 * step] = add(even_b, kB, odd_b);
  d[4 * step] = add(even_b, -kB, odd_b);
  d[5 * step] = add(add(g, -kQ, e), -kP, odd_a);
}

// One dimension of A^T m: six values to four.
inline void output_transform(const Vec m[6], Vec y[4]) {
  const auto add = [](Vec z, float k, Vec x) { return multiply_add(filled<Vec>(k), x, z); };
  const Vec s = m[1] + m[2], t = m[1] - m[2], u = m[3] + m[4], w = m[3] - m[4];
  y[0] = m[0] + s + u;
  y[1] = add(kB * w, kA, t);
  y[2] = add(kQ * u, kP, s);
  y[3] = add(add(m[5], kB * kQ, w), kA * kP, t);
}

// One dimension of A y: four values to six, the transpose of the above.
template <typename V>
inline void gradient_transform(const V y[4], V m[6]) {
  const V even_a = y[0] + kP * y[2], odd_a = kA * y[1] + kA * kP * y[3];
  const V even_b = y[0] + kQ * y[2], odd_b = kB * y[1] + kB * kQ * y[3];
  m[0] = y[0], m[1] = even_a + odd_a, m[2] = even_a - odd_a, m[3] = even_b + odd_b, m[4] = even_b - odd_b, m[5] = y[3];
}

// G, in double: 6 x 3.
inline void filter_matrix(double g[6][3]) {
  const double a = 0.6, b = 1.4, p = a * a, q = b * b;
  const double scale[6] = {1 / (p * q),           1 / (2 * p * (p - q)), 1 / (2 * p * (p - q)),
                           1 / (2 * q * (q - p)), 1 / (2 * q * (q - p)), 1};
  const double point[6] = {0, a, -a, b, -b, 0};
  for (int i = 0; i < 6; ++i)
    g[i][0] = scale[i], g[i][1] = scale[i] * point[i], g[i][2] = scale[i] * point[i] * point[i];
  g[5][0] = g[5][1] = 0, g[5][2] = 1;
}

// A run of tiles that lie beside each other in one row of tiles of one lane.
struct Run {
  int64_t lane, y, x, at, count;  // row and column of tiles; place in the block
};

// The tiles of all lanes, numbered lane by lane and row by row.
struct Tiling {
  int64_t lanes, height, width, rows, columns;

  Tiling(int64_t n, int64_t h, int64_t w) : lanes(n), height(h), width(w), rows((h + 3) / 4), columns((w + 3) / 4) {}
  int64_t tiles() const { return lanes * rows * columns; }
};

// Where the vectors of a block have a tile.
inline int64_t place(int64_t tile) { return tile / kWidth * kWidth + Quads<kWidth>::place(tile % kWidth); }

// Where a vector of a block's pixels lies, if all of it lies in one row of the picture.
struct Pixels {
  int64_t run, offset, begin,
      end;  // its run; from the plane to the first of the six rows; those of them that lie in the picture
};

// N vectors of tiles that follow each other.
template <int N>
struct Block {
  static constexpr int64_t size = N * kWidth;
  const Tiling& tiling;
  Run runs[size];
  int64_t count = 0, tiles;
  const bool whole;  // every vector of pixels lies in one row; then `pixels` says where
  Pixels pixels[4 * N] = {};
  bool before, after;  // whether pixels lie beside the block in the row of its first and of its last tile
  // Whether pixels lie to the left and to the right of a tile, 0 or -1, in the order of Quads.
  alignas(4 * kWidth) int32_t inner_left[size], inner_right[size];

  Block(const Tiling& t, int64_t first, int64_t end)
      : tiling(t), tiles(end - first < size ? end - first : size), whole(t.width % kWidth == 0) {
    for (int64_t tile = first; tile < first + tiles; ++count) {
      const int64_t x = tile % t.columns, row = tile / t.columns, rest = first + tiles - tile;
      const int64_t n = t.columns - x < rest ? t.columns - x : rest;
      runs[count] = {row / t.rows, row % t.rows, x, tile - first, n};
      tile += n;
    }
    for (int64_t i = 0; i < size; ++i) {
      const int64_t x = (first + i) % t.columns, at = place(i);
      const bool here = i < tiles;  // beyond the last tile nothing is read, not even what lay in that memory before
      inner_left[at] = here && x > 0 ? -1 : 0, inner_right[at] = here && x < t.columns - 1 ? -1 : 0;
    }
    const Run& last = runs[count - 1];
    before = runs[0].x > 0, after = last.x + last.count < t.columns;
    for (int64_t r = 0; whole && r < count; ++r)
      for (int64_t i = 0; i < 4 * runs[r].count; i += kWidth) {
        const int64_t y = 4 * runs[r].y - 1, rest = t.height - y;
        pixels[(4 * runs[r].at + i) / kWidth] = {r, y * t.width + 4 * runs[r].x + i, y < 0 ? -y : 0,
                                                 rest < 6 ? rest : 6};
      }
  }
};

// relu(x scale + shift), or x itself, of one plane.
template <bool normalise>
struct Plane {
  const float* data;
  float scale, shift;

  template <typename V>
  V operator()(V x) const {
    return normalise ? relu(multiply_add(x, filled<V>(scale), filled<V>(shift))) : x;
  }
};

// A row of a run's pixels to a buffer where the runs of a block follow each other; zeros beyond the border.
template <bool normalise>
inline void copy_row(const Plane<normalise>& plane, const Tiling& tiling, const Run& run, int64_t y, float* out) {
  const int64_t n = 4 * run.count, some = tiling.width - 4 * run.x < n ? tiling.width - 4 * run.x : n;
  int64_t i = 0;
  if (y >= 0 && y < tiling.height) {
    const float* x = plane.data + y * tiling.width + 4 * run.x;
    for (; i + kWidth <= some; i += kWidth) store(out + i, plane(load(x + i)));
    for (; i + 4 <= some; i += 4) store(out + i, plane(load<4>(x + i)));
    for (; i < some; ++i) out[i] = plane(x[i]);
  }
  for (; i < n; ++i) out[i] = 0;
}

// x where the mask is -1, 0 where it is 0.
inline Vec where(const int32_t* mask, Vec x) {
  using Int = Lanes<kWidth>::Int;
  Int m;
  __builtin_memcpy(&m, mask, sizeof m);
  return (Vec)((Int)x & m);
}

// A block's pixels of one channel, transformed downwards: six rows in the order of its tiles, `row` floats apart, each
// with a vector before and after it that hold the pixels beside the block.
template <int N>
struct Strip {
  static constexpr int64_t pixels = 4 * N * kWidth, row = pixels + 2 * kWidth, size = 6 * row;
};

// `count` vectors V of pixels beside each other, in rows `begin` to `end` of six that lie `width` apart, zeros in the
// others, transformed downwards to the rows of `out`. Lines at `ahead`, if it is given, are asked for on the way, so
// that requests never queue up.
template <typename V, int64_t row, bool normalise, bool all>
inline void transform_columns(Plane<normalise> plane, const float* from, const float* ahead, int64_t width,
                              int64_t begin, int64_t end, int64_t count, float* out) {
  constexpr int64_t step = sizeof(V) / sizeof(float), line = 16 / step;
  for (int64_t i = 0; i < count; ++i, from += step, out += step) {
    V d[6] = {};
#pragma GCC unroll 6
    for (int64_t k = 0; k < 6; ++k) {
      if (!all && (k < begin || k >= end)) continue;
      V x;
      __builtin_memcpy(&x, from + k * width, sizeof x);
      d[k] = plane(x);
    }
    if (ahead && i % line == 0)
      for (int64_t k = 0; k < 6; ++k) __builtin_prefetch(ahead + i * step + k * width);
    input_transform(d, 1);
    for (int64_t k = 0; k < 6; ++k) store(out + k * row, d[k]);
  }
}
template <typename V, int64_t row, bool normalise>
inline void transform_columns(Plane<normalise> plane, const float* from, const float* ahead, int64_t width,
                              int64_t begin, int64_t end, int64_t count, float* out) {
  const auto columns =
      begin == 0 && end == 6 ? transform_columns<V, row, normalise, true> : transform_columns<V, row, normalise, false>;
  columns(plane, from, ahead, width, begin, end, count, out);
}

constexpr int64_t kChannelsAhead = 4;  // memory's answer takes as long as transforming some channels

// Fills the strip of one channel, from the first pixel of its first row on: pixels are transformed while they lie as
// they do in the picture, a third fewer values than once split into the columns of tiles, which share pixels. `planes`:
// that of each run; `next`: those that are read later, whose rows lie too far apart for the processor to guess.
template <int N, bool normalise>
inline void transform_down(const Block<N>& block, const Plane<normalise>* planes, const float* const* next,
                           float* out) {
  constexpr int64_t row = Strip<N>::row;
  const Tiling& tiling = block.tiling;
  const int64_t width = tiling.width;
  if (block.whole) {
    for (int64_t r = 0; r < block.count; ++r) {
      const Run& run = block.runs[r];
      const Pixels& at = block.pixels[4 * run.at / kWidth];
      transform_columns<Vec, row>(planes[r], planes[r].data + at.offset, next[r] + at.offset, width, at.begin, at.end,
                                  4 * run.count / kWidth, out + 4 * run.at);
    }
    for (int64_t k = 0; k < 6 && block.tiles < block.size; ++k)
      memset(out + k * row + 4 * block.tiles, 0, 4 * (block.size - block.tiles) * sizeof(float));
  } else {
    alignas(64) float copied[6][4 * block.size];
    poison(copied[0], 24 * block.size);
    if (block.tiles < block.size) memset(copied, 0, sizeof copied);
    for (int64_t k = 0; k < 6; ++k)
      for (int64_t r = 0; r < block.count; ++r)
        copy_row(planes[r], tiling, block.runs[r], 4 * block.runs[r].y - 1 + k, copied[k] + 4 * block.runs[r].at);
    transform_columns<Vec, row>(Plane<false>{}, copied[0], nullptr, 4 * block.size, 0, 6, 4 * N, out);
  }
  const auto neighbour = [&](int64_t r, int64_t x, float* to) {
    const int64_t y = 4 * block.runs[r].y - 1;
    transform_columns<float, row>(planes[r], planes[r].data + y * width + x, nullptr, width, y < 0 ? 1 : 0,
                                  min(6, tiling.height - y), 1, to);
  };
  const Run &first = block.runs[0], &last = block.runs[block.count - 1];
  if (block.before) neighbour(0, 4 * first.x - 1, out - 1);
  if (block.after) neighbour(block.count - 1, 4 * (last.x + last.count), out + 4 * block.tiles);
}

// Six points of the n-th vector of tiles of a row of a strip, which is split into the columns of its tiles.
template <int N>
inline void transform_tiles(const Block<N>& block, const float* x, int64_t n, Vec t[6]) {
  x += 4 * n * kWidth;
  const Vec in[4] = {load(x), load(x + kWidth), load(x + 2 * kWidth), load(x + 3 * kWidth)};
  Quads<kWidth>::turn(in, t + 1);
  t[0] = where(block.inner_left + n * kWidth, Quads<kWidth>::after(x[-1], t[4]));
  t[5] = where(block.inner_right + n * kWidth, Quads<kWidth>::before(t[1], x[4 * kWidth]));
  input_transform(t, 1);
}

// A row of a strip, transformed along the row: six points, `stride` apart, of the tiles in `some` vectors from the n-th
// on.
template <int some, int N>
inline void transform_along(const Block<N>& block, const float* x, int64_t n, float* v, int64_t stride) {
  for (int64_t i = 0; i < some; ++i) {
    Vec t[6];
    transform_tiles(block, x, n + i, t);
    for (int j = 0; j < 6; ++j) store(v + j * stride + i * kWidth, t[j]);
  }
}

// B^T d B of a block's tiles, to v [point][tile], points `stride` apart. `planes`, `next`: see transform_down.
template <int N, bool normalise>
inline void transform_inputs(const Block<N>& block, const Plane<normalise>* planes, const float* const* next, float* v,
                             int64_t stride) {
  alignas(64) float strip[Strip<N>::size];
  poison(strip, Strip<N>::size);
  transform_down(block, planes, next, strip + kWidth);
  for (int64_t k = 0; k < 6; ++k)
    transform_along<N>(block, strip + kWidth + k * Strip<N>::row, 0, v + 6 * k * stride, stride);
}

// Filters are asked for a page ahead, since the processor's own prefetching ends where a page does, and wide
// convolutions read megabytes.
constexpr int64_t kFiltersAhead = 1024;

// With 16 registers GCC 12 keeps the sums in memory where it inlines the loop into a large function, which takes twice
// as long.
#if defined(__AVX512F__)
#define IFAN_PRODUCTS inline
#else
#define IFAN_PRODUCTS __attribute__((noinline))
#endif

// m [M][tiles] (+)= sum over channels of u [channel][kOutputs] v [channel][tiles], for N vectors of tiles, rows of m
// `row` apart: the inner loop of everything here. Memory from `next` on is asked for, as much as is read of the
// filters. Of at least one channel, and unrolled before GCC 12 decides where arrays live: else it copies the sums to
// the stack and back.
template <int M, int N, int row>
IFAN_PRODUCTS void products_of(const float* u, const float* v, int64_t channels, float* m, bool add,
                               const float* next) {
  const int64_t ahead = next - u;
  Vec sum[M][N];
#pragma GCC unroll 12
  for (int o = 0; o < M; ++o)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) sum[o][n] = add ? load(m + o * row + n * kWidth) : Vec{};
  do {
    __builtin_prefetch(u + ahead);
    Vec x[N];
    for (int n = 0; n < N; ++n) x[n] = load(v + n * kWidth);
    for (int o = 0; o < M; ++o)
      for (int n = 0; n < N; ++n) sum[o][n] += u[o] * x[n];
    u += kOutputs, v += N * kWidth;
  } while (--channels > 0);
#pragma GCC unroll 12
  for (int o = 0; o < M; ++o)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) store(m + o * row + n * kWidth, sum[o][n]);
}

// The same for the first `outputs` of a group, rounded up to a third of it.
template <int N, int row = N * kWidth>
inline void products(const float* u, const float* v, int64_t channels, float* m, bool add, int64_t outputs,
                     const float* next) {
  constexpr int third = kOutputs / 3;
  if (outputs > 2 * third)
    products_of<kOutputs, N, row>(u, v, channels, m, add, next);
  else if (outputs > third)
    products_of<2 * third, N, row>(u, v, channels, m, add, next);
  else
    products_of<third, N, row>(u, v, channels, m, add, next);
}

}  // namespace IFAN_ISA
}  // namespace ifan
