// From the sums of a direct convolution to its output.
#pragma once
#include "direct.h"
#include "simd.h"

namespace ifan {
namespace IFAN_ISA {

constexpr int kOutputs = kRegisters == 32 ? 12 : 6;  // output channels whose sums stay in registers

inline int64_t groups(int64_t outputs) { return (outputs + kOutputs - 1) / kOutputs; }

// Adds the initial values to sums [kOutputs][N vectors], applies the ReLU and writes `pixels` of each from output
// `first` on.
template <int N>
inline void write_sums(const DirectConvolution& call, const float* sums, int64_t lane, int64_t first, int64_t at,
                       int64_t pixels) {
  const int64_t plane = call.x.height * call.x.width, some = min(kOutputs, call.outputs - first);
  for (int64_t o = 0; o < some; ++o) {
    const int64_t place = lane * call.out_lane_stride + (first + o) * plane + at;
    const float* sum = sums + o * N * kWidth;
    int64_t i = 0;
    for (; i + kWidth <= pixels; i += kWidth) {
      Vec v = load(sum + i);
      if (call.initial) v += load(call.initial + place + i);
      store(call.out + place + i, call.relu ? relu(v) : v);
    }
    for (; i < pixels; ++i) {
      const float v = sum[i] + (call.initial ? call.initial[place + i] : 0);
      call.out[place + i] = call.relu ? relu(v) : v;
    }
  }
}

}  // namespace IFAN_ISA
}  // namespace ifan
