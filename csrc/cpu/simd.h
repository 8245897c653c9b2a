// Vectors of floats by the compiler's own vector types, as wide as the instruction set this file is compiled for.
//
// Everything lies in the namespace IFAN_ISA, so that no instruction set borrows the inline code of another.
#pragma once
#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace ifan {
namespace IFAN_ISA {

#if defined(__AVX512F__)
constexpr int kWidth = 16, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kWidth = 8, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kWidth = 4, kRegisters = 32;
#else
constexpr int kWidth = 4, kRegisters = 16;
#endif

// L floats and L indices.
template <int L>
struct Lanes;
template <>
struct Lanes<4> {
  typedef float Float __attribute__((vector_size(16)));
  typedef int32_t Int __attribute__((vector_size(16)));
};
#if defined(__AVX2__)
template <>
struct Lanes<8> {
  typedef float Float __attribute__((vector_size(32)));
  typedef int32_t Int __attribute__((vector_size(32)));
};
#endif
#if defined(__AVX512F__)
template <>
struct Lanes<16> {
  typedef float Float __attribute__((vector_size(64)));
  typedef int32_t Int __attribute__((vector_size(64)));
};
#endif
template <int L>
using VecOf = typename Lanes<L>::Float;
using Vec = VecOf<kWidth>;

constexpr int64_t kLine = 16;  // floats of a line of the caches

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// The grain for `count` pieces of memory, `values` floats each, one behind the other: up to a megabyte, since behind a
// piece's end memory is asked for in vain where another thread takes the next one.
inline int64_t neighbours(int64_t count, int64_t values, int threads) {
  constexpr int64_t few = 8192, many = 1 << 18;
  const int64_t share = min(count * values / (8 * threads), many);
  return 1 + (share < few ? few : share) / (values + 1);
}

template <int L = kWidth>
inline VecOf<L> load(const float* p) {
  VecOf<L> v;
  __builtin_memcpy(&v, p, sizeof v);  // of any address
  return v;
}
template <typename V>
inline void store(float* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}

template <typename V>
inline void add_to(float* p, V v) {
  V before;
  __builtin_memcpy(&before, p, sizeof before);
  store(p, before + v);
}

// A vector of one value.
template <typename V>
inline V filled(float x) {
  return x - V{};
}

// x y + z: with AVX2 rounded once, which left to the compiler would depend on what surrounds it.
template <typename V>
inline V multiply_add(V x, V y, V z) {
  return x * y + z;
}
#if defined(__AVX2__)
template <>
inline float multiply_add(float x, float y, float z) {
  return __builtin_fmaf(x, y, z);
}
template <>
inline VecOf<4> multiply_add(VecOf<4> x, VecOf<4> y, VecOf<4> z) {
  return _mm_fmadd_ps(x, y, z);
}
template <>
inline VecOf<8> multiply_add(VecOf<8> x, VecOf<8> y, VecOf<8> z) {
  return _mm256_fmadd_ps(x, y, z);
}
#endif
#if defined(__AVX512F__)
template <>
inline VecOf<16> multiply_add(VecOf<16> x, VecOf<16> y, VecOf<16> z) {
  return _mm512_fmadd_ps(x, y, z);
}
#endif

// A store past the caches, for what is larger than they are and not read soon: the line is not fetched first. The
// address must be aligned to the vector; `finish_streams` before another thread may read.
inline void stream(float* p, Vec v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, v);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, v);
#else
  store(p, v);
#endif
}
inline void finish_streams() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// Outputs and gradients from so many values on are larger than the caches and are stored past them.
constexpr int64_t kStreamed = 4 << 20;

// Stores vectors and single values of a plane; past the caches where it is one of many and its rows begin at aligned
// addresses.
struct Writer {
  float* to;
  bool streamed;

  Writer(float* plane, int64_t width, bool large)
      : to(plane), streamed(large && (reinterpret_cast<uintptr_t>(plane) | width * sizeof(float)) % sizeof(Vec) == 0) {}
  void operator()(int64_t i, Vec v) const { streamed ? stream(to + i, v) : store(to + i, v); }
  template <typename V>
  void operator()(int64_t i, V v) const {
    store(to + i, v);
  }
};

