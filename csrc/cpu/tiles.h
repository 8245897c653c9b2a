// Products of bfloat16 in the processor's tile registers (AMX): sums (M, 16) += filters (M, 2 K) inputs (2 K, 16), some
// thirty times as many a cycle as by vectors.
//
//   sums     M outputs of 16 pixels, float32
//   filters  M outputs of K pairs of channels, a row 64 bytes
//   inputs   K pairs of channels (see pairs.h) of 16 pixels, a row 64 bytes, which must be aligned: others take seven
//   times as long
//
// So the rows of a picture begin at whole vectors, and columns beside each other are added up after the products
// (`shifts`), or lie beside each other as pairs of their own.
#pragma once
#include <cstring>
#include <utility>

#include "pairs.h"
#include "runtime/isa.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("amx-tile,amx-bf16"))), apply_to = function)
#endif

namespace ifan {
namespace IFAN_ISA {

constexpr int kTileRows = 16, kSums = 6;  // registers 0 to 5 are sums, 6 filters, 7 inputs

#if defined(IFAN_POISON)
// Under make sanitize the same in C++, as sanitizers do not see what tile instructions read and write.
struct TileRegisters {
  int64_t M, K;
  Vec tiles[8][kTileRows];

  template <typename Row>
  void each_row(int R, Row row) {
    for (int64_t r = 0; r < (R == 7 ? K : M); ++r) row(r, &tiles[R][r], (R == kSums ? K : kWidth) * sizeof(float));
  }
};
inline thread_local TileRegisters registers;

template <int R>
inline void load_tile(const float* p, int64_t stride) {
  registers.each_row(R, [&](int64_t r, Vec* row, size_t bytes) { memcpy(row, p + r * stride, bytes); });
}
template <int R>
inline void store_tile(float* p, int64_t stride) {
  registers.each_row(R, [&](int64_t r, Vec* row, size_t bytes) { memcpy(p + r * stride, row, bytes); });
}
template <int R>
inline void clear_tile() {
  for (Vec& row : registers.tiles[R]) row = Vec{};
}
template <int Sum>
__attribute__((no_sanitize("address", "undefined"))) inline void add_products() {  // touches registers alone
  using Int = Lanes<kWidth>::Int;
  for (int64_t k = 0; k < registers.K; ++k) {
    const Int pairs = (Int)registers.tiles[7][k];
    for (int64_t m = 0; m < registers.M; ++m) {
      const Int filter = Int{} + ((Int)registers.tiles[kSums][m])[k];
      registers.tiles[Sum][m] += (Vec)(filter << 16) * (Vec)(pairs << 16);
      registers.tiles[Sum][m] += (Vec)(filter & ~0xffff) * (Vec)(pairs & ~0xffff);
    }
  }
}
class Tiles {
 public:
  Tiles(int64_t M, int64_t K) { registers.M = M, registers.K = K; }
};
#else
// Instructions by their assembler names, for which no compiler needs to know them.
template <int R>
inline void load_tile(const float* p, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride * 4), "i"(R) : "memory");
}
template <int R>
inline void store_tile(float* p, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride * 4), "i"(R) : "memory");
}
template <int R>
inline void clear_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(R));
}
template <int Sum>
inline void add_products() {
  asm volatile("tdpbf16ps %%tmm7, %%tmm6, %%tmm%c0" : : "i"(Sum));
}

// This thread's tile registers, for sums and filters of M rows and inputs of K, as long as it lives.
class Tiles {
 public:
  Tiles(int64_t M, int64_t K) {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shape;
    for (int r = 0; r <= kSums; ++r) shape.row_bytes[r] = 64, shape.rows[r] = static_cast<uint8_t>(M);
    shape.row_bytes[kSums] = static_cast<uint16_t>(4 * K);
    shape.row_bytes[7] = 64, shape.rows[7] = static_cast<uint8_t>(K);
    asm volatile("ldtilecfg %0" : : "m"(shape));
  }
  ~Tiles() { asm volatile("tilerelease"); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};
#endif

template <int... I, typename F>
inline void unrolled(std::integer_sequence<int, I...>, F f) {
  (f(std::integral_constant<int, I>{}), ...);
}
template <int count, typename F>
inline void unrolled(F f) {
  unrolled(std::make_integer_sequence<int, count>{}, f);
}

// How a convolution becomes products. Outputs are split into groups, the pairs of channels into chunks, both as evenly
// as may be.
struct TileProducts {
  int64_t pairs, heights, shifts, outputs;  // heights: rows of the kernel; shifts: columns that are added up afterwards

