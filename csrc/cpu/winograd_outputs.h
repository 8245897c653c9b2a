// From the sums of a block's products to planes, for a convolution through its epilogue.
#pragma once
#include "convolution.h"
#include "winograd.h"

namespace ifan {
namespace IFAN_ISA {

constexpr int64_t kUnit = 12;  // outputs that stay together: whole groups, and whole phase shifts
static_assert(kUnit % kOutputs == 0 && kUnit % 4 == 0, "");

inline int64_t groups(int64_t outputs) { return (outputs + kOutputs - 1) / kOutputs; }

// Both dimensions of the output transform of one channel: m [point][tile], points `stride` apart. Calls write(row, n,
// columns) with the four columns of the n-th vector of tiles.
template <int N, typename Write>
inline void transform_outputs(const float* m, int64_t stride, Write write) {
  for (int n = 0; n < N; ++n) {
    Vec half[4][6];
    for (int j = 0; j < 6; ++j) {
      Vec x[6], t[4];
      for (int k = 0; k < 6; ++k) x[k] = load(m + (6 * k + j) * stride + n * kWidth);
      output_transform(x, t);
      for (int r = 0; r < 4; ++r) half[r][j] = t[r];
    }
    for (int r = 0; r < 4; ++r) {
      Vec t[4];
      output_transform(half[r], t);
      write(r, n, t);
    }
  }
}

// A row of a run's pixels to its place, or added to what is there.
inline void write_row(const float* from, float* out, int64_t n, bool add) {
  const auto some = [=](int64_t i, auto v) { store(out + i, add ? v + load<sizeof v / 4>(out + i) : v); };
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) some(i, load(from + i));
  for (; i + 4 <= n; i += 4) some(i, load<4>(from + i));
  for (; i < n; ++i) out[i] = add ? out[i] + from[i] : from[i];
}

// The same to the planes where they belong, or added to what is there; `planes`: that of each run. With `positive`,
// through a ReLU.
template <int N>
inline void write_planes(const Block<N>& block, const float* m, int64_t stride, float* const* planes, bool positive,
                         bool add) {
  const Tiling& tiling = block.tiling;
  alignas(64) float rows[4][4 * block.size];
  transform_outputs<N>(m, stride, [&](int r, int n, Vec t[4]) {
    Vec x[4];
    for (int q = 0; q < 4 && positive; ++q) t[q] = relu(t[q]);
    Quads<kWidth>::turn(t, x);
    for (int i = 0; i < 4; ++i) {
      const Pixels& at = block.pixels[4 * n + i];
      float* out = block.whole ? planes[at.run] + at.offset + (1 + r) * tiling.width : rows[r] + (4 * n + i) * kWidth;
      if (!block.whole || 1 + r < at.end) store(out, add && block.whole ? x[i] + load(out) : x[i]);
    }
  });
  for (int64_t r = 0; r < 4 && !block.whole; ++r)
    for (int64_t i = 0; i < block.count; ++i) {
      const Run& run = block.runs[i];
      const int64_t y = 4 * run.y + r, rest = tiling.width - 4 * run.x, n = 4 * run.count < rest ? 4 * run.count : rest;
      if (y < tiling.height) write_row(rows[r] + 4 * run.at, planes[i] + y * tiling.width + 4 * run.x, n, add);
    }
}

// The four channels 4c + 2i + j, m [point][channel][tile] with points `stride` apart, through a ReLU to rows 2y + j,
// columns 2x + i of planes of twice the side; `planes`: that of each run; `pixels`: 64 vectors of tiles to work in.
template <int N>
inline void write_shifted(const Block<N>& block, const float* m, int64_t stride, float* const* planes, float* pixels) {
  constexpr int64_t tiles = N * kWidth, channel = 16 * tiles;
  const Tiling& tiling = block.tiling;
  const int64_t width = 2 * tiling.width;
  for (int64_t c = 0; c < 4; ++c)
    transform_outputs<N>(m + c * tiles, stride, [&](int r, int n, const Vec* t) {
      for (int q = 0; q < 4; ++q) store(pixels + c * channel + (4 * r + q) * tiles + n * kWidth, relu(t[q]));
    });
  for (int64_t index = 0; index < 8; ++index) {
    const int64_t r = index / 2, j = index % 2;
    alignas(64) float row[8 * tiles];  // of all tiles
    for (int64_t n = 0; n < N; ++n) {
      const float *even = pixels + j * channel + 4 * r * tiles + n * kWidth, *odd = even + 2 * channel;
      Vec halves[2][4];  // of each tile's eight columns
      for (int64_t h = 0; h < 2; ++h) {
        const Vec in[4] = {load(even + 2 * h * tiles), load(odd + 2 * h * tiles), load(even + (2 * h + 1) * tiles),
                           load(odd + (2 * h + 1) * tiles)};
        Quads<kWidth>::turn(in, halves[h]);
      }
      for (int64_t i = 0; i < 4; ++i) {
        float* out = row + (4 * n + i) * 2 * kWidth;
        store(out, Quads<kWidth>::first(halves[0][i], halves[1][i]));
        store(out + kWidth, Quads<kWidth>::second(halves[0][i], halves[1][i]));
      }
    }
    for (int64_t i = 0; i < block.count; ++i) {
      const Run& run = block.runs[i];
      const int64_t y = 4 * run.y + r, columns = min(8 * run.count, width - 8 * run.x);
      if (y < tiling.height) write_row(row + 8 * run.at, planes[i] + (2 * y + j) * width + 8 * run.x, columns, false);
    }
  }
}

// The memory where outputs `begin` to `end` of a block belong, counted from the call's first one. It is asked for
// little by little during their products, since nothing hides how long it takes once these are written.
template <int N>
class Destination {
 public:
  Destination(const ConvolutionForward& call, const Block<N>& block, int64_t begin, int64_t end)
      : call_(call),
        block_(block),
        side_(call.epilogue == Epilogue::relu_phase_shift ? 2 : 1),
        output_(begin),
        end_(end) {
    find();
  }

