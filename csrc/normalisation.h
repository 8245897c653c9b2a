// Task-wise normalisation as one scale and one shift a task and channel, and its gradients.
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "bounds.h"

namespace ifan {

// An address of (tasks, channels) and the floats from one task's to the next.
using Rows = std::pair<uintptr_t, int64_t>;

inline float* row(Rows rows, int64_t task) { return reinterpret_cast<float*>(rows.first) + task * rows.second; }

inline Rows from_channel(Rows rows, int64_t channel) { return {rows.first + channel * sizeof(float), rows.second}; }

// Weight, bias, mean and var of a normalisation.
using Norm = std::array<Rows, 4>;

inline void expect_rows(const char* what, Rows rows, int64_t tasks, int64_t channels) {
  expect_strides(what, std::array{rows.second, int64_t{1}}, std::array{tasks, channels});
  expect_address(what, rows.first, count_of(what, {tasks, channels}));
}

inline void expect_norm(const Norm& norm, int64_t tasks, int64_t channels) {
  for (const Rows& rows : norm) expect_rows("values of a normalisation", rows, tasks, channels);
}

// (x - mean) / sqrt(var + eps) weight + bias, to scale and shift (tasks, channels).
inline void scale_and_shift(const Norm& norm, int64_t tasks, int64_t channels, float eps, float* scale, float* shift) {
  for (int64_t t = 0; t < tasks; ++t, scale += channels, shift += channels) {
    const float *weight = row(norm[0], t), *bias = row(norm[1], t), *mean = row(norm[2], t), *var = row(norm[3], t);
    for (int64_t c = 0; c < channels; ++c) {
      scale[c] = weight[c] * (1 / std::sqrt(var[c] + eps));
      shift[c] = bias[c] - mean[c] * scale[c];
    }
  }
}

// Gradients of a norm's weight and bias, which are written, and of mean and var, which are added to what is there.
// `sums` (lanes, channels, 2), float or double: for each lane and channel the sum of the gradients behind the norm, and
// that of their products with x - mean.
template <typename Sum>
void add_up_normalisation(const Sum* sums, const std::vector<int64_t>& segments, int64_t channels, const float* scale,
                          Rows variance, float eps, const Norm& gradients) {
  std::vector<double> total(2 * channels);
  for (size_t t = 0; t < segments.size(); ++t, scale += channels) {
    const float* var = row(variance, t);
    float *weight = row(gradients[0], t), *bias = row(gradients[1], t), *of_mean = row(gradients[2], t),
          *of_var = row(gradients[3], t);
    std::fill(total.begin(), total.end(), 0.0);
    for (int64_t lane = 0; lane < segments[t]; ++lane, sums += 2 * channels)
      for (int64_t i = 0; i < 2 * channels; ++i) total[i] += sums[i];
    for (int64_t c = 0; c < channels; ++c) {
      const float inverse = 1 / std::sqrt(var[c] + eps);
      const double first = total[2 * c], second = total[2 * c + 1];
      weight[c] = static_cast<float>(second * inverse);
      bias[c] = static_cast<float>(first);
      of_mean[c] += static_cast<float>(-first * scale[c]);
      of_var[c] += static_cast<float>(second * scale[c] * (inverse * inverse) * -0.5);
    }
  }
}

}  // namespace ifan
