// Mean and biased variance of every channel over the lanes of each task, and their backward.
//
//   mean[t,c] = sum x / n,  var[t,c] = sum (x - mean)^2 / n        over the lanes of task t and all pixels, n of them
//   gx = gmean / n + (2 gvar / n) (x - mean)
//
// Forward reads x once from memory: a chunk of pixels is passed over twice while it lies in the first-level cache,
// first for its rough mean, then for the deviations from it. Chunks are joined in double precision in a fixed order.
// Nothing but the mean is needed for the backward, which reads x once and writes gx once.
//
// Compiled once an instruction set, each time into the namespace IFAN_ISA. To keep instructions of one set out of code
// that another set runs, channel_moments.cpp uses no templates or inline functions of the standard library.
#pragma once
#include <cstdint>

namespace ifan {

enum class Dtype { float32, bfloat16 };

// Element strides and sizes in the order N, C, H, W.
struct MomentsForward {
  const void* x;
  Dtype dtype;
  int64_t shape[4], strides[4];
  const int64_t* segments;  // lanes of each task
  int64_t tasks;
  float *mean, *var;  // (tasks, C) contiguous
  int threads;
};

struct MomentsBackward {
  const void* x;
  Dtype dtype;
  int64_t shape[4], strides[4];
  const int64_t* segments;
  int64_t tasks;
  const float *mean, *mean_gradient, *var_gradient;  // (tasks, C) contiguous
  void* gradient;                                    // of x's dtype and shape
  int64_t gradient_strides[4];
  const void* before[2];  // added to it: of its shape and strides, may be `gradient` itself; null: nothing, and then
                          // the second as well
  int threads;
};

#define IFAN_DECLARE_CHANNEL_MOMENTS(ISA)                                              \
  namespace ISA {                                                                      \
  bool channel_moments_forward(const MomentsForward& call); /* false: out of memory */ \
  bool channel_moments_backward(const MomentsBackward& call);                          \
  }

IFAN_DECLARE_CHANNEL_MOMENTS(baseline)
IFAN_DECLARE_CHANNEL_MOMENTS(avx2)
IFAN_DECLARE_CHANNEL_MOMENTS(avx512)

}  // namespace ifan
