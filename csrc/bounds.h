// What the bindings ask of their arguments before a kernel sees them. Addresses come without sizes, so that memory is
// as large as the sizes say is the caller's word; everything else is checked here: signs, ranges, sums, and that no
// size overflows.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

namespace ifan {

constexpr int64_t kMostValues =
    int64_t{1} << 48;  // of anything: bytes of all that kernels make of so many stay far within 64 bits
constexpr int64_t kMostSide =
    int64_t{1} << 24;  // of a map, and channels of one: places along it are counted in 32 bits
constexpr int64_t kMostRadius = int64_t{1} << 15;  // of a disc, in pixels

// `rule` says what was expected; `got` is what came.
[[noreturn]] inline void refuse(const char* what, const std::string& rule, const std::string& got) {
  throw std::invalid_argument(std::string(what) + " must be " + rule + "; got " + got +
                              ". Pass what fits the tensors.");
}

inline void expect(bool holds, const char* what, const char* rule, int64_t got) {
  if (!holds) refuse(what, rule, std::to_string(got));
}

inline void expect_range(const char* what, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high)
    refuse(what, "in " + std::to_string(low) + ".." + std::to_string(high), std::to_string(value));
}

// The product of sizes, none of which is negative. Where one is zero, the others may not overflow either: kernels
// multiply some of them.
inline int64_t count_of(const char* what, std::initializer_list<int64_t> sizes) {
  int64_t some = 1, all = 1;
  for (int64_t size : sizes) {
    expect_range(what, size, 0, kMostValues);
    const int64_t factor = size ? size : 1;
    if (some > kMostValues / factor)
      refuse(what, "sizes of at most 2^48 values", std::to_string(some) + " x " + std::to_string(size));
    some *= factor, all *= size;
  }
  return all;
}

// Something is at this address, unless there is nothing to read or write.
inline void expect_address(const char* what, uintptr_t address, int64_t count) {
  if (count && !address) refuse(what, "memory of " + std::to_string(count) + " values", "no address");
}

inline void expect_threads(int threads) { expect_range("threads", threads, 1, 1 << 16); }

// Places of these sizes and strides, in values, counted from the first.
template <typename Strides, typename Shape>
void expect_strides(const char* what, const Strides& strides, const Shape& shape) {
  int64_t last = 0;
  for (size_t i = 0; i < shape.size(); ++i) last += count_of(what, {shape[i], strides[i]});
  expect_range(what, last, 0, kMostValues);
}

// Lanes of each task, which add up to all lanes.
inline void expect_segments(const std::vector<int64_t>& segments, int64_t lanes) {
  int64_t sum = 0;
  for (int64_t count : segments) {
    expect_range("segments", count, 0, lanes - sum);
    sum += count;
  }
  expect(sum == lanes, "segments", "lanes of tasks that sum to N", sum);
}

// Classes of each classification; returns their sum.
inline int64_t sum_of_sizes(const std::vector<int64_t>& sizes) {
  int64_t sum = 0;
  for (int64_t size : sizes) {
    expect_range("class_sizes", size, 1, kMostSide);
    sum += size;
  }
  expect_range("class_sizes", sum, 0, kMostSide);
  return sum;
}

}  // namespace ifan