  int64_t groups() const { return (outputs + kTileRows - 1) / kTileRows; }
  int64_t group() const { return ((outputs + groups() - 1) / groups() + 3) / 4 * 4; }  // whole phase shifts
  int64_t chunks() const { return (pairs + kTileRows - 1) / kTileRows; }
  int64_t chunk() const { return (pairs + chunks() - 1) / chunks(); }
  int64_t filter() const { return group() * kTileRows; }  // floats of one register
  int64_t group_filters() const { return chunks() * heights * shifts * filter(); }

  // weight(output, pair, height, shift, 0 or 1) to filters [group][chunk][height][shift][output][16 pairs].
  template <typename Weight>
  void pack(Weight weight, float* filters) const {
    memset(filters, 0, groups() * group_filters() * sizeof(float));
    for (int64_t o = 0; o < outputs; ++o)
      for (int64_t p = 0; p < pairs; ++p)
        for (int64_t y = 0; y < heights; ++y)
          for (int64_t s = 0; s < shifts; ++s)
            store_pair(filters + o / group() * group_filters() + ((p / chunk() * heights + y) * shifts + s) * filter() +
                           o % group() * kTileRows + p % chunk(),
                       weight(o, p, y, s, 0), weight(o, p, y, s, 1));
  }
};

// sums [shift][output][pixel] (+)= `chunks` chunks of products for N neighbouring vectors of pixels. `inputs`
// [pair][pixel], pairs `pair` and rows of the picture `row` floats apart; outputs `pixels` floats apart.
template <int shifts, int N>
inline void tile_products(const TileProducts& plan, const float* filters, const float* inputs, int64_t pair,
                          int64_t row, int64_t chunks, float* sums, int64_t pixels, bool add) {
  static_assert(shifts * N <= kSums, "");
  const int64_t filter = plan.filter(), shift = plan.group() * pixels, chunk = plan.chunk() * pair;
  unrolled<shifts * N>([&](auto i) {
    constexpr int s = i / N, n = i % N;
    if (add)
      load_tile<s * N + n>(sums + s * shift + n * kWidth, pixels);
    else
      clear_tile<s * N + n>();
  });
  for (int64_t k = 0; k < chunks; ++k, inputs += chunk)
    for (int64_t y = 0; y < plan.heights; ++y)
      unrolled<shifts>([&](auto s) {
        load_tile<kSums>(filters, kTileRows);
        filters += filter;
        unrolled<N>([&](auto n) {
          if (N > 1 || s == 0) load_tile<7>(inputs + y * row + n * kWidth, pair);
          add_products<s * N + n>();
        });
      });
  unrolled<shifts * N>([&](auto i) {
    constexpr int s = i / N, n = i % N;
    store_tile<s * N + n>(sums + s * shift + n * kWidth, pixels);
  });
}

// All sums of a group for `count` vectors of pixels, which lie one after the other; so many chunks at a time that
// filters stay in the first-level cache from one vector to the next.
template <int shifts>
inline void group_products(const TileProducts& plan, const float* filters, const float* inputs, int64_t pair,
                           int64_t row, int64_t count, float* sums) {
  constexpr int N = kSums / shifts;
  const int64_t pixels = count * kWidth, some = shifts > 1 ? 3 : 16;
  for (int64_t first = 0; first < plan.chunks(); first += some) {
    const float* u = filters + first * plan.heights * shifts * plan.filter();
    const float* v = inputs + first * plan.chunk() * pair;
    const int64_t chunks = min(some, plan.chunks() - first);
    int64_t n = 0;
    for (; n + N <= count; n += N)
      tile_products<shifts, N>(plan, u, v + n * kWidth, pair, row, chunks, sums + n * kWidth, pixels, first > 0);
    for (; n < count; ++n)
      tile_products<shifts, 1>(plan, u, v + n * kWidth, pair, row, chunks, sums + n * kWidth, pixels, first > 0);
  }
}

}  // namespace IFAN_ISA
}  // namespace ifan

#if defined(__clang__)
#pragma clang attribute pop
#endif
