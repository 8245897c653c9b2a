// Convolutions that are products with shifted rows: 1x1, the 7x7 stem, the strided 5x5 of a re-encoder.
//
//   out[n,o,y,x] = initial[n,o,y,x] + sum over channels c and taps k of weight[o,c,k] plane[n,c][y row_step + offset[k]
//   + x]
//
// The planes hold what surrounds the picture, so no border is tested; a strided convolution reads planes split by
// columns.
#pragma once
#include "sources.h"

namespace ifan {

struct DirectConvolution {
  Concatenation x;         // height, width: those of the output; planes as long as the offsets reach
  const int64_t* offsets;  // of the taps, in elements
  int64_t taps, row_step;
  const float* filters;  // from pack_taps
  int64_t outputs;
  const float* initial;  // like out; null: zeros. May be out itself
  float* out;            // (N, outputs, H, W) contiguous planes
  int64_t out_lane_stride;
  bool relu;
  int threads;
};

// A weight (outputs, inputs * taps) as the kernel reads it.
struct TapPacking {
  const float* weight;
  int64_t outputs, products;
  float* filters;
};

#define IFAN_DECLARE_DIRECT(ISA)                                                     \
  namespace ISA {                                                                    \
  int64_t packed_taps(int64_t outputs, int64_t products); /* floats */               \
  void pack_taps(const TapPacking& call);                                            \
  bool direct_convolution(const DirectConvolution& call); /* false: out of memory */ \
  }

IFAN_DECLARE_DIRECT(baseline)
IFAN_DECLARE_DIRECT(avx2)
IFAN_DECLARE_DIRECT(avx512)

}  // namespace ifan
