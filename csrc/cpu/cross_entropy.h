// Softmax cross-entropy of pixels whose classes lie in planes, and its gradient: see hybrid_loss.h for the formula.
#pragma once
#include "elementary.h"

namespace ifan {
namespace IFAN_ISA {

constexpr int64_t kIgnored = 255;  // label of pixels that do not count
constexpr int64_t kFar = 128;      // pixels whose logits and gradients are asked for ahead
constexpr int64_t kFactors = 16;  // pixels without weights of their own share a logarithm: sum of log = log of product,
constexpr int64_t kMostUnweighted =
    200;  // which a float holds for so many classes, as a sum of exponentials is at most their number

struct CrossEntropy {
  int64_t classes;
  const float* class_weights;  // (classes), or null: 1, for at most kMostUnweighted classes
  float smoothing;
  float scale;  // of the gradient
};

// Logits of some pixels, value k of pixel i at values[k stride + i], and where their gradient goes in the same order:
// elsewhere in memory (then both are asked for ahead) or in the logits' place, in the cache.
struct Pixels {
  const float* values;
  float* gradient;
  int64_t stride;
};

// What is kept of a vector of pixels meanwhile: its exponentials.
inline int64_t exponential_floats(int64_t classes) { return kWidth * classes; }

// The loss of a vector of pixels, and their gradient. Of pixels without weights the loss lacks the logarithm of
// `product`. `fixed`: the number of classes where it is known to the compiler, which then unrolls the loops over them;
// else 0.
template <int fixed, bool smooth>
inline void pixels_loss(const CrossEntropy& loss, const Pixels& pixels, const int32_t* labels, int64_t i,
                        float* exponentials, Vec* losses, Vec* product) {
  const int32_t classes = fixed ? fixed : static_cast<int32_t>(loss.classes);
  const float own_share = 1 - loss.smoothing, each = loss.smoothing / static_cast<float>(classes);
  const int64_t stride = pixels.stride;
  const float* values = pixels.values + i;
  float* gradient = pixels.gradient + i;
  Int label;
  __builtin_memcpy(&label, labels + i, sizeof label);
  Vec most = load(values), sum{}, total{}, own{};
#pragma GCC unroll 11
  for (int32_t k = 1; k < classes; ++k) {
    const Vec z = load(values + k * stride);
    most = z > most ? z : most;
  }
#pragma GCC unroll 11
  for (int32_t k = 0; k < classes; ++k) {
    const Vec d = load(values + k * stride) - most, e = exponential(d);
    own = label == k ? d : own;
    if (smooth) total += d;
    sum += e;
    store(exponentials + k * kWidth, e);
  }
  Vec weight = (label >= 0) & (label < classes) ? Vec{} + 1.f : Vec{};
  if (loss.class_weights) {
    for (int j = 0; j < kWidth; ++j) weight[j] = weight[j] > 0.f ? loss.class_weights[label[j]] : 0.f;
    *losses += weight * logarithm(sum);
  } else {
    *product *= weight > 0.f ? sum : weight + 1.f;
    if (i / kWidth % kFactors == kFactors - 1) *losses += logarithm(*product), *product = Vec{} + 1.f;
  }
  *losses -= weight * (own * own_share + total * each);
  weight *= loss.scale;
  const Vec factor = weight / sum, of_each = smooth ? weight * each : Vec{};
  const Vec of_own = weight * (1 - (loss.smoothing - each));  // both shares at once: of one class alone nothing is left
#pragma GCC unroll 11
  for (int32_t k = 0; k < classes; ++k)
    store(gradient + k * stride, load(exponentials + k * kWidth) * factor - (label == k ? of_own : of_each));
}

template <int fixed, bool smooth>
double cross_entropy(const CrossEntropy& loss, const Pixels& pixels, const int32_t* labels, int64_t n,
                     float* exponentials) {
  constexpr int64_t line = 16;  // floats
  const int64_t classes = fixed ? fixed : loss.classes, stride = pixels.stride;
  Vec losses{}, product = Vec{} + 1.f;
  for (int64_t i = 0; i < n; i += kWidth) {
    if (pixels.values != pixels.gradient && i % line == 0) {
      const float *values = pixels.values + i + kFar, *gradient = pixels.gradient + i + kFar;
#pragma GCC unroll 11
      for (int64_t k = 0; k < classes; ++k)
        __builtin_prefetch(values + k * stride), __builtin_prefetch(gradient + k * stride, 1);
    }
    pixels_loss<fixed, smooth>(loss, pixels, labels, i, exponentials, &losses, &product);
  }
  return static_cast<double>(sum_of(losses + logarithm(product)));
}

template <int fixed>
double cross_entropy(const CrossEntropy& loss, const Pixels& pixels, const int32_t* labels, int64_t n,
                     float* exponentials) {
  return loss.smoothing > 0 ? cross_entropy<fixed, true>(loss, pixels, labels, n, exponentials)
                            : cross_entropy<fixed, false>(loss, pixels, labels, n, exponentials);
}

// The sum of the losses of n pixels, whole vectors of them; their gradients, times `scale`. Labels -1 and 255 do not
// count. `exponentials`: see exponential_floats. Nine and eleven classes are those of the parsing datasets.
inline double cross_entropy(const CrossEntropy& loss, const Pixels& pixels, const int32_t* labels, int64_t n,
                            float* exponentials) {
  return loss.classes == 9    ? cross_entropy<9>(loss, pixels, labels, n, exponentials)
         : loss.classes == 11 ? cross_entropy<11>(loss, pixels, labels, n, exponentials)
                              : cross_entropy<0>(loss, pixels, labels, n, exponentials);
}

}  // namespace IFAN_ISA
}  // namespace ifan
