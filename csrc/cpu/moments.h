// Mean and squared deviations of a chunk of one channel: see channel_moments.h.
#pragma once
#include "simd.h"

namespace ifan {
namespace IFAN_ISA {

constexpr int64_t kPlaneChunk = 4096;  // pixels of one channel: 16 KiB
constexpr int64_t kShortSum = 16;      // additions to one float before it is moved on, which bounds their rounding
constexpr int64_t kLongPlane = 512;    // pixels from which on 32 sums pay

struct Moments {
  double mean, square;  // square: sum of squared deviations from the mean
};

// `square` was summed about `centre`, the mean rounded to a float.
inline Moments moments_about(double mean, float centre, double square, int64_t n) {
  return {mean, square - static_cast<double>(n) * (mean - centre) * (mean - centre)};
}

template <typename Sum>
inline double total(const Sum* sums, int64_t n) {
  double result = 0;
  for (int64_t j = 0; j < n; ++j) result += sums[j];
  return result;
}

// `lanes` independent sums: many hide the latency of an addition, few are sooner added up. The mean is summed in double
// precision: where it is large beside the deviation, float sums of chunks would differ by more than the chunks do.
template <int64_t lanes>
inline Moments moments_of(const float* x, int64_t n, const float* next) {
  double sums[lanes] = {};
  float squares[lanes] = {};
  const int64_t whole = n - n % lanes;
  for (int64_t i = 0; i < whole; i += lanes)
    for (int64_t j = 0; j < lanes; ++j) sums[j] += x[i + j];
  for (int64_t i = whole; i < n; ++i) sums[i - whole] += x[i];
  const double mean = total(sums, lanes) / static_cast<double>(n);
  const float centre = static_cast<float>(mean);
  for (int64_t i = 0; i < whole;) {
    float part[lanes] = {};
    for (const int64_t stop = min(whole, i + kShortSum * lanes); i < stop; i += lanes) {
      for (int64_t j = 0; j < lanes; j += 16) __builtin_prefetch(next + i + j);
      for (int64_t j = 0; j < lanes; ++j) part[j] += (x[i + j] - centre) * (x[i + j] - centre);
    }
    for (int64_t j = 0; j < lanes; ++j) squares[j] += part[j];
  }
  for (int64_t i = whole; i < n; ++i) squares[i - whole] += (x[i] - centre) * (x[i] - centre);
  return moments_about(mean, centre, total(squares, lanes), n);
}

// Of at most kPlaneChunk values. The second pass, which finds them in the first-level cache, asks for the values to
// come at `next`.
inline Moments moments_of(const float* x, int64_t n, const float* next) {
  return n < kLongPlane ? moments_of<8>(x, n, next) : moments_of<32>(x, n, next);
}

}  // namespace IFAN_ISA
}  // namespace ifan
