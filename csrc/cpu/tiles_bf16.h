// The convolutions of convolution.h and direct.h with their products in bfloat16 by tile registers (tiles.h), as the
// definition has them: with so many products a cycle, Winograd's transforms would cost more than they save. All else is
// float32.
#pragma once
#include "convolution.h"
#include "direct.h"

namespace ifan {
namespace avx512bf16 {

int64_t packed_tile_filters(int64_t outputs, int64_t inputs);   // floats
void pack_tile_filters(const FilterPacking& call);              // not transposed
bool tile_convolution_forward(const ConvolutionForward& call);  // one prologue, not added; false: out of memory

// Square kernels whose taps lie row by row.
int64_t packed_tile_taps(int64_t outputs, int64_t channels, int64_t taps);
void pack_tile_taps(const TapPacking& call, int64_t taps);
bool tile_direct_convolution(const DirectConvolution& call);

}  // namespace avx512bf16
}  // namespace ifan
