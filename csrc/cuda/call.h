// What kernels and their binding share. An entry point returns a cudaError_t; tensors come as addresses, sizes and
// strides in elements; the stream is an integer.
#pragma once
#include <cstdint>

namespace ifan::cuda {

enum class Dtype : int { float32, float16, bfloat16 };

// Lanes, or channels, of several tasks one after another: those before ends[t] and not before ends[t - 1] are t's.
constexpr int kMaxTasks = 32;
struct Segments {
  int count;
  int ends[kMaxTasks];
};

}  // namespace ifan::cuda