// The first n values at an address, the rest zeros.
inline Vec load_first(const float* p, int64_t n) {
  if (n == kWidth) return load(p);
  Vec v{};
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
inline void store_first(float* p, Vec v, int64_t n) {
  if (n == kWidth) return store(p, v);
  for (int64_t i = 0; i < n; ++i) p[i] = v[i];
}

// The sum of a vector's values, by halves.
template <int L = kWidth>
inline float sum_of(VecOf<L> v) {
  float x[L];
  store(x, v);
  return sum_of<L / 2>(load<L / 2>(x) + load<L / 2>(x + L / 2));
}
template <>
inline float sum_of<4>(VecOf<4> v) {
  return (v[0] + v[2]) + (v[1] + v[3]);
}

// NaN passes, as it does through PyTorch's ReLU.
template <typename V>
inline V relu(V z) {
  return z < 0 ? V{} : z;
}
// The same in one instruction, which gives its second operand where one is NaN.
#if defined(__AVX2__)
template <>
inline VecOf<8> relu(VecOf<8> z) {
  return _mm256_max_ps(VecOf<8>{}, z);
}
#endif
#if defined(__AVX512F__)
template <>
inline VecOf<16> relu(VecOf<16> z) {
  return _mm512_maskz_max_ps(0xffff, VecOf<16>{}, z);  // all lanes; the plain form warns in GCC 12
}
#endif

#if defined(__clang__)
#define IFAN_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define IFAN_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Int{__VA_ARGS__})
#endif

// Shuffles of vectors as fours of values, each turned in its place, which costs processors a fraction of a move across
// the vector. low, high: the first two values of a and b in turn, and the last two; low_pairs, high_pairs: the first
// two of a, then of b, and the last two. first, second: the fours of a and b in turn, those of their first halves and
// of their second. after, before: of tiles (see Quads) those to their left, `left` for the first; and those to their
// right, `right` for the last.
template <int L>
struct Fours;
template <>
struct Fours<4> {
  using V = VecOf<4>;
  using Int = Lanes<4>::Int;
  static V low(V a, V b) { return IFAN_SHUFFLE(a, b, 0, 4, 1, 5); }
  static V high(V a, V b) { return IFAN_SHUFFLE(a, b, 2, 6, 3, 7); }
  static V low_pairs(V a, V b) { return IFAN_SHUFFLE(a, b, 0, 1, 4, 5); }
  static V high_pairs(V a, V b) { return IFAN_SHUFFLE(a, b, 2, 3, 6, 7); }
  static V after(float left, V v) { return IFAN_SHUFFLE(V{left}, v, 0, 4, 5, 6); }
  static V before(V v, float right) { return IFAN_SHUFFLE(v, V{right}, 1, 2, 3, 4); }
  static V first(V a, V b) { return IFAN_SHUFFLE(a, b, 0, 1, 2, 3); }
  static V second(V a, V b) { return IFAN_SHUFFLE(a, b, 4, 5, 6, 7); }
};
#if defined(__AVX2__)
template <>
struct Fours<8> {
  using V = VecOf<8>;
  using Int = Lanes<8>::Int;
  static V low(V a, V b) { return IFAN_SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13); }
  static V high(V a, V b) { return IFAN_SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15); }
  static V low_pairs(V a, V b) { return IFAN_SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13); }
  static V high_pairs(V a, V b) { return IFAN_SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15); }
  static V after(float left, V v) {
    return _mm256_blend_ps(_mm256_permutevar8x32_ps(v, _mm256_setr_epi32(0, 4, 5, 6, 0, 1, 2, 3)), _mm256_set1_ps(left),
                           1);
  }
  static V before(V v, float right) {
    return _mm256_blend_ps(_mm256_permutevar8x32_ps(v, _mm256_setr_epi32(4, 5, 6, 7, 1, 2, 3, 0)),
                           _mm256_set1_ps(right), 128);
  }
  static V first(V a, V b) { return IFAN_SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11); }
  static V second(V a, V b) { return IFAN_SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15); }
};
#endif
#if defined(__AVX512F__)
template <>
struct Fours<16> {
  using V = VecOf<16>;
  using Int = Lanes<16>::Int;
  static V low(V a, V b) { return IFAN_SHUFFLE(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29); }
  static V high(V a, V b) { return IFAN_SHUFFLE(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31); }
  static V low_pairs(V a, V b) { return IFAN_SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29); }
  static V high_pairs(V a, V b) {
    return IFAN_SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  }
  static V after(float left, V v) {
    const __m512i from = _mm512_setr_epi32(0, 12, 13, 14, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11);
    return _mm512_mask_permutexvar_ps(_mm512_set1_ps(left), 0xfffe, from, v);
  }
  static V before(V v, float right) {
    const __m512i from = _mm512_setr_epi32(4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 1, 2, 3, 0);
    return _mm512_mask_permutexvar_ps(_mm512_set1_ps(right), 0x7fff, from, v);
  }
  static V first(V a, V b) { return IFAN_SHUFFLE(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23); }
  static V second(V a, V b) { return IFAN_SHUFFLE(a, b, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31); }
};
#endif

