// Elementary functions of vectors of floats. NaN passes through all of them.
#pragma once
#include "simd.h"

namespace ifan {
namespace IFAN_ISA {

using Int = Lanes<kWidth>::Int;

template <typename To, typename From>
inline To bits_of(From v) {
  To bits;
  __builtin_memcpy(&bits, &v, sizeof bits);
  return bits;
}

// The greater one, or x where it is NaN.
inline Vec at_least(Vec x, Vec least) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  return _mm256_max_ps(least, x);  // one instruction, which gives its second operand where one is NaN
#else
  return x < least ? least : x;
#endif
}

#if defined(__AVX512F__)
// e^x = 2^t, t = x log2 e: 2^floor(t), which AVX-512 multiplies by in one instruction, times a polynomial of degree 6
// on [0, 1) of what is left (fitted for the least relative error with 1 at 0, 2e-9; rounding of t makes it 6e-8 (1 +
// |x|)).
inline Vec exponential(Vec x) {
  const Vec t = x * 1.44269504f, r = _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  Vec p = r * 2.1612915732280302e-4f + 1.2467846192077553e-3f;
  p = p * r + 9.675451598362042e-3f;
  p = p * r + 5.548528060051067e-2f;
  p = p * r + 0.24022930555698332f;
  p = p * r + 0.6931470444428909f;
  return _mm512_scalef_ps(p * r + 1.f, t);
}
#else
// e^x = 2^t, t = x log2 e up to 127: 2^n, n the nearest whole number, times a polynomial of degree 5 on [-1/2, 1/2]
// (fitted for the least relative error with 1 at 0, 9e-8; rounding makes it 2e-7 + 1.4e-8 |x|). Below -87 it stays
// at 1.6e-38.
inline Vec exponential(Vec x) {
  constexpr float rounder =
      12582912.f + 127.f;  // 1.5 x 2^23: adding it leaves n + 127, the exponent of 2^n, in the last bits
  x = at_least(x, Vec{} - 87.f);
  const Vec shifted = x * 1.44269504f + rounder, r = x * 1.44269504f - (shifted - rounder);
  Vec p = r * 1.326472731307149e-3f + 9.671512991189957e-3f;
  p = p * r + 5.550733581185341e-2f;
  p = p * r + 0.24022242426872253f;
  p = p * r + 0.6931470036506653f;
  return (p * r + 1.f) * bits_of<Vec>(bits_of<Int>(shifted) << 23);
}
#endif

// ln x for positive normal x, by the exponent and a polynomial on [sqrt 1/2, sqrt 2] (Cephes' coefficients).
inline Vec logarithm(Vec x) {
  const Int bits = bits_of<Int>(x);
  const Vec half = bits_of<Vec>((bits & 0x7fffff) | 0x3f000000);  // mantissa in [0.5, 1)
  const auto small = half < 0.707106781f;
  const Vec exponent = __builtin_convertvector((bits >> 23) - 126, Vec) - (small ? Vec{} + 1.f : Vec{});
  const Vec r = (small ? half + half : half) - 1.f, square = r * r;
  Vec p = r * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * r + 1.1676998740e-1f;
  p = p * r - 1.2420140846e-1f;
  p = p * r + 1.4249322787e-1f;
  p = p * r - 1.6668057665e-1f;
  p = p * r + 2.0000714765e-1f;
  p = p * r - 2.4999993993e-1f;
  p = p * r + 3.3333331174e-1f;
  const Vec y = p * r * square - exponent * 2.12194440e-4f - square * 0.5f + r + exponent * 0.693359375f;
  return x == x ? y : x;
}

}  // namespace IFAN_ISA
}  // namespace ifan
