// How a kernel is started, and which of its types.
#pragma once
#include <climits>

#include "call.h"
#include "device.h"

namespace ifan::cuda {

// One-dimensional; nothing to do is no launch, as a GPU refuses an empty grid. `cudaLaunchKernelEx` is plain C++.
template <class Call>
int launch(void (*kernel)(Call), int64_t blocks, int threads, uintptr_t stream, const Call& call) {
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = reinterpret_cast<cudaStream_t>(stream);
  return cudaLaunchKernelEx(&config, kernel, call);
}

// run(T()) with the type of the dtype.
template <class Run>
int with_type(Dtype dtype, Run run) {
  switch (dtype) {
    case Dtype::float32:
      return run(float());
    case Dtype::float16:
      return run(__half());
    case Dtype::bfloat16:
      return run(__nv_bfloat16());
  }
  return cudaErrorInvalidValue;
}

__device__ __forceinline__ int task_of(const Segments& segments, int64_t index) {
  int task = 0;
  while (task + 1 < segments.count && index >= segments.ends[task]) ++task;
  return task;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace ifan::cuda
