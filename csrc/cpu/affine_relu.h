// The backward of relu(x scale + shift) over a run of values, shared by the kernels that end in it.
#pragma once
#include "simd.h"

namespace ifan {
namespace IFAN_ISA {

constexpr int64_t kRun = 512;  // values between two joins of the partial sums

struct Affine {
  float scale, shift, mean;
};

// At most kRun values; sums += (sum e, sum e (x - mean)), where e is d where x scale + shift > 0, else 0. For vectors and single
// values calls write(place, e, x - mean), which may change d there.
template <typename Write>
inline void visit_affine_relu(const float* x, const float* d, int64_t n, Affine f, double* sums, Write write) {
  constexpr int64_t step = 2 * kWidth;  // two independent partial sums, which hide the latency of an addition
  Vec first[2] = {}, second[2] = {};
  int64_t i = 0;
  for (; i + step <= n; i += step)
    for (int64_t j = 0; j < 2; ++j) {
      const Vec v = load(x + i + j * kWidth), g = load(d + i + j * kWidth);
      const Vec e = v * f.scale + f.shift <= 0 ? Vec{} : g, deviation = v - f.mean;
      first[j] += e;
      second[j] += e * deviation;
      write(i + j * kWidth, e, deviation);
    }
  sums[0] += sum_of(first[0] + first[1]), sums[1] += sum_of(second[0] + second[1]);
  for (; i < n; ++i) {
    const float v = x[i], e = v * f.scale + f.shift <= 0 ? 0 : d[i], deviation = v - f.mean;
    sums[0] += e, sums[1] += e * deviation;
    write(i, e, deviation);
  }
}

// The same, and gx = e scale; gx may be d.
inline void affine_relu_run(const float* x, const float* d, float* gx, int64_t n, Affine f, double* sums) {
  visit_affine_relu(x, d, n, f, sums, [=](int64_t i, auto e, auto) { store(gx + i, e * f.scale); });
}

inline void affine_relu_backward(const float* x, const float* d, float* gx, int64_t n, Affine f, double* sums) {
  for (int64_t i = 0; i < n; i += kRun) affine_relu_run(x + i, d + i, gx + i, n - i < kRun ? n - i : kRun, f, sums);
}

}  // namespace IFAN_ISA
}  // namespace ifan
