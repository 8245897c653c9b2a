// What surrounds the convolutions in the feedback loop: images and predictions to planes, planes to the layouts that
// the direct convolutions read, pooling, dense heads, means of heat maps. Memory-bound and small beside the
// convolutions.
#pragma once
#include "sources.h"

namespace ifan {

// A picture with a border: value (y, x) of plane p at data[p plane + (y + top) row + (x + left)], or with `split` at
// data[p plane + (x + left) % 2 half + (y + top) row + (x + left) / 2].
struct Border {
  int64_t plane, row, top, left, half;
  bool split;
};

// uint8 (N, 3, F S, F S) RGB to (value - mean) scale, BGR, each block of F x F pixels folded into channels, inside a
// border.
struct PrepareImage {
  const uint8_t* images;
  int64_t lanes, size, fold;
  float mean[3], scale;  // in the order of the planes
  float* out;
  Border border;
  int threads;
};

// (planes, S, S), one behind the other, to the inside of a border.
struct AddBorder {
  const float* x;
  int64_t lanes, lane_stride, planes, size;
  float* out;
  Border border;
  int threads;
};

// What the 7x7 stem makes of planes that need no convolution, added to `share`: a constant plane gives one of 7 x 7
// values by how far the border is, a disc adds the filter at each of its few pixels.
struct StemShares {
  const float* share;  // (N, outputs, S, S)
  int64_t lanes, outputs, size;
  const float* classes;  // constant planes; one pixel of each is read
  int64_t classes_count, lane_stride;
  const float* by_border;  // (class, output, 7, 7)
  const float* points;     // (N, 2, P)
  int64_t points_count, radius;
  const float* filters;  // (point, tap, output)
  float* out;            // (N, outputs, S, S)
  int threads;
};

// A classification's re-encoder on its constant planes: three 1x1 convolutions with ReLU, each map constant.
struct ClassMaps {
  const float* planes;  // one pixel of each plane is read
  int64_t lanes, lane_stride, plane_stride, width;
  const float* weights[3];  // (width, width)
  float* maps[3];           // (N, width, size, size)
  int64_t sizes[3];
  int threads;
};

// Largest of each 2 x 2 values: planes of 2 h x 2 w to h x w.
struct MaxPool {
  const float* x;
  int64_t planes, height, width;  // of the output
  float* out;
  int threads;
};

// out = x + y, where y has one row for all lanes.
struct AddShared {
  const float *x, *y;
  int64_t lanes, values;
  float* out;
  int threads;
};

// out[n, j] = bias[j] + sum over channels and pixels of weight[j, c, y, x] x[n, c, y, x].
struct DenseHead {
  Concatenation x;
  const float *weight, *bias;
  int64_t outputs;
  float* out;  // (N, outputs)
  int threads;
};

// Points as means of the softmax over the pixels of a sum of heat maps, each but the finest enlarged (bilinearly) by
// steps of two.
struct HeatMaps {
  const float* const* maps;  // of each level from the finest: (N, points, size >> level, size >> level)
  int64_t levels, lanes, points, size;
  float* out;  // (N, 2, points): x's, then y's, in sides from the centre
  int threads;
};

#define IFAN_DECLARE_FEEDBACK(ISA)                                     \
  namespace ISA {                                                      \
  bool prepare_image(const PrepareImage& call);                        \
  bool add_border(const AddBorder& call);                              \
  bool stem_shares(const StemShares& call); /* false: out of memory */ \
  bool class_maps(const ClassMaps& call);                              \
  bool max_pool(const MaxPool& call);                                  \
  bool add_shared(const AddShared& call);                              \
  bool dense_head(const DenseHead& call); /* false: out of memory */   \
  bool heat_maps(const HeatMaps& call);   /* false: out of memory */   \
  }

IFAN_DECLARE_FEEDBACK(baseline)
IFAN_DECLARE_FEEDBACK(avx2)
IFAN_DECLARE_FEEDBACK(avx512)

}  // namespace ifan