// Pixels to tiles of four and back: 4 L neighbouring values against the L first, second, third and fourth of each group
// of four, a 4 x 4 transpose in each place. Tile t of those in a vector is found at place(t).
template <int L>
struct Quads : Fours<L> {
  using V = VecOf<L>;
  using F = Fours<L>;

  static constexpr int64_t place(int64_t tile) { return 4 * (tile % (L / 4)) + tile / (L / 4); }
  static void turn(const V in[4], V out[4]) {
    const V a = F::low(in[0], in[1]), b = F::high(in[0], in[1]), c = F::low(in[2], in[3]), d = F::high(in[2], in[3]);
    out[0] = F::low_pairs(a, c), out[1] = F::high_pairs(a, c), out[2] = F::low_pairs(b, d),
    out[3] = F::high_pairs(b, d);
  }
};

// Values of two vectors in turn: of their first halves and of their second.
template <int L>
struct Interleaved;

template <>
struct Interleaved<4> {
  using Int = Lanes<4>::Int;
  static VecOf<4> low(VecOf<4> a, VecOf<4> b) { return IFAN_SHUFFLE(a, b, 0, 4, 1, 5); }
  static VecOf<4> high(VecOf<4> a, VecOf<4> b) { return IFAN_SHUFFLE(a, b, 2, 6, 3, 7); }
};
#if defined(__AVX2__)
template <>
struct Interleaved<8> {
  using Int = Lanes<8>::Int;
  static VecOf<8> low(VecOf<8> a, VecOf<8> b) { return IFAN_SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
  static VecOf<8> high(VecOf<8> a, VecOf<8> b) { return IFAN_SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
};
#endif
#if defined(__AVX512F__)
template <>
struct Interleaved<16> {
  using Int = Lanes<16>::Int;
  static VecOf<16> low(VecOf<16> a, VecOf<16> b) {
    return IFAN_SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  }
  static VecOf<16> high(VecOf<16> a, VecOf<16> b) {
    return IFAN_SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  }
};
#endif

// Rows to columns: log2(kWidth) rounds in which the rows of both halves are interleaved.
inline void transpose(Vec v[kWidth]) {
  for (int round = 1; round < kWidth; round *= 2) {
    Vec t[kWidth];
    for (int i = 0; i < kWidth / 2; ++i) {
      t[2 * i] = Interleaved<kWidth>::low(v[i], v[i + kWidth / 2]);
      t[2 * i + 1] = Interleaved<kWidth>::high(v[i], v[i + kWidth / 2]);
    }
    for (int i = 0; i < kWidth; ++i) v[i] = t[i];
  }
}

// Each value twice: the doubled first half of a vector and the doubled second.
template <int L>
struct Doubled;

template <>
struct Doubled<4> {
  using Int = Lanes<4>::Int;
  static void split(VecOf<4> v, VecOf<4> out[2]) {
    out[0] = IFAN_SHUFFLE(v, v, 0, 0, 1, 1), out[1] = IFAN_SHUFFLE(v, v, 2, 2, 3, 3);
  }
};
#if defined(__AVX2__)
template <>
struct Doubled<8> {
  using Int = Lanes<8>::Int;
  static void split(VecOf<8> v, VecOf<8> out[2]) {
    out[0] = IFAN_SHUFFLE(v, v, 0, 0, 1, 1, 2, 2, 3, 3), out[1] = IFAN_SHUFFLE(v, v, 4, 4, 5, 5, 6, 6, 7, 7);
  }
};
#endif
#if defined(__AVX512F__)
template <>
struct Doubled<16> {
  using Int = Lanes<16>::Int;
  static void split(VecOf<16> v, VecOf<16> out[2]) {
    out[0] = IFAN_SHUFFLE(v, v, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    out[1] = IFAN_SHUFFLE(v, v, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15);
  }
};
#endif

// The sums of neighbours: a[0] + a[1], a[2] + a[3], ..., then those of b.
template <int L>
struct Neighbours;

template <>
struct Neighbours<4> {
  using Int = Lanes<4>::Int;
  static VecOf<4> sum(VecOf<4> a, VecOf<4> b) {
    return IFAN_SHUFFLE(a, b, 0, 2, 4, 6) + IFAN_SHUFFLE(a, b, 1, 3, 5, 7);
  }
};
#if defined(__AVX2__)
template <>
struct Neighbours<8> {
  using Int = Lanes<8>::Int;
  static VecOf<8> sum(VecOf<8> a, VecOf<8> b) {
    return IFAN_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14) + IFAN_SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
  }
};
#endif
#if defined(__AVX512F__)
template <>
struct Neighbours<16> {
  using Int = Lanes<16>::Int;
  static VecOf<16> sum(VecOf<16> a, VecOf<16> b) {
    return IFAN_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
           IFAN_SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  }
};
#endif

}  // namespace IFAN_ISA
}  // namespace ifan
