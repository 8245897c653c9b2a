// The masked multi-task loss with the gradients of its tasks' losses, made in the same pass.
//
// Cross-entropy of an element with logits z, label t and weight w, smoothing s over K classes:
//
//   loss = w (log sum exp z - (1 - s) z_t - s mean z)        dloss/dz_k = w (softmax z_k - (1 - s) [k = t] - s / K)
//
// Where the labels are finer than the logits, z is interpolated bilinearly for a row of labels at a time and its
// gradient is gathered back to the two rows of logits that it was made from: nothing of the labels' size is ever
// stored. Every logit is read once or twice, every gradient written once; labels are counted first, since gradients are
// divided by their number. What a piece of work computes depends on nothing but its place, and pieces are joined in
// double precision in their order.
//
// Compiled once an instruction set, each time into the namespace IFAN_ISA (see channel_moments.h).
#pragma once
#include <cstdint>

namespace ifan {

enum class PointLoss { wing, smooth_l1, l2 };

struct ParsingTask {
  const float* logits;         // (images, classes, height, width)
  const uint8_t* labels;       // (images, label_height, label_width); 255: ignored
  const float* class_weights;  // (classes) or null: 1
  int64_t images, classes, height, width, label_height, label_width;
  float smoothing;
  float* gradient;  // like the logits
};

struct PointsTask {
  const float *points, *target, *weight;  // (rows, 2, count) twice, (rows, count)
  int64_t rows, count;
  PointLoss kind;
  double width, curvature;
  float* gradient;  // like the points
};

struct ClassTasks {
  const float* logits;     // (rows, sum of sizes)
  const int64_t* targets;  // (rows, tasks), -1: unlabelled
  const int64_t* sizes;    // (tasks)
  int64_t rows, tasks;
  double smoothing;
  float* gradient;  // like the logits
};

// A task without classes or points is absent.
struct HybridLoss {
  ParsingTask parsing;
  PointsTask points;
  ClassTasks classes;
  const float* task_weights;  // (T)
  const float* denominators;  // (T) or null: the counts
  float* total;               // sum of weight x loss
  float *losses, *counts;     // (T): sum / divisor, 0 where the divisor is; sums of weights
  float* weights_kept;        // (T) for backward: the task weights as they are now
  int threads;
};

enum class Outcome { done, out_of_memory, wrong_label };

// What forward made, each task's loss's gradients, times (total's gradient x weight + loss's gradient).
struct MadeGradient {
  bool present;
  const float* made;
  float* gradient;
  int64_t count;
};

struct HybridLossBackward {
  const float *total, *of_losses;  // the arriving gradients, () and (T); null: 0
  const float* weights;            // (T), kept by forward
  MadeGradient parsing, points;
  const float* classes_made;  // (rows, sum of sizes)
  float* classes_gradient;
  const int64_t* sizes;  // (class_tasks)
  int64_t rows, class_tasks;
  const float* losses;      // (T)
  float* weights_gradient;  // (T) or null: not wanted, nor are the losses
  int threads;
};

#define IFAN_DECLARE_HYBRID_LOSS(ISA)                        \
  namespace ISA {                                            \
  Outcome hybrid_loss(const HybridLoss& call);               \
  void hybrid_loss_backward(const HybridLossBackward& call); \
  }

IFAN_DECLARE_HYBRID_LOSS(baseline)
IFAN_DECLARE_HYBRID_LOSS(avx2)
IFAN_DECLARE_HYBRID_LOSS(avx512)

}  // namespace ifan
