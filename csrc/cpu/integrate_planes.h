// One plane of the fusion: normalise, ReLU and average 2x2, and what its backward reads.
#pragma once
#include <cstring>

#include "affine_relu.h"
#include "moments.h"

namespace ifan {
namespace IFAN_ISA {

// Gradients from so many values on are larger than the caches and are stored past them.
constexpr int64_t kStreamed = 4 << 20;

// Values that are asked for ahead of the loads: with little work between them, the hardware alone fetches from memory at half the
// rate that it could.
constexpr int64_t kAhead = 2048;

// Sums of n pairs of neighbours of a row, in vectors of L and ever shorter ones; `second`: added to what is there, and averaged.
template <int L, bool second>
inline void pool_row(const float* x, int64_t n, float scale, float shift, float* out) {
  int64_t j = 0;
  for (; j + L <= n; j += L) {
    __builtin_prefetch(x + 2 * j + kAhead), __builtin_prefetch(x + 2 * j + L + kAhead);
    const VecOf<L> sum = Neighbours<L>::sum(relu(load<L>(x + 2 * j) * scale + shift), relu(load<L>(x + 2 * j + L) * scale + shift));
    store(out + j, second ? 0.25f * (load<L>(out + j) + sum) : sum);
  }
  if constexpr (L > 4) return pool_row<L / 2, second>(x + 2 * j, n - j, scale, shift, out + j);
  for (; j < n; ++j) {
    const float sum = relu(x[2 * j] * scale + shift) + relu(x[2 * j + 1] * scale + shift);
    out[j] = second ? 0.25f * (out[j] + sum) : sum;
  }
}

inline void forward_plane(const float* x, int pool, int64_t height, int64_t width, float scale, float shift, float* out) {
  if (pool == 1)
    for (int64_t i = 0; i < height * width; ++i) out[i] = relu(x[i] * scale + shift);
  else
    for (int64_t r = 0; r < height; r += 2, out += width / 2) {  // one row after the other: memory is read ahead in its order
      pool_row<kWidth, false>(x + r * width, width / 2, scale, shift, out);
      pool_row<kWidth, true>(x + (r + 1) * width, width / 2, scale, shift, out);
    }
}

// A pooled row's gradient as that of each of its pixels: a quarter for each.
inline void widen(const float* d, int64_t n, float* out) {
  int64_t j = 0;
  for (; j + kWidth <= n; j += kWidth) {
    Vec twice[2];
    Doubled<kWidth>::split(0.25f * load(d + j), twice);
    store(out + 2 * j, twice[0]), store(out + 2 * j + kWidth, twice[1]);
  }
  for (; j < n; ++j) out[2 * j] = out[2 * j + 1] = 0.25f * d[j];
}

// Calls run(first pixel, gradient of each of n pixels, n) for runs of at most kRun pixels of a plane; d: gradient of its average.
template <typename Run>
inline void for_runs(const float* d, int pool, int64_t height, int64_t width, Run run) {
  const int64_t pixels = height * width;
  if (pool == 1) {
    for (int64_t i = 0; i < pixels; i += kRun) run(i, d + i, least(kRun, pixels - i));
    return;
  }
  float wide[kRun];
  for (int64_t begun = 0, n; begun < pixels; begun += n) {  // as many whole pairs of rows as a run holds, or a part of one row
    n = 2 * width <= kRun ? least(kRun / (2 * width) * 2 * width, pixels - begun) : least(kRun, width - begun % width);
    for (int64_t i = 0; i < n;) {
      const int64_t r = (begun + i) / width, column = (begun + i) % width, some = least(n - i, width - column);
      widen(d + (r / 2) * (width / 2) + column / 2, some / 2, wide + i);
      if (2 * width <= kRun) memcpy(wide + i + width, wide + i, width * sizeof(float)), i += width;
      i += some;
    }
    run(begun, wide, n);
  }
}

// Stores vectors and single values; past the caches where `streamed` is true and the run begins at an aligned address.
struct Writer {
  float* to;
  bool streamed;

  Writer(float* address, bool large) : to(address), streamed(large && reinterpret_cast<uintptr_t>(address) % sizeof(Vec) == 0) {}
  void operator()(int64_t i, Vec v) const { streamed ? stream(to + i, v) : store(to + i, v); }
  void operator()(int64_t i, float v) const { to[i] = v; }
};

}  // namespace IFAN_ISA
}  // namespace ifan
