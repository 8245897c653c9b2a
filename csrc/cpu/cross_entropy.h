// Softmax cross-entropy of pixels whose classes lie in planes, and its gradient: see hybrid_loss.h for the formula.
#pragma once
#include "elementary.h"

namespace ifan {
namespace IFAN_ISA {

constexpr int64_t kIgnored = 255;  // label of pixels that do not count
constexpr int64_t kFar = 128;      // pixels whose logits and gradients are asked for ahead
constexpr int64_t kFactors = 16;   // pixels without weights of their own share a logarithm: sum of log = log of product,
constexpr int64_t kMostUnweighted = 200;  // which a float holds for so many classes, as a sum of exponentials is at most their number

struct Sums {
  double loss, weight;
};

struct CrossEntropy {
  int64_t classes;
  const float* class_weights;  // (classes), or null: 1, for at most kMostUnweighted classes
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
template <int fixed, bool smooth, bool weighted>
bool cross_entropy(const CrossEntropy& loss, const Pixels& pixels, const int32_t* labels, int64_t n, float* exponentials, Sums* sums) {
  const int64_t classes = fixed ? fixed : loss.classes;
  const float own_share = 1 - loss.smoothing, each = loss.smoothing / static_cast<float>(classes);
  const bool far = pixels.values != pixels.gradient;
  Vec losses{}, weights{}, product = Vec{} + 1.f, registers[fixed ? fixed : 1];
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
    if (!weighted) weight = (label >= 0) & (label < static_cast<int32_t>(classes)) ? Vec{} + 1.f : weight;
    each_class([&](int64_t k) {
      const Vec d = kept(k) - most, e = exponential(d);
      own = label == static_cast<int32_t>(k) ? d : own;
      if (weighted) weight = label == static_cast<int32_t>(k) ? Vec{} + loss.class_weights[k] : weight;
      if (smooth) total += d;
      sum += e;
      keep(k, e);
    });
    if (weighted) {
      losses += weight * (logarithm(sum) - own * own_share - total * each);
    } else {
      losses -= weight * (own * own_share + total * each);
      product *= weight > 0.f ? sum : weight + 1.f;
      if (i / kWidth % kFactors == kFactors - 1) losses += logarithm(product), product = Vec{} + 1.f;
    }
    weights += weight;
    const Vec factor = weight / sum, of_own = weight * own_share, of_each = weight * each;
    each_class([&](int64_t k) {
      Vec g = kept(k) * factor;
      if (smooth) g -= of_each;
      store(pixels.gradient + k * pixels.stride + i, label == static_cast<int32_t>(k) ? g - of_own : g);
    });
  }
  if (!weighted) losses += logarithm(product);
  sums->loss += static_cast<double>(sum_of(losses));
  sums->weight += static_cast<double>(sum_of(weights));
  bool right = true;
  for (int j = 0; j < kWidth; ++j) right = right && !wrong[j];
  return right;
}

template <int fixed>
bool cross_entropy(const CrossEntropy& loss, const Pixels& pixels, const int32_t* labels, int64_t n, float* exponentials, Sums* sums) {
  const bool smooth = loss.smoothing > 0;
  if (loss.class_weights) return smooth ? cross_entropy<fixed, true, true>(loss, pixels, labels, n, exponentials, sums)
                                        : cross_entropy<fixed, false, true>(loss, pixels, labels, n, exponentials, sums);
  return smooth ? cross_entropy<fixed, true, false>(loss, pixels, labels, n, exponentials, sums)
                : cross_entropy<fixed, false, false>(loss, pixels, labels, n, exponentials, sums);
}

// Nine and eleven classes are those of the parsing datasets.
inline bool cross_entropy(const CrossEntropy& loss, const Pixels& pixels, const int32_t* labels, int64_t n, float* exponentials, Sums* sums) {
  return loss.classes == 9    ? cross_entropy<9>(loss, pixels, labels, n, exponentials, sums)
         : loss.classes == 11 ? cross_entropy<11>(loss, pixels, labels, n, exponentials, sums)
                              : cross_entropy<0>(loss, pixels, labels, n, exponentials, sums);
}

}  // namespace IFAN_ISA
}  // namespace ifan