  int64_t lines() const { return 16 * block_.tiles / kLine * (end_ - output_); }

  void prefetch(int64_t lines) {
    for (; lines > 0 && output_ < end_; --lines) {
      __builtin_prefetch(at_, 1);
      at_ += kLine;
      if (at_ < row_end_) continue;
      if (++row_ == 4 * side_) row_ = 0, ++run_;
      if (run_ == block_.count) run_ = 0, output_ += side_ * side_;
      if (output_ < end_) find();
    }
  }

 private:
  void find() {  // of a row of pixels of one run
    const Tiling& tiling = block_.tiling;
    const Run& run = block_.runs[run_];
    const int64_t plane = tiling.height * tiling.width, y = min(4 * run.y * side_ + row_, tiling.height * side_ - 1);
    const float* row = call_.out + run.lane * call_.out_lane_stride + output_ * plane + y * tiling.width * side_;
    at_ = row + 4 * run.x * side_;
    row_end_ = row + min(4 * (run.x + run.count), tiling.width) * side_;
  }

  const ConvolutionForward& call_;
  const Block<N>& block_;
  const int64_t side_;  // pixels of the output for one of the input, in a row
  int64_t output_, end_, run_ = 0, row_ = 0;
  const float *at_, *row_end_;
};

// Outputs `begin` to `end` of a block's sums [point][output][tile], points `stride` apart, through the epilogue to
// their places, from output `first` on; `pixels`: 64 vectors of tiles to work in.
template <int N>
inline void write_outputs(const ConvolutionForward& call, const Block<N>& block, int64_t begin, int64_t end,
                          const float* sums, int64_t stride, int64_t first, float* pixels) {
  constexpr int64_t tiles = N * kWidth;
  const int64_t plane = call.x.height * call.x.width;
  const bool shift = call.epilogue == Epilogue::relu_phase_shift;
  float* planes[tiles];
  for (int64_t o = begin; o < end; o += shift ? 4 : 1) {
    for (int64_t r = 0; r < block.count; ++r)  // four planes become one of four times the size
      planes[r] = call.out + block.runs[r].lane * call.out_lane_stride + (first + o) * plane;
    if (shift)
      write_shifted(block, sums + o * tiles, stride, planes, pixels);
    else
      write_planes(block, sums + o * tiles, stride, planes, call.epilogue == Epilogue::relu, call.add);
  }
}

}  // namespace IFAN_ISA
}  // namespace ifan
