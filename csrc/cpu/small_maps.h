// The 3x3 convolution of convolution.h for maps so small that their tiles leave most of a vector empty: vector lanes
// are output channels, and each filter is read once for a dozen pixels. Winograd would read 36 values a filter for
// those few pixels.
#pragma once
#include "convolution.h"

namespace ifan {

#define IFAN_DECLARE_SMALL_MAPS(ISA)                                                                  \
  namespace ISA {                                                                                     \
  bool fits_small_maps(int64_t height, int64_t width);           /* faster than tiles, for one map */ \
  int64_t packed_small_filters(int64_t outputs, int64_t inputs); /* floats */                         \
  void pack_small_filters(const FilterPacking& call);                                                 \
  bool small_convolution_forward(const ConvolutionForward& call); /* false: out of memory */          \
  }

IFAN_DECLARE_SMALL_MAPS(baseline)
IFAN_DECLARE_SMALL_MAPS(avx2)
IFAN_DECLARE_SMALL_MAPS(avx512)

}  // namespace ifan
