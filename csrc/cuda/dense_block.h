// One layer of a dense block on tensor cores; see dense_block.cu.
#pragma once
#include "call.h"

namespace ifan::cuda {

constexpr int kMaxSources = 16;

struct LayerSource {
  const void* x;  // (rows or lanes, channels, height, width)
  int64_t channels, stride[4];
  const int64_t* rows;  // the source's row of each lane; null: row n is lane n's
};

struct DenseLayer {
  LayerSource sources[kMaxSources];
  int count;
  int64_t lanes, channels, height, width, outputs;
  const float *weight, *bias, *mean, *var;  // of the normalisation, (T, channels), contiguous
  float eps;
  Segments segments;
  const void* filters;  // (9, outputs, channels), contiguous
  void* y;              // (lanes, outputs, height, width), its planes in one piece
  int64_t y_stride[2];  // of lane and channel
};

int dense_layer(const DenseLayer& call, Dtype dtype, uintptr_t stream);

}  // namespace ifan::cuda
