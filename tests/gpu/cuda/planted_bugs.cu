// Kernels that are wrong on purpose, one a case, each with what the emulation must make of it.
#include <cstdio>
#include <string>

#include "device.h"

__global__ void correct(float* out) {
  SHARED_ARRAY(float, a, 64);
  a[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = a[63 - threadIdx.x];
}
__global__ void early_exit(float* out) {  // correct as well: threads that are gone are not waited for
  if (threadIdx.x >= 40) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}
__global__ void missing_barrier(float* out) {
  SHARED_ARRAY(float, a, 64);
  a[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = a[63 - threadIdx.x];
}
__global__ void unset_shared(float* out) {
  SHARED_ARRAY(float, a, 64);
  if (threadIdx.x < 63) a[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = a[threadIdx.x];
}
__global__ void divergent_barrier(float* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}
__global__ void shuffle_without_a_lane(float* out) {
  if (threadIdx.x == 3) return;
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.f, 1);
}
__global__ void shuffle_from_outside_the_mask(float* out) { out[threadIdx.x] = __shfl_xor_sync(0xffffu, 1.f, 1); }
__global__ void shared_overrun(float* out) {
  SHARED_ARRAY(float, a, 64);
  a[threadIdx.x + 1] = 1;
  __syncthreads();
  out[threadIdx.x] = a[threadIdx.x];
}
__global__ void global_overrun(float* out) { out[threadIdx.x + 1] = 1; }

int main(int, char** arguments) {
  const std::string name = arguments[1];
  void (*kernel)(float*) = nullptr;
#define CASE(x) \
  if (name == #x) kernel = x
  CASE(correct);
  CASE(early_exit);
  CASE(missing_barrier);
  CASE(unset_shared);
  CASE(divergent_barrier);
  CASE(shuffle_without_a_lane);
  CASE(shuffle_from_outside_the_mask);
  CASE(shared_overrun);
  CASE(global_overrun);
  float* out = new float[64]();
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(2);
  config.blockDim = dim3(64);
  try {
    cudaLaunchKernelEx(&config, kernel, out);
    float sum = 0;
    for (int i = 0; i < 64; ++i) sum += out[i];
    std::printf("sum %g\n", sum);
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
  }
  delete[] out;
}
