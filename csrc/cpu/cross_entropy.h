// Softmax cross-entropy of pixels whose classes lie in planes, and its gradient: see hybrid_loss.h for the formula.
#pragma once
#include "elementary.h"

namespace ifan {
namespace IFAN_ISA {

constexpr int64_t kIgnored = 255;  // label of pixels that do not count
constexpr int64_t kFar = 128;      // pixels whose logits and gradients are asked for ahead

struct Sums {
  double loss, weight;
};

struct CrossEntropy {
  int64_t classes;
  const float* class_weights;  // (classes)
  float smoothing;
};

// Logits of some pixels, value k of pixel i at values[k stride + i], and where their gradient goes in the same order: elsewhere in
// memory (then both are asked for ahead) or in the logits' place, in the cache.
struct Pixels {
  const float* values;
  float* gradient;
  int64_t stride;
};

template <int k, int n, typename Visit>
inline __attribute__((always_inline)) void unrolled(Visit visit) {
  if constexpr (k < n) visit(k), unrolled<k + 1, n>(visit);
}

// For n pixels, whole vectors of them; false if a label is of no class and neither -1 nor 255, which do not count. `fixed`: the number
// of classes where it is known to the compiler, which then keeps a pixel's exponentials in registers; else 0, and they go to
// `exponentials`, a vector a class.
template <int fixed, bool smooth>
bool cross_entropy(const CrossEntropy& loss, const Pixels& pixels, const int32_t* labels, int64_t n, float* exponentials, Sums* sums) {
  const int64_t classes = fixed ? fixed : loss.classes;
  const float own_share = 1 - loss.smoothing, each = loss.smoothing / static_cast<float>(classes);
  const bool far = pixels.values != pixels.gradient;
  Vec losses{}, weights{}, registers[fixed ? fixed : 1];
  Int wrong{};
  const auto keep = [&](int64_t k, Vec v) { fixed ? void(registers[k] = v) : store(exponentials + k * kWidth, v); };
  const auto kept = [&](int64_t k) { return fixed ? registers[k] : load(exponentials + k * kWidth); };
  const auto each_class = [&](auto visit) {
    if constexpr (fixed) return unrolled<0, fixed>(visit);
    for (int64_t k = 0; k < classes; ++k) visit(k);
  };
  for (int64_t i = 0; i < n; i += kWidth) {
    Int label;
    __builtin_memcpy(&label, labels + i, sizeof label);
    wrong |= (label >= static_cast<int32_t>(classes)) & (label != static_cast<int32_t>(kIgnored));
    if (far)
      for (int64_t k = 0; k < classes; ++k) {
        __builtin_prefetch(pixels.values + k * pixels.stride + i + kFar);
        __builtin_prefetch(pixels.gradient + k * pixels.stride + i + kFar, 1);
      }
    Vec most = load(pixels.values + i);
    each_class([&](int64_t k) {
      const Vec v = load(pixels.values + k * pixels.stride + i);
      keep(k, v);
      most = v > most ? v : most;
    });
    Vec sum{}, total{}, own{}, weight{};
    each_class([&](int64_t k) {
      const Vec d = kept(k) - most, e = exponential(d);
      own = label == static_cast<int32_t>(k) ? d : own;
      weight = label == static_cast<int32_t>(k) ? Vec{} + loss.class_weights[k] : weight;
      if (smooth) total += d;
      sum += e;
      keep(k, e);
    });
    losses += weight * (logarithm(sum) - own * own_share - total * each);
    weights += weight;
    const Vec factor = weight / sum, of_own = weight * own_share, of_each = weight * each;
    each_class([&](int64_t k) {
      Vec g = kept(k) * factor;
      if (smooth) g -= of_each;
      store(pixels.gradient + k * pixels.stride + i, label == static_cast<int32_t>(k) ? g - of_own : g);
    });
  }
  sums->loss += static_cast<double>(sum_of(losses));
  sums->weight += static_cast<double>(sum_of(weights));
  bool right = true;
  for (int j = 0; j < kWidth; ++j) right = right && !wrong[j];
  return right;
}

template <int fixed>
bool cross_entropy(const CrossEntropy& loss, const Pixels& pixels, const int32_t* labels, int64_t n, float* exponentials, Sums* sums) {
  return loss.smoothing > 0 ? cross_entropy<fixed, true>(loss, pixels, labels, n, exponentials, sums)
                            : cross_entropy<fixed, false>(loss, pixels, labels, n, exponentials, sums);
}

// Nine and eleven classes are those of the parsing datasets.
inline bool cross_entropy(const CrossEntropy& loss, const Pixels& pixels, const int32_t* labels, int64_t n, float* exponentials, Sums* sums) {
  return loss.classes == 9    ? cross_entropy<9>(loss, pixels, labels, n, exponentials, sums)
         : loss.classes == 11 ? cross_entropy<11>(loss, pixels, labels, n, exponentials, sums)
                              : cross_entropy<0>(loss, pixels, labels, n, exponentials, sums);
}

}  // namespace IFAN_ISA
}  // namespace ifan
