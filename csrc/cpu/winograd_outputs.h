// From the sums of a block's products to the output of a convolution, through its epilogue.
#pragma once
#include "convolution.h"
#include "winograd.h"

namespace ifan {
namespace IFAN_ISA {

constexpr int64_t kUnit = 12;  // outputs that stay together: whole groups, and whole phase shifts
static_assert(kUnit % kOutputs == 0 && kUnit % 4 == 0, "");

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t groups(int64_t outputs) { return (outputs + kOutputs - 1) / kOutputs; }

// The four channels 4c + 2i + j of y [channel][row][column][tile] to rows 2y + j, columns 2x + i of one plane of twice the side.
inline void scatter_shifted(const float* y, int64_t tiles, const Tiling& tiling, const Run& run, float* plane) {
  const int64_t width = tiling.width, channel = 16 * tiles;
  for (int64_t r = 0; r < 4 && 4 * run.y + r < tiling.height; ++r)
    for (int64_t j = 0; j < 2; ++j) {
      const float *even = y + j * channel + 4 * r * tiles + run.at, *odd = even + 2 * channel;
      float* out = plane + (2 * (4 * run.y + r) + j) * 2 * width + 8 * run.x;
      int64_t t = 0;
      for (; t + 4 <= run.count && 4 * (run.x + t + 4) <= width; t += 4)
        for (int64_t half = 0; half < 2; ++half) {  // columns 2 half and 2 half + 1 of each tile
          const float *e = even + 2 * half * tiles + t, *o = odd + 2 * half * tiles + t;
          VecOf<4> p[4] = {load<4>(e), load<4>(o), load<4>(e + tiles), load<4>(o + tiles)}, x[4];
          Quads<4>::join(p, x);
          for (int i = 0; i < 4; ++i) store(out + 8 * (t + i) + 4 * half, x[i]);
        }
      for (; t < run.count; ++t)
        for (int64_t q = 0; q < 4 && 4 * (run.x + t) + q < width; ++q) {
          out[8 * t + 2 * q] = even[q * tiles + t];
          out[8 * t + 2 * q + 1] = odd[q * tiles + t];
        }
    }
}

// Outputs `begin` to `end` of a block's sums [point][output][tile], through the epilogue to their places; `pixels`: 64 vectors of
// tiles to work in.
template <int N>
inline void write_outputs(const ConvolutionForward& call, const Block<N>& block, int64_t begin, int64_t end, const float* sums,
                          float* pixels) {
  constexpr int64_t tiles = N * kWidth;
  const int64_t stride = groups(call.outputs) * kOutputs * tiles, plane = call.x.height * call.x.width;
  const int64_t step = call.epilogue == Epilogue::relu_phase_shift ? 4 : 1;
  float* planes[tiles];
  for (int64_t o = begin; o < end; o += step) {
    for (int64_t i = 0; i < step; ++i) transform_outputs<N>(sums + (o + i) * tiles, stride, pixels + 16 * i * tiles);
    if (call.epilogue != Epilogue::none)
      for (int64_t i = 0; i < 16 * step * tiles; i += kWidth) store(pixels + i, relu(load(pixels + i)));
    for (int64_t r = 0; r < block.count; ++r)  // four planes become one of four times the size
      planes[r] = call.out + block.runs[r].lane * call.out_lane_stride + o * plane;
    if (step == 1)
      scatter(block, pixels, planes);
    else
      for (int64_t r = 0; r < block.count; ++r) scatter_shifted(pixels, tiles, block.tiling, block.runs[r], planes[r]);
  }
}

}  // namespace IFAN_ISA
}  // namespace ifan
