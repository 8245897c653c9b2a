// 3x3 convolution of a concatenation that does not exist, by Winograd's F(4x4, 3x3), with what surrounds it in the
// network fused:
//
//   prologue   relu(x scale[task] + shift[task]), the task-wise normalisation of a dense layer, or nothing
//   epilogue   nothing, ReLU, or ReLU and the phase shift of a transition up
//
// A block of tiles at a time: inputs of `chunk` channels are gathered and transformed into a buffer that stays in the
// second-level cache, then multiplied and added into the block's sums, while the next chunk is gathered; every input is
// read once from memory, nothing else is written.
#pragma once
#include "sources.h"

namespace ifan {

enum class Epilogue { none, relu, relu_phase_shift };

struct ConvolutionForward {
  Concatenation x;
  const float *scale, *shift;  // (prologues, tasks, channels) contiguous; null: no prologue
  const float* filters;        // from pack_filters, for x.channels inputs; one packing a prologue, behind each other
  int64_t outputs;
  Epilogue epilogue;
  float* out;  // (N, outputs, H, W), or (N, outputs / 4, 2H, 2W) after the phase shift; planes contiguous
  int64_t out_lane_stride;
  int threads;
  int64_t prologues = 1;  // equal shares of the outputs read the same inputs, each through a prologue of its own
  bool add = false;       // to what `out` holds, instead of writing it; not after a phase shift
};

// A weight (outputs, inputs, 3, 3) as the kernels read it, or, with `transposed`, that of the convolution which takes
// the outputs' gradient to the inputs': then `outputs` and `inputs` are those of that convolution.
struct FilterPacking {
  const float* weight;
  int64_t outputs, inputs;
  bool transposed;
  float* filters;
  int threads = 1;
  int64_t stride =
      0;  // floats from one row of the weight to the next where they do not follow each other; for `pack_filters` alone
};

// Gradients of the convolution, and of its prologue where there is one, for the gradient of its output before the
// epilogue. Nothing of the forward pass was kept: the transformed inputs are made again, once for both products.
struct ConvolutionBackward {
  Concatenation x;
  const float *scale, *shift, *mean;  // (tasks, channels) contiguous; null: no prologue
  const float* filters;               // from pack_filters, transposed: x.channels outputs, `outputs` inputs
  int64_t outputs;
  const float* gradient;  // (N, outputs, H, W), planes contiguous
  int64_t gradient_lane_stride;
  float* shares;           // (parts, outputs, x.channels, 3, 3): each part's share of the weight's gradient
  int64_t parts;           // groups of lanes that are worked on one after another; at most N
  float* weight_gradient;  // (outputs, x.channels, 3, 3)
  double* sums;            // (N, channels, 2), see affine_relu.h; null where there is no prologue
  int threads;
};

#define IFAN_DECLARE_CONVOLUTION(ISA)                                                  \
  namespace ISA {                                                                      \
  int64_t packed_filters(int64_t outputs, int64_t inputs); /* floats */                \
  void pack_filters(const FilterPacking& call);                                        \
  bool convolution_forward(const ConvolutionForward& call); /* false: out of memory */ \
  bool convolution_backward(const ConvolutionBackward& call);                          \
  }

IFAN_DECLARE_CONVOLUTION(baseline)
IFAN_DECLARE_CONVOLUTION(avx2)
IFAN_DECLARE_CONVOLUTION(avx512)

}  // namespace ifan
