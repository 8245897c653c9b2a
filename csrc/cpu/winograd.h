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

// The tiles of all lanes, numbered lane by lane and row by row.
struct Tiling {
  int64_t lanes, height, width, rows, columns;

  Tiling(int64_t n, int64_t h, int64_t w) : lanes(n), height(h), width(w), rows((h + 3) / 4), columns((w + 3) / 4) {}
  int64_t tiles() const { return lanes * rows * columns; }
};

// N vectors of tiles that follow each other.
template <int N>
struct Block {
  static constexpr int64_t size = N * kWidth;
  const Tiling& tiling;
  Run runs[size];
  int64_t count = 0, tiles;
  int32_t inner_left[size], inner_right[size];  // whether pixels lie to the left and to the right of the tile: 0 or -1

  Block(const Tiling& t, int64_t first, int64_t end) : tiling(t), tiles(end - first < size ? end - first : size) {
    for (int64_t tile = first; tile < first + tiles; ++count) {
      const int64_t x = tile % t.columns, row = tile / t.columns, rest = first + tiles - tile;
      const int64_t n = t.columns - x < rest ? t.columns - x : rest;
      runs[count] = {row / t.rows, row % t.rows, x, tile - first, n};
      tile += n;
    }
    for (int64_t i = 0; i < size; ++i) {
      const int64_t x = (first + i) % t.columns;
      inner_left[i] = x > 0 ? -1 : 0, inner_right[i] = x < t.columns - 1 ? -1 : 0;
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
    return normalise ? relu(x * scale + shift) : x;
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

inline Vec where(const int32_t* mask, Vec x) {
  Lanes<kWidth>::Int m;
  __builtin_memcpy(&m, mask, sizeof m);
  return m ? x : Vec{};
}

// Rows of a block's pixels in the order of its tiles, each with the pixel to the left of the first and that to the right of the last.
template <int N>
struct Strip {
  static constexpr int64_t pixels = 4 * N * kWidth, edge = 16;  // the edges lie apart, so that vectors do not straddle cache lines
  alignas(64) float rows[6][edge + pixels + edge];

  float* row(int64_t k) { return rows[k] + edge; }
};

// The six rows of every tile. Row by row: the processor foresees what follows each other in memory.
template <int N, bool normalise>
inline void read_rows(const Block<N>& block, const Plane<normalise>* planes, Strip<N>& strip) {
  for (int64_t k = 0; k < 6; ++k)
    for (int64_t r = 0; r < block.count; ++r)
      copy_row(planes[r], block.tiling, block.runs[r], 4 * block.runs[r].y - 1 + k, strip.row(k) + 4 * block.runs[r].at);
}

// The pixels beside a block that begins or ends within a row of tiles, transformed downwards.
template <int N, bool normalise>
inline void read_edges(const Block<N>& block, const Plane<normalise>* planes, Strip<N>& strip) {
  const int64_t height = block.tiling.height, width = block.tiling.width;
  const Run &first = block.runs[0], &last = block.runs[block.count - 1];
  const int64_t begin = 4 * first.x, end = 4 * (last.x + last.count);
  if (begin == 0 && end >= width) return;
  VecOf<4> d[6] = {};
  for (int64_t k = 0; k < 6; ++k) {
    const int64_t top = 4 * first.y - 1 + k, bottom = 4 * last.y - 1 + k;
    if (begin > 0 && top >= 0 && top < height) d[k][0] = planes[0](planes[0].data[top * width + begin - 1]);
    const Plane<normalise>& plane = planes[block.count - 1];
    if (end < width && bottom >= 0 && bottom < height) d[k][1] = plane(plane.data[bottom * width + end]);
  }
  input_transform(d, 1);
  for (int64_t k = 0; k < 6; ++k) strip.row(k)[-1] = d[k][0], strip.row(k)[4 * block.tiles] = d[k][1];
}

// B^T d B of a block's tiles, to v [point][tile], points `stride` apart. `planes`: that of each run. Downwards first, while pixels
// lie as they do in the picture: a third fewer values than once split into the columns of tiles, which share pixels.
template <int N, bool normalise>
inline void transform_inputs(const Block<N>& block, const Plane<normalise>* planes, float* v, int64_t stride) {
  using Q = Quads<kWidth>;
  Strip<N> strip;
  read_rows(block, planes, strip);
  read_edges(block, planes, strip);
  for (int64_t i = 0; i < 4 * block.tiles; i += kWidth) {
    Vec d[6];
    for (int64_t k = 0; k < 6; ++k) d[k] = load(strip.row(k) + i);
    input_transform(d, 1);
    for (int64_t k = 0; k < 6; ++k) store(strip.row(k) + i, d[k]);
  }
  for (int64_t n = 0; n < N; ++n)
    for (int64_t k = 0; k < 6; ++k) {
      const float* x = strip.row(k) + 4 * n * kWidth;
      Vec p[4], t[6];
      Q::split(load(x), load(x + kWidth), load(x + 2 * kWidth), load(x + 3 * kWidth), p);
      t[0] = where(block.inner_left + n * kWidth, Q::after(x[-1], p[3]));
      t[1] = p[0], t[2] = p[1], t[3] = p[2], t[4] = p[3];
      t[5] = where(block.inner_right + n * kWidth, Q::before(p[0], x[4 * kWidth]));
      input_transform(t, 1);
      for (int j = 0; j < 6; ++j) store(v + (6 * k + j) * stride + n * kWidth, t[j]);
    }
}

// m [M][tiles] (+)= sum over channels of u [channel][kOutputs] v [channel][tiles]: the inner loop of everything here.
template <int M, int N>
inline void products_of(const float* u, const float* v, int64_t channels, float* m, bool add) {
  constexpr int tiles = N * kWidth;
  Vec sum[M][N];
  for (int o = 0; o < M; ++o)
    for (int n = 0; n < N; ++n) sum[o][n] = add ? load(m + o * tiles + n * kWidth) : Vec{};
  for (int64_t c = 0; c < channels; ++c, u += kOutputs, v += tiles) {
    Vec x[N];
    for (int n = 0; n < N; ++n) x[n] = load(v + n * kWidth);
    for (int o = 0; o < M; ++o)
      for (int n = 0; n < N; ++n) sum[o][n] += u[o] * x[n];
  }
  for (int o = 0; o < M; ++o)
    for (int n = 0; n < N; ++n) store(m + o * tiles + n * kWidth, sum[o][n]);
}

// The same for the first `outputs` of a group, rounded up to a third of it.
template <int N>
inline void products(const float* u, const float* v, int64_t channels, float* m, bool add, int64_t outputs) {
  constexpr int third = kOutputs / 3;
  if (outputs > 2 * third)
    products_of<kOutputs, N>(u, v, channels, m, add);
  else if (outputs > third)
    products_of<2 * third, N>(u, v, channels, m, add);
  else
    products_of<third, N>(u, v, channels, m, add);
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

// Asks for a run's pixels of one plane, whose rows lie too far apart for the processor to guess.
inline void prefetch(const float* plane, const Tiling& tiling, const Run& run) {
  const int64_t last = 4 * run.y + 5 < tiling.height ? 4 * run.y + 5 : tiling.height;
  for (int64_t y = run.y ? 4 * run.y - 1 : 0; y < last; ++y)
    for (int64_t x = 4 * run.x; x < 4 * (run.x + run.count); x += 16) __builtin_prefetch(plane + y * tiling.width + x);
}

// The 4 x 4 pixels of a block's tiles y [row][column][tile] to their places, or added to what is there; `planes`: that of each run.
template <int N>
inline void scatter(const Block<N>& block, const float* y, float* const* planes, bool add = false) {
  const Tiling& tiling = block.tiling;
  for (int64_t k = 0; k < 4; ++k) {
    float pixels[4 * block.size];
    const float* in = y + 4 * k * block.size;
    for (int64_t i = 0; i < block.size; i += kWidth) {
      const Vec p[4] = {load(in + i), load(in + block.size + i), load(in + 2 * block.size + i), load(in + 3 * block.size + i)};
      Vec x[4];
      Quads<kWidth>::join(p, x);
      for (int j = 0; j < 4; ++j) store(pixels + 4 * i + j * kWidth, x[j]);
    }
    for (int64_t r = 0; r < block.count; ++r) {
      const Run& run = block.runs[r];
      const int64_t row = 4 * run.y + k, rest = tiling.width - 4 * run.x, n = 4 * run.count < rest ? 4 * run.count : rest;
      if (row >= tiling.height) continue;
      float* out = planes[r] + row * tiling.width + 4 * run.x;
      float* from = pixels + 4 * run.at;
      if (add)
        for (int64_t j = 0; j < n; ++j) from[j] += out[j];
      int64_t i = 0;
      for (; i + kWidth <= n; i += kWidth) store(out + i, load(from + i));
      for (; i + 4 <= n; i += 4) store(out + i, load<4>(from + i));
      for (; i < n; ++i) out[i] = from[i];
    }
  }
}

}  // namespace IFAN_ISA
}  // namespace ifan
