// 3x3 convolutions by Winograd's F(4x4, 3x3): 36 products where the definition takes 144.
//
// Vector lanes are output tiles of 4 x 4 pixels. Interpolation points 0, +-0.6, +-1.4 and infinity: over the whole network their
// fp32 error equals that of direct convolution, while the usual 0, +-1, +-2 double it.
//
//   y = A^T [ (G w G^T) . (B^T d B) ] A       d: 6 x 6 inputs of a tile, w: 3 x 3, y: 4 x 4
#pragma once
#include "simd.h"

namespace ifan {
namespace IFAN_ISA {

constexpr int kPoints = 36;                              // products a tile, input and output channel
constexpr int kOutputs = kRegisters == 32 ? 12 : 6;      // output channels whose sums stay in registers
constexpr float kA = 0.6f, kB = 1.4f, kP = 0.36f, kQ = 1.96f;  // the points and their squares

// One dimension of B^T d, in place over d[0], d[step], ..., d[5 step].
template <typename V>
inline void input_transform(V* d, int step) {
  const V a = d[0], b = d[step], c = d[2 * step], e = d[3 * step], f = d[4 * step], g = d[5 * step];
  const V even_a = f - kQ * c, odd_a = e - kQ * b, even_b = f - kP * c, odd_b = e - kP * b;
  d[0] = kP * kQ * a - (kP + kQ) * c + f;
  d[step] = even_a + kA * odd_a;
  d[2 * step] = even_a - kA * odd_a;
  d[3 * step] = even_b + kB * odd_b;
  d[4 * step] = even_b - kB * odd_b;
  d[5 * step] = kP * kQ * b - (kP + kQ) * e + g;
}

// One dimension of A^T m: six values to four.
template <typename V>
inline void output_transform(const V m[6], V y[4]) {
  const V s = m[1] + m[2], t = m[1] - m[2], u = m[3] + m[4], w = m[3] - m[4];
  y[0] = m[0] + s + u;
  y[1] = kA * t + kB * w;
  y[2] = kP * s + kQ * u;
  y[3] = kA * kP * t + kB * kQ * w + m[5];
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
  const double scale[6] = {1 / (p * q), 1 / (2 * p * (p - q)), 1 / (2 * p * (p - q)), 1 / (2 * q * (q - p)), 1 / (2 * q * (q - p)), 1};
  const double point[6] = {0, a, -a, b, -b, 0};
  for (int i = 0; i < 6; ++i) g[i][0] = scale[i], g[i][1] = scale[i] * point[i], g[i][2] = scale[i] * point[i] * point[i];
  g[5][0] = g[5][1] = 0, g[5][2] = 1;
}

// A run of tiles that lie beside each other in one row of tiles of one lane.
struct Run {
  int64_t lane, y, x, at, count;  // row and column of tiles; place in the block
};

// The tiles of all lanes, numbered lane by lane and row by row, cut into blocks.
struct Tiling {
  int64_t lanes, height, width, rows, columns;

  Tiling(int64_t n, int64_t h, int64_t w) : lanes(n), height(h), width(w), rows((h + 3) / 4), columns((w + 3) / 4) {}
  int64_t tiles() const { return lanes * rows * columns; }

