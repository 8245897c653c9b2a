// What a kernel file includes instead of the CUDA headers: the one place that knows nvcc from the emulation on the CPU.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define SHARED_ARRAY(T, name, n) __shared__ __align__(16) T name[n]
#else
#include "cuda_on_cpu.h"
#endif

namespace ifan::cuda {

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T narrow(float x);
template <>
__device__ __forceinline__ float narrow<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half narrow<__half>(float x) {
  return __float2half(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16(x);
}

// D += A B on tensor cores, m16n8k16, A and B of T in fragments of 32-bit pairs, D in float32. With g = lane / 4 and
// t = lane % 4: a[0..3] hold rows g, g + 8, g, g + 8 and columns 2t, 2t, 2t + 8, 2t + 8 (each and the next);
// b[0..1] hold rows 2t and 2t + 8 (each and the next) of column g; d holds rows g, g, g + 8, g + 8, columns 2t, 2t + 1.
template <class T>
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef __CUDACC__
#define IFAN_MMA(type)                                                      \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type       \
               ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])             \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (sizeof(T) == sizeof(__half) && !std::is_same<T, __half>::value)
    IFAN_MMA("bf16");
  else
    IFAN_MMA("f16");
#undef IFAN_MMA
#else
  emu::mma(d, a, b, [](uint16_t raw) { return widen(emu::bits<T>(raw)); }, EMU_HERE);
#endif
}

// N neighbouring values moved as one access of N * sizeof(T) = 4, 8 or 16 bytes, which must be aligned to that.
template <int BYTES>
struct Word;
template <>
struct Word<4> {
  using type = uint32_t;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};

template <class T, int N>
__device__ __forceinline__ void load_wide(const T* from, float (&values)[N]) {
  const auto word = *reinterpret_cast<const typename Word<N * sizeof(T)>::type*>(from);
  T parts[N];
  memcpy(parts, &word, sizeof word);
#pragma unroll
  for (int i = 0; i < N; ++i) values[i] = widen(parts[i]);
}
template <class T, int N>
__device__ __forceinline__ void store_wide(T* to, const float (&values)[N]) {
  typename Word<N * sizeof(T)>::type word;
  T parts[N];
#pragma unroll
  for (int i = 0; i < N; ++i) parts[i] = narrow<T>(values[i]);
  memcpy(&word, parts, sizeof word);
  *reinterpret_cast<typename Word<N * sizeof(T)>::type*>(to) = word;
}

// The block's sums of a and b in every thread's order, for thread 0. All threads of the block must come; the number of
// threads is a multiple of 32.
struct Pair {
  float a, b;
};
__device__ inline Pair block_sum(Pair value) {
  SHARED_ARRAY(Pair, parts, 32);
#pragma unroll
  for (int distance = 16; distance; distance /= 2) {
    value.a += __shfl_xor_sync(0xffffffffu, value.a, distance);
    value.b += __shfl_xor_sync(0xffffffffu, value.b, distance);
  }
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x == 0)
    for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) {
      value.a += parts[warp].a;
      value.b += parts[warp].b;
    }
  __syncthreads();  // the array may be written again
  return value;
}

}  // namespace ifan::cuda
