// The few CUDA types that the kernels name, in plain C++: the emulation needs a C++17 compiler and nothing of CUDA.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
using cudaStream_t = void*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess             ? "no error"
         : error == cudaErrorInvalidValue ? "invalid argument"
                                          : "invalid configuration argument";
}

namespace emu {
template <class To, class From>
To bits(From value) {
  static_assert(sizeof(To) == sizeof(From), "");
  To result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}
}  // namespace emu

struct __nv_bfloat16 {
  uint16_t x;
};
inline float __bfloat162float(__nv_bfloat16 value) { return emu::bits<float>(uint32_t(value.x) << 16); }
inline __nv_bfloat16 __float2bfloat16(float value) {  // to nearest, ties to even
  const uint32_t x = emu::bits<uint32_t>(value);
  if (value != value) return {0x7fff};
  return {uint16_t((x + 0x7fff + (x >> 16 & 1)) >> 16)};
}

struct __half {
  uint16_t x;
};
inline float __half2float(__half value) {
  const uint32_t sign = uint32_t(value.x & 0x8000) << 16, exponent = value.x >> 10 & 31, fraction = value.x & 0x3ff;
  if (exponent == 0) return (sign ? -1.f : 1.f) * float(fraction) * 0x1p-24f;
  if (exponent == 31) return emu::bits<float>(sign | 0x7f800000 | fraction << 13);
  return emu::bits<float>(sign | (exponent + 112) << 23 | fraction << 13);
}
inline __half __float2half(float value) {  // to nearest, ties to even
  uint32_t x = emu::bits<uint32_t>(value);
  const uint16_t sign = x >> 16 & 0x8000;
  x &= 0x7fffffff;
  if (x > 0x7f800000) return {0x7fff};
  if (x >= 0x477ff000) return {uint16_t(sign | 0x7c00)};  // 65520 and above
  if (x < 0x38800000)                                     // subnormal: 0.5 has the spacing of its last place
    return {uint16_t(sign | (emu::bits<uint32_t>(emu::bits<float>(x) + 0.5f) - 0x3f000000))};
  return {uint16_t(sign | (x + 0xc8000fff + (x >> 13 & 1)) >> 13)};
}
