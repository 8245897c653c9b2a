// The fusion of integrate.h with the moments of the very values it normalises, as batch normalisation has them.
//
//   mean, var as in channel_moments.h      y = pool(relu((x - mean) r weight + bias)),  r = 1 / sqrt(var + eps)
//   gx = e r weight + (gmean + 2 gvar (x - mean)) / n      e: the gradient of relu where it is open, else 0
//   S0 = sum e, S1 = sum e (x - mean)      gbias = S0, gweight = S1 r
//   gmean = -S0 r weight + that of the output mean,  gvar = -S1 weight r^3 / 2 + that of the output var
//
// A piece of work is one channel of one task in all its lanes. It is passed over twice in either direction, and the second time is
// found in the second-level cache (8 lanes of 128x128: 512 KiB), so memory is read once and written once: forward
// 1 + 1 / pool^2 values, backward 2 + 1 / pool^2.
//
// Compiled once an instruction set, each time into the namespace IFAN_ISA (see channel_moments.h).
#pragma once
#include "sources.h"

namespace ifan {

struct IntegrateWithMoments {
  Concatenation x;
  int pool;                    // 1 or 2
  const float *weight, *bias;  // (tasks, channels) contiguous, as all below
  float eps;
  int threads;
};

struct IntegrateWithMomentsForward {
  IntegrateWithMoments shared;
  float* out;  // (N, channels, H / pool, W / pool)
  float *mean, *var;
};

struct IntegrateWithMomentsBackward {
  IntegrateWithMoments shared;
  const float *mean, *var;
  const float *gradient, *mean_gradient, *var_gradient;  // arriving
  float *weight_gradient, *bias_gradient;
};

#define IFAN_DECLARE_INTEGRATE_WITH_MOMENTS(ISA)                                                            \
  namespace ISA {                                                                                           \
  bool integrate_with_moments_forward(const IntegrateWithMomentsForward& call); /* false: out of memory */ \
  bool integrate_with_moments_backward(const IntegrateWithMomentsBackward& call);                           \
  }

IFAN_DECLARE_INTEGRATE_WITH_MOMENTS(baseline)
IFAN_DECLARE_INTEGRATE_WITH_MOMENTS(avx2)
IFAN_DECLARE_INTEGRATE_WITH_MOMENTS(avx512)

}  // namespace ifan
