// The task-interaction fusion; see integrate.cu.
#pragma once
#include "call.h"

namespace ifan::cuda {

// One source (source_rows, channels, height, width) of a concatenation whose channels first .. first + channels it is.
struct Integrate {
  const void* x;
  int64_t source_rows, channels, height, width, stride[4];
  const int64_t* rows;  // the source's row of each lane; null: row n is lane n's
  int64_t lanes, first, total;
  const float *weight, *bias, *mean, *var;  // (T, total), contiguous
  float eps;
  Segments segments;
  void* y;  // (lanes, total, height / pool, width / pool), contiguous: the output, in backward its gradient (only read)
  void* x_gradient;  // (source_rows, channels, height, width), contiguous
  float* sums;       // (lanes, tiles, total, 2)
};

// Sums of `integrate_backward` to the gradients of weight, bias, mean and var, one after another: (4, T, total).
struct NormGradients {
  const float *sums, *weight, *var;
  float* gradients;
  int64_t tiles, total;
  float eps;
  Segments segments;
};

int64_t integrate_tiles(int64_t height, int64_t width);  // blocks a plane: the second size of `sums`
int integrate_forward(const Integrate& call, Dtype dtype, int pool, uintptr_t stream);
int integrate_backward(const Integrate& call, Dtype dtype, int pool, uintptr_t stream);
int norm_gradients(const NormGradients& call, uintptr_t stream);

}  // namespace ifan::cuda
