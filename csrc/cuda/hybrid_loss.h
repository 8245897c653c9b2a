// The masked multi-task loss with its gradients; see hybrid_loss.cu.
#pragma once
#include "call.h"

namespace ifan::cuda {

// Cross-entropy of logits (batch, classes, height, width) against labels (batch, fine_height, fine_width).
struct CrossEntropy {
  const void* logits;
  int64_t batch, classes, height, width, stride[4];
  const void* labels;
  int64_t label_stride[3];  // of batch, row and column
  int64_t fine_height, fine_width;
  const float* class_weights;  // (classes,) or null
  float smoothing;
  int ignored;
  void* gradient;  // of the weighted sum, as the logits
  int64_t gradient_stride[4];
  float* powers;  // (batch, fine_height, fine_width) log sum exp, where the labels are finer; else null
  float* sums;    // (loss_blocks(batch, fine_height * fine_width), 2): weighted loss and weight of each block
};

// Distances of points (batch, 2, count) from their targets.
struct Points {
  const void* points;
  const float *targets, *weights;  // (batch, 2, count), (batch, count)
  void* gradient;                  // (batch, 2, count), contiguous
  float* sums;                     // (loss_blocks(1, batch * count), 2)
  int64_t batch, count, stride[3], target_stride[3], weight_stride[2];
  int kind;  // 0 wing, 1 smooth-L1, 2 squares
  float width, curvature, offset;
};

// From the blocks' sums, those of task t being ends[t - 1] .. ends[t], to its loss, count and divisor, and the total.
struct FinishLoss {
  const float *sums, *task_weights, *denominators;  // denominators (T,) or null: the counts
  float *total, *losses, *counts, *divisors;
  Segments blocks;
};

// gradient = made x (gradient of the total x task's weight + gradient of its loss) / divisor, element by element.
struct ScaleGradient {
  const void* made;
  void* gradient;
  int64_t elements;
  const float *of_total, *of_losses, *task_weights, *divisors;
  int first_task;
  Segments columns;  // a row's elements by task; one task: all of them
};

int64_t loss_blocks(int64_t batch, int64_t pixels);
int cross_entropy(const CrossEntropy& call, Dtype dtype, bool byte_labels, uintptr_t stream);
int points_loss(const Points& call, Dtype dtype, uintptr_t stream);
int finish_loss(const FinishLoss& call, uintptr_t stream);
int scale_gradient(const ScaleGradient& call, Dtype dtype, uintptr_t stream);

}  // namespace ifan::cuda
