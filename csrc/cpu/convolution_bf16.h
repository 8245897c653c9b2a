// The convolution of convolution.h with its products in bfloat16, two channels at a time: the processor's AVX512_BF16
// multiplies pairs at twice the rate of single multiply-adds and adds up in float32. All else is float32: inputs,
// transforms, outputs.
//
// Compiled for that instruction set alone; see Isa and has_bf16 in runtime/isa.h.
#pragma once
#include "convolution.h"

namespace ifan {
namespace avx512bf16 {

int64_t packed_filters(int64_t outputs, int64_t inputs);   // floats
void pack_filters(const FilterPacking& call);              // not transposed
bool convolution_forward(const ConvolutionForward& call);  // false: out of memory

}  // namespace avx512bf16
}  // namespace ifan
