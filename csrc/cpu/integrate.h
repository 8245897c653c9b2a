// Task-interaction fusion: concatenate by name, normalise with each lane's task, ReLU, average 2x2; and its backward.
//
//   y[n,c] = pool(relu(z)),  z = x[n,c] scale[t,c] + shift[t,c]      x: the concatenated sources, t: task of lane n
//   gx = d scale,  sums[n,c] = (sum d, sum d (x - mean[t,c]))        d: the gradient of relu(z) where z > 0, else 0
//
// from the sums, one pair a lane and channel, the caller makes the gradients of weight, bias, mean and variance.
// Forward reads every value once and writes 1 / pool^2 as many; backward recomputes the mask from the sources, so
// nothing is saved, reads 1 + 1 / pool^2 values and writes one. The concatenation does not exist in either.
//
// Compiled once an instruction set, each time into the namespace IFAN_ISA, without templates or inline functions of the
// standard library (see channel_moments.h).
#pragma once
#include "sources.h"

namespace ifan {

struct IntegrateCall {
  Concatenation x;  // backward: a target adds only where its source stands a second time, to the gradient of the first
  int pool;         // 1 or 2
  const float *scale, *shift, *mean;  // (tasks, channels) contiguous; mean in backward only
  float* out;                         // forward: (N, channels, H / pool, W / pool) contiguous
  const float* gradient;              // backward: of the same shape
  float* sums;                        // backward: (N, channels, 2)
  int threads;
};

#define IFAN_DECLARE_INTEGRATE(ISA)                                             \
  namespace ISA {                                                               \
  bool integrate_forward(const IntegrateCall& call); /* false: out of memory */ \
  bool integrate_backward(const IntegrateCall& call);                           \
  }

IFAN_DECLARE_INTEGRATE(baseline)
IFAN_DECLARE_INTEGRATE(avx2)
IFAN_DECLARE_INTEGRATE(avx512)

}  // namespace ifan
