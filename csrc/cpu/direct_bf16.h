// The convolution of direct.h with its products in bfloat16; see convolution_bf16.h.
//
// What a piece of a row reads of two channels, from the first tap to the last, is rounded to pairs once and serves all
// taps and outputs: the offsets should lie close together.
#pragma once
#include "direct.h"

namespace ifan {
namespace avx512bf16 {

int64_t packed_taps(int64_t outputs, int64_t channels, int64_t taps);  // floats
void pack_taps(const TapPacking& call, int64_t taps);
bool direct_convolution(const DirectConvolution& call);  // false: out of memory

}  // namespace avx512bf16
}  // namespace ifan
