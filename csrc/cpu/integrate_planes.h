// One plane of the fusion: normalise, ReLU and average 2x2, and what its backward reads.
#pragma once
#include "affine_relu.h"
#include "moments.h"

namespace ifan {
namespace IFAN_ISA {

// What pooling and its backward ask for is as much as they read, from `next` on: with little work between two loads,
// the hardware alone fetches from memory at half the rate that it could. It goes to the second-level cache.
constexpr int64_t kAhead = 2048;  // values between a plane and its `next`, where what is asked for comes soon

inline void prefetch(const float* next, int64_t values) {
  for (int64_t i = 0; i < values; i += kLine) __builtin_prefetch(next + i, 0, 2);
}

// n averages of 2x2 pixels of the neighbouring rows a and b, in vectors of L and ever shorter ones, to those from `at`
// on.
template <int L>
inline void pool_rows(const float* a, const float* b, int64_t n, float scale, float shift, const Writer& write,
                      int64_t at, const float* next) {
  int64_t j = 0;
  const auto both = [&](int64_t i) {
    return relu(load<L>(a + i) * scale + shift) + relu(load<L>(b + i) * scale + shift);
  };
  for (; j + L <= n; j += L) {
    prefetch(next + 4 * j, 4 * L);
    write(at + j, 0.25f * Neighbours<L>::sum(both(2 * j), both(2 * j + L)));
  }
  if (j == n) return;
  if constexpr (L > 4) return pool_rows<L / 2>(a + 2 * j, b + 2 * j, n - j, scale, shift, write, at + j, next + 4 * j);
  const auto one = [&](int64_t i) { return relu(a[i] * scale + shift) + relu(b[i] * scale + shift); };
  for (; j < n; ++j) write(at + j, 0.25f * (one(2 * j) + one(2 * j + 1)));
}

inline void forward_plane(const float* x, int pool, int64_t height, int64_t width, float scale, float shift,
                          const Writer& write, const float* next) {
  if (pool == 1)
    for (int64_t i = 0; i < height * width; ++i) write.to[i] = relu(x[i] * scale + shift);
  else
    for (int64_t r = 0; r < height; r += 2)
      pool_rows<kWidth>(x + r * width, x + (r + 1) * width, width / 2, scale, shift, write, r / 2 * (width / 2),
                        next + r * width);
}

// As visit_affine_relu, for a plane whose averages have the gradient d: a quarter of it for each of the four pixels.
// For rows of whole pairs of vectors.
template <typename Write>
inline void visit_pairs(const float* x, const float* d, int64_t height, int64_t width, Affine f, double* sums,
                        Write write, const float* next) {
  constexpr int64_t block = kRun / 4;  // averages between two tests whether a run is over
  AffineSums run;
  for (int64_t r = 0, visited = 0; r < height; r += 2, d += width / 2)
    for (int64_t begun = 0, end; begun < width / 2; begun = end) {
      end = min(begun + block, width / 2);
      const int64_t rows[2] = {r * width, (r + 1) * width};
      for (int64_t j = begun; j < end; j += kWidth) {
        Vec twice[2];
        Doubled<kWidth>::split(0.25f * load(d + j), twice);
        prefetch(next + rows[0] + 4 * j, 4 * kWidth);
        for (int64_t row : rows)
          for (int64_t k = 0; k < 2; ++k) run.visit(x, row + 2 * j + k * kWidth, twice[k], f, k, write);
      }
      if ((visited += 4 * (end - begun)) > kRun - 4 * block) run.join(sums), visited = 0;
    }
  run.join(sums);
}

inline void widen(const float* d, int64_t n, float* out) {
  int64_t j = 0;
  for (; j + kWidth <= n; j += kWidth) {
    Vec twice[2];
    Doubled<kWidth>::split(0.25f * load(d + j), twice);
    store(out + 2 * j, twice[0]), store(out + 2 * j + kWidth, twice[1]);
  }
  for (; j < n; ++j) out[2 * j] = out[2 * j + 1] = 0.25f * d[j];
}

// The same for rows of any width: the pixels' gradients are laid out first, so that vectors go on from one row to the
// next.
template <typename Write>
inline void visit_laid_out(const float* x, const float* d, int64_t height, int64_t width, Affine f, double* sums,
                           Write write) {
  float wide[kRun];
  for (int64_t begun = 0, n; begun < height * width;
       begun += n) {  // as many whole pairs of rows as a run holds, or a part of one row
    n = 2 * width <= kRun ? min(kRun / (2 * width) * 2 * width, height * width - begun)
                          : min(kRun, width - begun % width);
    for (int64_t i = 0; i < n;) {
      const int64_t r = (begun + i) / width, column = (begun + i) % width, some = min(n - i, width - column);
      widen(d + (r / 2) * (width / 2) + column / 2, some / 2, wide + i);
      if (2 * width <= kRun) __builtin_memcpy(wide + i + width, wide + i, width * sizeof(float)), i += width;
      i += some;
    }
    visit_affine_relu(x + begun, wide, n, f, sums,
                      [&](int64_t i, auto e, auto deviation) { write(begun + i, e, deviation); });
  }
}

// Either, for a plane of d averages or values.
template <typename Write>
inline void visit_plane(const float* x, const float* d, int pool, int64_t height, int64_t width, Affine f, double* sums,
                        Write write, const float* next) {
  if (pool == 1)
    visit_affine_relu(x, d, height * width, f, sums, write);
  else
    width % (2 * kWidth) ? visit_laid_out(x, d, height, width, f, sums, write)
                         : visit_pairs(x, d, height, width, f, sums, write, next);
}

}  // namespace IFAN_ISA
}  // namespace ifan
