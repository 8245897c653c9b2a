// What the cases of the driver share: drawn values, a concatenation with its scalar reading, and the comparison.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

#include "sources.h"

using Values = std::vector<float>;
using Exact = std::vector<double>;

// Uniform in [low, high), the same on every machine.
inline Values draw(int64_t count, float low = -1, float high = 1) {
  static thread_local uint32_t state = 1;
  Values values(count);
  for (float& v : values) {
    state = state * 1664525u + 1013904223u;
    v = low + (high - low) * static_cast<float>(state >> 8) / (1 << 24);
  }
  return values;
}

// Outputs start as NaN: what a kernel leaves out shows.
inline Values unwritten(int64_t count) { return Values(count, NAN); }

// Relative L2 error; infinite where a value was not written.
inline double error(const Values& actual, const Exact& exact) {
  double difference = 0, norm = 1e-30;
  for (size_t i = 0; i < exact.size(); ++i) {
    if (std::isnan(actual[i])) return INFINITY;
    difference += (actual[i] - exact[i]) * (actual[i] - exact[i]);
    norm += exact[i] * exact[i];
  }
  return actual.size() < exact.size() ? INFINITY : std::sqrt(difference / norm);
}

// Five lanes of three tasks, one of them absent, over two sources; the second has a row a sample.
struct Sample {
  static constexpr int64_t lanes = 5, samples = 3, tasks = 3;
  const int64_t rows[5] = {2, 0, 1, 1, 0}, segments[3] = {2, 0, 3}, task[5] = {0, 0, 2, 2, 2};
  const int64_t channels[2], height, width, total;
  Values x[2], gradient[2], scale, shift, mean;
  ifan::Source sources[2];
  ifan::Target targets[2];
  ifan::Concatenation read;

  Sample(int64_t first, int64_t second, int64_t h, int64_t w)
      : channels{first, second},
        height(h),
        width(w),
        total(first + second),
        x{draw(lanes * first * h * w), draw(samples * second * h * w)},
        gradient{unwritten(lanes * first * h * w), unwritten(lanes * second * h * w)},
        scale(draw(tasks * total, 0.5f, 1.5f)),
        shift(draw(tasks * total)),
        mean(draw(tasks * total)) {
    for (int s = 0; s < 2; ++s) {
      sources[s] = {x[s].data(), channels[s], channels[s] * h * w, h * w, s == 1};
      targets[s] = {gradient[s].data(), channels[s] * h * w, false};
    }
    read = {sources, 2, lanes, total, h, w, rows, segments, tasks, targets};
  }

  int64_t pixels() const { return height * width; }

  double at(int64_t lane, int64_t c, int64_t pixel) const {
    const int s = c >= channels[0];
    return x[s][((s ? rows[lane] : lane) * channels[s] + c - s * channels[0]) * pixels() + pixel];
  }

  // relu(x scale + shift), or x itself.
  double prologue(int64_t lane, int64_t c, int64_t pixel, bool normalise) const {
    const int64_t k = task[lane] * total + c;
    return normalise ? std::fmax(at(lane, c, pixel) * scale[k] + shift[k], 0) : at(lane, c, pixel);
  }

  // The prologue's backward for the gradient of its output: gradients of x in the order of `gradient`, and the sums.
  void backward(const Exact& d, bool normalise, Exact gx[2], Exact* sums) const {
    for (int s = 0; s < 2; ++s) gx[s].assign(lanes * channels[s] * pixels(), 0);
    sums->assign(2 * lanes * total, 0);
    for (int64_t lane = 0; lane < lanes; ++lane)
      for (int64_t c = 0; c < total; ++c) {
        const int64_t k = task[lane] * total + c, s = c >= channels[0];
        for (int64_t p = 0; p < pixels(); ++p) {
          const bool passes = !normalise || prologue(lane, c, p, true) > 0;
          const double e = passes ? d[(lane * total + c) * pixels() + p] : 0;
          gx[s][(lane * channels[s] + c - s * channels[0]) * pixels() + p] = normalise ? e * scale[k] : e;
          (*sums)[2 * (lane * total + c)] += e;
          (*sums)[2 * (lane * total + c) + 1] += e * (at(lane, c, p) - mean[k]);
        }
      }
  }
};