  // The runs of the block of `size` tiles that begins at tile `first`.
  int64_t runs(int64_t first, int64_t size, Run* out) const {
    int64_t n = 0;
    for (int64_t tile = first, end = first + size < tiles() ? first + size : tiles(); tile < end; ++n) {
      const int64_t x = tile % columns, row = tile / columns, count = columns - x < end - tile ? columns - x : end - tile;
      out[n] = {row / rows, row % rows, x, tile - first, count};
      tile += count;
    }
    return n;
  }
};

// relu(x scale + shift), or x itself.
template <bool normalise>
struct Prologue {
  float scale, shift;
  template <typename V>
  V operator()(V x) const {
    return normalise ? relu(x * scale + shift) : x;
  }
};

// L whole tiles of one row of pixels, transformed along the row: six vectors, `stride` apart.
template <int L, bool normalise>
inline void row_of_tiles(const float* row, int64_t width, int64_t tile, Prologue<normalise> f, float* out, int64_t stride) {
  using Q = Quads<L>;
  const float* x = row + 4 * tile;
  VecOf<L> p[4], d[6];
  Q::split(f(load<L>(x)), f(load<L>(x + L)), f(load<L>(x + 2 * L)), f(load<L>(x + 3 * L)), p);
  d[0] = Q::after(tile ? f(x[-1]) : 0.f, p[3]);
  d[1] = p[0], d[2] = p[1], d[3] = p[2], d[4] = p[3];
  d[5] = Q::before(p[0], 4 * (tile + L) < width ? f(x[4 * L]) : 0.f);
  input_transform(d, 1);
  for (int j = 0; j < 6; ++j) store(out + j * stride, d[j]);
}

// One tile, whole or cut by the right border.
template <bool normalise>
inline void single_tile(const float* row, int64_t width, int64_t tile, Prologue<normalise> f, float* out, int64_t stride) {
  float d[6];
  for (int64_t j = 0, x = 4 * tile - 1; j < 6; ++j, ++x) d[j] = x >= 0 && x < width ? f(row[x]) : 0.f;
  input_transform(d, 1);
  for (int j = 0; j < 6; ++j) out[j * stride] = d[j];
}

// The 6 x 6 inputs of a run's tiles in one plane, transformed along the rows, to d [row][column][tile].
template <bool normalise>
inline void gather(const float* plane, const Tiling& tiling, const Run& run, Prologue<normalise> f, float* d, int64_t tiles) {
  for (int64_t k = 0; k < 6; ++k) {
    const int64_t y = 4 * run.y - 1 + k;
    float* out = d + 6 * k * tiles + run.at;
    if (y < 0 || y >= tiling.height) {
      for (int64_t j = 0; j < 6; ++j)
        for (int64_t t = 0; t < run.count; ++t) out[j * tiles + t] = 0;
      continue;
    }
    const float* row = plane + y * tiling.width;
    const int64_t whole = run.x + run.count <= tiling.width / 4 ? run.count : tiling.width / 4 - run.x;
    int64_t t = 0;
    for (; t + kWidth <= whole; t += kWidth) row_of_tiles<kWidth>(row, tiling.width, run.x + t, f, out + t, tiles);
    for (; t + kHalf <= whole; t += kHalf) row_of_tiles<kHalf>(row, tiling.width, run.x + t, f, out + t, tiles);
    for (; t + 4 <= whole; t += 4) row_of_tiles<4>(row, tiling.width, run.x + t, f, out + t, tiles);
    for (; t < run.count; ++t) single_tile(row, tiling.width, run.x + t, f, out + t, tiles);
  }
}

// The other dimension of the input transform: d [row][column][tile] to v [point][tile], points `stride` apart.
template <int N>
inline void transform_columns(const float* d, float* v, int64_t stride) {
  constexpr int tiles = N * kWidth;
  for (int j = 0; j < 6; ++j)
    for (int n = 0; n < N; ++n) {
      Vec x[6];
      for (int k = 0; k < 6; ++k) x[k] = load(d + (6 * k + j) * tiles + n * kWidth);
      input_transform(x, 1);
      for (int k = 0; k < 6; ++k) store(v + (6 * k + j) * stride + n * kWidth, x[k]);
    }
}

// m [M][tiles] (+)= sum over channels of u [channel][M] v [channel][tiles]: the inner loop of everything here.
template <int M, int N>
inline void products(const float* u, const float* v, int64_t channels, float* m, bool add) {
  constexpr int tiles = N * kWidth;
  Vec sum[M][N];
  for (int o = 0; o < M; ++o)
    for (int n = 0; n < N; ++n) sum[o][n] = add ? load(m + o * tiles + n * kWidth) : Vec{};
  for (int64_t c = 0; c < channels; ++c, u += M, v += tiles) {
    Vec x[N];
    for (int n = 0; n < N; ++n) x[n] = load(v + n * kWidth);
    for (int o = 0; o < M; ++o)
      for (int n = 0; n < N; ++n) sum[o][n] += u[o] * x[n];
  }
  for (int o = 0; o < M; ++o)
    for (int n = 0; n < N; ++n) store(m + o * tiles + n * kWidth, sum[o][n]);
}

// Both dimensions of the output transform of one channel: m [point][tile], points `stride` apart, to y [row][column][tile].
template <int N>
inline void transform_outputs(const float* m, int64_t stride, float* y) {
  constexpr int tiles = N * kWidth;
  for (int n = 0; n < N; ++n) {
    Vec half[4][6];
    for (int j = 0; j < 6; ++j) {
      Vec x[6], t[4];
      for (int k = 0; k < 6; ++k) x[k] = load(m + (6 * k + j) * stride + n * kWidth);
      output_transform(x, t);
      for (int r = 0; r < 4; ++r) half[r][j] = t[r];
    }
    for (int r = 0; r < 4; ++r) {
      Vec t[4];
      output_transform(half[r], t);
      for (int q = 0; q < 4; ++q) store(y + (4 * r + q) * tiles + n * kWidth, t[q]);
    }
  }
}

// L tiles of one row of pixels, back in the order of pixels.
template <int L>
inline void join_tiles(const float* y, int64_t tiles, float* out) {
  VecOf<L> p[4] = {load<L>(y), load<L>(y + tiles), load<L>(y + 2 * tiles), load<L>(y + 3 * tiles)}, x[4];
  Quads<L>::join(p, x);
  for (int i = 0; i < 4; ++i) store(out + i * L, x[i]);
}

// A run's tiles y [row][column][tile] to their pixels in a plane.
inline void scatter(const float* y, int64_t tiles, const Tiling& tiling, const Run& run, float* plane) {
  const int64_t whole = run.x + run.count <= tiling.width / 4 ? run.count : tiling.width / 4 - run.x;
  for (int64_t r = 0; r < 4 && 4 * run.y + r < tiling.height; ++r) {
    const float* in = y + 4 * r * tiles + run.at;
    float* out = plane + (4 * run.y + r) * tiling.width + 4 * run.x;
    int64_t t = 0;
    for (; t + kWidth <= whole; t += kWidth) join_tiles<kWidth>(in + t, tiles, out + 4 * t);
    for (; t + kHalf <= whole; t += kHalf) join_tiles<kHalf>(in + t, tiles, out + 4 * t);
    for (; t + 4 <= whole; t += 4) join_tiles<4>(in + t, tiles, out + 4 * t);
    for (; t < run.count; ++t)
      for (int64_t q = 0; q < 4 && 4 * (run.x + t) + q < tiling.width; ++q) out[4 * t + q] = in[q * tiles + t];
  }
}

}  // namespace IFAN_ISA
}  // namespace ifan
