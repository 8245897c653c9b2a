// Pairs of bfloat16, one of an even and one of an odd channel in a float's place, and their products.
#pragma once
#include <cstring>

#include "simd.h"

namespace ifan {
namespace IFAN_ISA {

// To bfloat16, to the nearest, ties to even; NaN stays NaN.
inline uint16_t rounded(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 64);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline void store_pair(float* p, float even, float odd) {
  const uint32_t bits = rounded(even) | static_cast<uint32_t>(rounded(odd)) << 16;
  memcpy(p, &bits, sizeof bits);
}

// Sixteen pairs from as many values of each channel.
inline void store_pairs(float* p, Vec even, Vec odd) {
  alignas(64) static constexpr uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
  _mm512_storeu_si512(p, _mm512_permutexvar_epi16(_mm512_load_si512(order), halves));
}

// Of a vector's values the first n, or all.
inline __mmask16 first_lanes(int64_t n) { return n < kWidth ? static_cast<__mmask16>((1 << n) - 1) : 0xffff; }

// The same, or the first n pairs and zeros, of values in memory; odd may be null.
inline void interleave(float* p, const float* even, const float* odd, int64_t n) {
  const __mmask16 mask = first_lanes(n);
  store_pairs(p, _mm512_maskz_loadu_ps(mask, even), odd ? _mm512_maskz_loadu_ps(mask, odd) : _mm512_setzero_ps());
}

// m [M][tiles] (+)= sum over pairs of channels of u [pair][M] v [pair][tiles].
template <int M, int N>
inline void pair_products(const float* u, const float* v, int64_t pairs, float* m, bool add) {
  constexpr int tiles = N * kWidth;
  Vec sum[M][N];
  for (int o = 0; o < M; ++o)
    for (int n = 0; n < N; ++n) sum[o][n] = add ? load(m + o * tiles + n * kWidth) : Vec{};
  for (int64_t c = 0; c < pairs; ++c, u += M, v += tiles) {
    __m512bh x[N];
    for (int n = 0; n < N; ++n) x[n] = (__m512bh)load(v + n * kWidth);
    for (int o = 0; o < M; ++o)
      for (int n = 0; n < N; ++n) sum[o][n] = _mm512_dpbf16_ps(sum[o][n], x[n], (__m512bh)_mm512_set1_ps(u[o]));
  }
  for (int o = 0; o < M; ++o)
    for (int n = 0; n < N; ++n) store(m + o * tiles + n * kWidth, sum[o][n]);
}

}  // namespace IFAN_ISA
}  // namespace ifan
