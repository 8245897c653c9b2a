// The tensors that a kernel reads as one concatenation which does not exist.
#pragma once
#include <cstdint>

#include "runtime/scratch.h"

namespace ifan {

// One tensor of the concatenation; its planes of H x W values are contiguous. Strides count elements.
struct Source {
  const float* data;
  int64_t channels, lane_stride, channel_stride;
  bool per_sample;  // a row a sample, looked up in `rows`, instead of a row a lane
};

// Where a source's gradient goes: (N, channels, H, W), planes contiguous; written, or added to what is there. A source
// that stands twice has one gradient, to which its later places add.
struct Target {
  float* data;
  int64_t lane_stride;
  bool add;
};

struct Concatenation {
  const Source* sources;
  int64_t count, lanes, channels, height, width;
  const int64_t* rows;      // sample of each lane; null where no source has a row a sample
  const int64_t* segments;  // lanes of each task
  int64_t tasks;
  const Target* targets;  // backward: one a source
};

namespace IFAN_ISA {

// Where each lane and channel of a concatenation is found. A thread has one at a time: its tables are kept for the
// next.
struct Plan {
  const Concatenation* x;
  int64_t *task, *source, *channel;  // task of each lane; source of each channel and its place in there

  explicit Plan(const Concatenation& concatenation) : x(&concatenation) {
    task = index_table(x->lanes + 2 * x->channels + 1);
    if (!task) return;
    source = task + x->lanes;
    channel = source + x->channels;
    for (int64_t t = 0, lane = 0; t < x->tasks; ++t)
      for (int64_t i = 0; i < x->segments[t]; ++i) task[lane++] = t;
    for (int64_t s = 0, c = 0; s < x->count; ++s)
      for (int64_t k = 0; k < x->sources[s].channels; ++k, ++c) source[c] = s, channel[c] = k;
  }
  Plan(const Plan&) = delete;

  bool made() const { return task != nullptr; }

  const float* plane(int64_t lane, int64_t c) const {
    const Source& s = x->sources[source[c]];
    return s.data + (s.per_sample ? x->rows[lane] : lane) * s.lane_stride + channel[c] * s.channel_stride;
  }
  const Target& target(int64_t c) const { return x->targets[source[c]]; }
  float* gradient(int64_t lane, int64_t c) const {
    return target(c).data + lane * target(c).lane_stride + channel[c] * x->height * x->width;
  }
};

}  // namespace IFAN_ISA
}  // namespace ifan
