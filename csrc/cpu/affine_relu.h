// The backward of relu(x scale + shift) over a run of values, shared by the kernels that end in it.
#pragma once
#include "simd.h"

namespace ifan {
namespace IFAN_ISA {

constexpr int64_t kRun = 128 * kWidth;  // values between two joins of the partial sums

struct Affine {
  float scale, shift, mean;
};

// Sums of e and of e (x - mean), where e is the gradient d where x scale + shift > 0, else 0: two independent partial
// sums of vectors, which hide the latency of an addition. Each visit calls write(place, e, x - mean).
struct AffineSums {
  Vec first[2] = {}, second[2] = {};

  template <typename Write>
  void visit(const float* x, int64_t i, Vec d, Affine f, int64_t part, Write write) {
    const Vec v = load(x + i), e = v * f.scale + f.shift <= 0 ? Vec{} : d, deviation = v - f.mean;
    first[part] += e;
    second[part] += e * deviation;
    write(i, e, deviation);
  }
  template <typename Write>
  void visit(const float* x, int64_t i, float d, Affine f, double* sums, Write write) {
    const float e = x[i] * f.scale + f.shift <= 0 ? 0 : d, deviation = x[i] - f.mean;
    sums[0] += e, sums[1] += e * deviation;
    write(i, e, deviation);
  }
  void join(double* sums) {
    sums[0] += sum_of(first[0] + first[1]), sums[1] += sum_of(second[0] + second[1]);
    *this = {};
  }
};

// Visits n values with the gradients d; write may change d there.
template <typename Write>
inline void visit_affine_relu(const float* x, const float* d, int64_t n, Affine f, double* sums, Write write) {
  constexpr int64_t step = 2 * kWidth;
  AffineSums run;
  int64_t i = 0;
  for (; i + step <= n; i += step) {
    for (int64_t j = 0; j < 2; ++j) run.visit(x, i + j * kWidth, load(d + i + j * kWidth), f, j, write);
    if ((i + step) % kRun == 0) run.join(sums);
  }
  run.join(sums);
  for (; i < n; ++i) run.visit(x, i, d[i], f, sums, write);
}

// The same, and gx = e scale, or added to what gx holds; gx may be d.
inline void affine_relu_backward(const float* x, const float* d, float* gx, int64_t n, Affine f, double* sums,
                                 bool add = false) {
  if (!add) return visit_affine_relu(x, d, n, f, sums, [=](int64_t i, auto e, auto) { store(gx + i, e * f.scale); });
  visit_affine_relu(x, d, n, f, sums, [=](int64_t i, auto e, auto) { add_to(gx + i, e * f.scale); });
}

}  // namespace IFAN_ISA
}  // namespace ifan
