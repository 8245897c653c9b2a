// A block of MobileNetV2 in one pass (Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv
// 1801.04381):
//
//   e = relu(first(x) + b)        a 1x1 convolution, or a 3x3 one of stride 1 or 2; may be missing
//   d = relu(depthwise(e) + b)    3x3 of stride 1 or 2; may be missing
//   y = last(d) + b               1x1; then optionally relu, sub-pixels to pixels, and + add
//
// Borders are zeros of each convolution's own input. e and d, which are up to 6 times as wide as x and y, exist for
// some channels of one tile of pixels at a time and stay in the second-level cache: x is read about 1.1 times, y
// written once.
#pragma once
#include <cstdint>

namespace ifan {

struct MobileBlock {
  const float* x;  // (inputs, height, width) contiguous
  int64_t inputs, height, width;
  const float *first, *first_bias;  // packed by pack_taps from (expanded, inputs * kernel^2); null: e is x
  int64_t expanded, kernel, first_stride;
  const float *depthwise, *depthwise_bias;  // (expanded, 9); null: d is e
  int64_t depthwise_stride;
  const float *last, *last_bias;  // packed by pack_taps from (outputs, expanded)
  int64_t outputs;
  bool relu, subpixels;  // subpixels: output 4c + 2i + j is pixel (2y + i, 2x + j) of channel c
  const float* add;      // like out; may be out itself; null: nothing
  float* out;            // (outputs, h, w) or (outputs / 4, 2h, 2w), h and w the height and width over both strides
  int threads;
};

#define IFAN_DECLARE_MOBILE_BLOCK(ISA)                                   \
  namespace ISA {                                                        \
  bool mobile_block(const MobileBlock& call); /* false: out of memory */ \
  }

IFAN_DECLARE_MOBILE_BLOCK(baseline)
IFAN_DECLARE_MOBILE_BLOCK(avx2)
IFAN_DECLARE_MOBILE_BLOCK(avx512)

}  // namespace ifan
