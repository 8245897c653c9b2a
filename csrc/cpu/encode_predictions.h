// Predictions of all tasks drawn as planes, and the gradients of both kinds of logits.
//
//   planes = softmax over classes of each pixel | discs about points | softmax of each classification, constant
//
// with p a softmax and g the gradient of its planes (of a constant plane: summed over its pixels),
//
//   glogits_k = p_k (g_k - sum_j p_j g_j)
//
// Forward reads each logit once and writes each plane once. Backward recomputes the softmax, so nothing is saved: it
// reads each logit and each gradient once and writes one value a logit. Rows are independent, so the bits are the same
// for any number of threads.
#pragma once
#include <cstdint>

namespace ifan {

struct EncodePlanes {
  const float* parsing;            // logits (N, classes, S, S)
  const float* points;             // (N, 2, P)
  const float* const* logits;      // of each classification: the first lane's
  const int64_t *sizes, *strides;  // classes of each classification, and values from a lane's logits to the next lane's
  int64_t lanes, classes, points_count, tasks, size, radius;
  float* out;  // (N, classes + P + sum of sizes, S, S)
  int threads;
};

struct EncodeBackward {
  const float* gradient;  // (N, classes + P + sum of sizes, S, S)
  const float* parsing;   // logits (N, classes, S, S)
  const float* logits;    // (N, sum of sizes)
  const int64_t* sizes;
  int64_t lanes, classes, points_count, tasks, size;
  float *parsing_gradient, *logits_gradient;  // like the logits
  int threads;
};

#define IFAN_DECLARE_ENCODE_PREDICTIONS(ISA)        \
  namespace ISA {                                   \
  bool encode_planes(const EncodePlanes& call);     \
  bool encode_backward(const EncodeBackward& call); \
  }

IFAN_DECLARE_ENCODE_PREDICTIONS(baseline)
IFAN_DECLARE_ENCODE_PREDICTIONS(avx2)
IFAN_DECLARE_ENCODE_PREDICTIONS(avx512)

}  // namespace ifan
