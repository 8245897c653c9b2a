#include "mobile_block.h"

#include <atomic>

#include "direct_outputs.h"
#include "runtime/scratch.h"
#include "runtime/thread_pool.h"

namespace ifan {
namespace IFAN_ISA {
namespace {

constexpr int64_t kChunk = 24;             // expanded channels at a time: a multiple of kOutputs
constexpr int64_t kTilePixels = 512;       // of a tile, where the working set allows
constexpr int64_t kWorkingSet = 96 << 10;  // floats of a tile that the second-level cache is trusted with
constexpr int kVectors = 2;                // of pixels, in registers at a time
constexpr int64_t kStep = kVectors * kWidth;

int64_t rounded_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
int64_t parts(int64_t n, int64_t size) { return (n + size - 1) / size; }

// Where a tile's values lie. "mid" is the picture between the first and the depthwise convolution.
struct Tiling {
  int64_t out_height, out_width, mid_height, mid_width;
  int64_t rows, columns;          // of an output tile; columns are whole vectors
  int64_t mid_rows, mid_columns;  // of mid that a tile needs
  int64_t phases, in_rows,
      stride;  // planes of x by parity of row and column, their rows, floats of a row, which is a row of mid too
  int64_t in_plane, mid_plane, out_stride, out_plane;
  int64_t across, tiles;

  Tiling(const MobileBlock& call, int64_t tile_rows) {
    const bool depthwise = call.depthwise;
    const int64_t step = depthwise ? call.depthwise_stride : 1, first = call.first ? call.first_stride : 1;
    mid_height = call.height / first, mid_width = call.width / first;
    out_height = mid_height / step, out_width = mid_width / step;
    across = parts(out_width, 64);
    columns = rounded_up(parts(out_width, across), kWidth);
    rows = tile_rows;
    mid_rows = depthwise ? (rows - 1) * step + 3 : rows, mid_columns = depthwise ? (columns - 1) * step + 3 : columns;
    const bool window = call.first && call.kernel == 3;
    phases = first * first;
    in_rows = mid_rows + (window ? (first == 2 ? 1 : 2) : 0);
    stride = mid_columns + (window ? (first == 2 ? 1 : 2) : 0);
    in_plane = rounded_up(in_rows * stride + 2 * kStep + 4, kLine);
    mid_plane = rounded_up(mid_rows * stride + 2 * kStep + 4, kLine);
    out_stride = depthwise ? columns : stride;
    out_plane = rounded_up(rows * out_stride, kStep) + kLine;
    tiles = across * parts(out_height, rows);
  }

  int64_t floats(const MobileBlock& call) const {
    const int64_t wide = call.first ? rounded_up(kChunk, kOutputs) : 0;
    return call.inputs * phases * in_plane + wide * mid_plane + (call.depthwise ? kChunk * out_plane : 0) +
           groups(call.outputs) * kOutputs * out_plane;
  }
};

// As many rows as the cache holds, in tiles that the threads can share evenly.
Tiling tiling_of(const MobileBlock& call) {
  const Tiling one(call, 4);
  int64_t rows = kTilePixels / one.columns > 4 ? kTilePixels / one.columns : 4;
  while (rows > 4 && Tiling(call, rows).floats(call) > kWorkingSet) --rows;
  int64_t down = parts(one.out_height, rows);
  while (down * one.across % call.threads && parts(one.out_height, down) > 2) ++down;
  return Tiling(call, parts(one.out_height, down));
}

struct Context {
  const MobileBlock& call;
  const Tiling& tiling;
  std::atomic<bool> failed{false};
};

// Sums of kOutputs channels of kVectors vectors of pixels, added to what is there.
inline void multiply(const float* const* rows, int64_t at, int64_t products, const float* filters,
                     Vec sum[kOutputs][kVectors]) {
  Vec s[kOutputs][kVectors];
  for (int o = 0; o < kOutputs; ++o)
    for (int n = 0; n < kVectors; ++n) s[o][n] = sum[o][n];
  for (int64_t k = 0; k < products; ++k, filters += kOutputs) {
    Vec x[kVectors];
    for (int n = 0; n < kVectors; ++n) x[n] = load(rows[k] + at + n * kWidth);
    for (int o = 0; o < kOutputs; ++o)
      for (int n = 0; n < kVectors; ++n) s[o][n] = multiply_add(filled<Vec>(filters[o]), x[n], s[o][n]);
  }
  for (int o = 0; o < kOutputs; ++o)
    for (int n = 0; n < kVectors; ++n) sum[o][n] = s[o][n];
}

// Every second value, from the first and from the second.
template <int L>
struct Halves;
template <>
struct Halves<4> {
  using Int = Lanes<4>::Int;
  static VecOf<4> even(VecOf<4> a, VecOf<4> b) { return IFAN_SHUFFLE(a, b, 0, 2, 4, 6); }
  static VecOf<4> odd(VecOf<4> a, VecOf<4> b) { return IFAN_SHUFFLE(a, b, 1, 3, 5, 7); }
};
#if defined(__AVX2__)
template <>
struct Halves<8> {
  using Int = Lanes<8>::Int;
  static VecOf<8> even(VecOf<8> a, VecOf<8> b) { return IFAN_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14); }
  static VecOf<8> odd(VecOf<8> a, VecOf<8> b) { return IFAN_SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15); }
};
#endif
#if defined(__AVX512F__)
template <>
struct Halves<16> {
  using Int = Lanes<16>::Int;
  static VecOf<16> even(VecOf<16> a, VecOf<16> b) {
    return IFAN_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  }
  static VecOf<16> odd(VecOf<16> a, VecOf<16> b) {
    return IFAN_SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  }
};
#endif

// A channel of a tile: 3x3 of stride 1 or 2, bias and ReLU; `e` begins one row and one column before the first output's
// centre.
void depthwise(const float* e, const float* weight, float bias, int64_t step, const Tiling& t, float* d) {
  Vec w[9];
  for (int k = 0; k < 9; ++k) w[k] = filled<Vec>(weight[k]);
  for (int64_t y = 0; y < t.rows; ++y, d += t.columns)
    for (int64_t x = 0; x < t.columns; x += kWidth) {
      Vec sum = filled<Vec>(bias);
      for (int ky = 0; ky < 3; ++ky) {
        const float* row = e + (y * step + ky) * t.stride + x * step;
        Vec v[3];
        if (step == 1) {
          v[0] = load(row), v[1] = load(row + 1), v[2] = load(row + 2);
        } else {
          const Vec a = load(row), b = load(row + kWidth);
          v[0] = Halves<kWidth>::even(a, b), v[1] = Halves<kWidth>::odd(a, b);
          v[2] = Halves<kWidth>::even(load(row + 2), load(row + 2 + kWidth));
        }
        for (int kx = 0; kx < 3; ++kx) sum = multiply_add(w[3 * ky + kx], v[kx], sum);
      }
      store(d + x, relu(sum));
    }
}

// One tile, in the order of the formula.
class Tile {
 public:
  Tile(const MobileBlock& call, const Tiling& tiling, int64_t index, float* memory, const float** rows)
      : call_(call), t_(tiling), rows_(rows), top_(index / t_.across * t_.rows), left_(index % t_.across * t_.columns) {
    const int64_t step = call.depthwise ? call.depthwise_stride : 1, around = call.depthwise ? 1 : 0;
    mid_top_ = top_ * step - around, mid_left_ = left_ * step - around;
    x_ = memory;
    e_ = x_ + call.inputs * t_.phases * t_.in_plane;
    d_ = e_ + (call.first ? rounded_up(kChunk, kOutputs) * t_.mid_plane : 0);
    y_ = d_ + (call.depthwise ? kChunk * t_.out_plane : 0);
  }

  void run() {
    take();
    const int64_t channels = call_.first ? call_.expanded : call_.inputs;
    for (int64_t begin = 0; begin < channels; begin += kChunk) {
      const int64_t count = min(kChunk, channels - begin);
      const float* e = x_ + begin * t_.in_plane;
      int64_t plane = t_.in_plane;
      if (call_.first) {
        expand(begin, count);
        e = e_, plane = t_.mid_plane;
      }
      if (call_.depthwise) {
        for (int64_t c = 0; c < count; ++c)
          depthwise(e + c * plane, call_.depthwise + 9 * (begin + c), call_.depthwise_bias[begin + c],
                    call_.depthwise_stride, t_, d_ + c * t_.out_plane);
        e = d_, plane = t_.out_plane;
      }
      project(e, plane, begin, count, channels);
    }
    give();
  }

 private:
  // x's part, by phases where the first convolution has stride 2; zeros outside of the picture.
  void take() {
    const int64_t first = call_.first ? call_.first_stride : 1, around = call_.first && call_.kernel == 3 ? 1 : 0;
    const int64_t top = mid_top_ * first - around, left = mid_left_ * first - around;
    for (int64_t c = 0; c < call_.inputs; ++c)
      for (int64_t phase = 0; phase < t_.phases; ++phase) {
        float* plane = x_ + (c * t_.phases + phase) * t_.in_plane;
        for (int64_t r = 0; r < t_.in_rows; ++r) {
          float* to = plane + r * t_.stride;
          const int64_t y = top + r * first + phase / 2, x0 = left + phase % 2;
          if (y < 0 || y >= call_.height) {
            for (int64_t i = 0; i < t_.stride; ++i) to[i] = 0;
            continue;
          }
          const float* from = call_.x + (c * call_.height + y) * call_.width + x0;
          int64_t i = 0;
          for (; i < t_.stride && x0 + i * first < 0; ++i) to[i] = 0;
          const int64_t end = min(t_.stride, parts(call_.width - x0, first));
          if (first == 1) {
            for (; i + kWidth <= end; i += kWidth) store(to + i, load(from + i));
            for (; i < end; ++i) to[i] = from[i];
          } else {
            for (; i < end; ++i) to[i] = from[2 * i];
          }
          for (; i < t_.stride; ++i) to[i] = 0;
        }
        for (int64_t i = t_.in_rows * t_.stride; i < t_.in_plane; ++i) plane[i] = 0;
      }
  }

  // e of `count` channels from `begin` on; zeros outside of the picture, for the depthwise convolution.
  void expand(int64_t begin, int64_t count) {
    const int64_t taps = call_.kernel * call_.kernel, products = call_.inputs * taps, first = call_.first_stride;
    for (int64_t c = 0, k = 0; c < call_.inputs; ++c)
      for (int64_t tap = 0; tap < taps; ++tap, ++k) {
        const int64_t ky = tap / call_.kernel, kx = tap % call_.kernel;
        const int64_t phase = first == 2 ? ky % 2 * 2 + kx % 2 : 0,
                      shift = first == 2 ? ky / 2 * t_.stride + kx / 2 : ky * t_.stride + kx;
        rows_[k] = x_ + (c * t_.phases + phase) * t_.in_plane + shift;
      }
    const int64_t length = t_.mid_rows * t_.stride;
    for (int64_t o = 0; o < count; o += kOutputs) {
      const float* filters = call_.first + (begin + o) * products;
      float bias[kOutputs];
      for (int i = 0; i < kOutputs; ++i) bias[i] = begin + o + i < call_.expanded ? call_.first_bias[begin + o + i] : 0;
      for (int64_t at = 0; at < length; at += kStep) {
        Vec sum[kOutputs][kVectors];
        for (int i = 0; i < kOutputs; ++i)
          for (int n = 0; n < kVectors; ++n) sum[i][n] = filled<Vec>(bias[i]);
        multiply(rows_, at, products, filters, sum);
        for (int i = 0; i < kOutputs; ++i)
          for (int n = 0; n < kVectors; ++n) store(e_ + (o + i) * t_.mid_plane + at + n * kWidth, relu(sum[i][n]));
      }
    }
    if (!call_.depthwise) return;
    const int64_t above = mid_top_ < 0 ? -mid_top_ : 0, left = mid_left_ < 0 ? -mid_left_ : 0;
    const int64_t below = min(t_.mid_rows, t_.mid_height - mid_top_),
                  right = min(t_.mid_columns, t_.mid_width - mid_left_);
    if (!above && !left && below == t_.mid_rows && right == t_.mid_columns) return;
    for (int64_t c = 0; c < count; ++c)
      for (int64_t r = 0; r < t_.mid_rows; ++r) {
        float* row = e_ + c * t_.mid_plane + r * t_.stride;
        const bool inside = r >= above && r < below;
        for (int64_t i = 0; i < (inside ? left : t_.mid_columns); ++i) row[i] = 0;
        for (int64_t i = right; inside && i < t_.mid_columns; ++i) row[i] = 0;
      }
  }

  // Adds the products of `count` channels to y, which begins as the bias.
  void project(const float* d, int64_t plane, int64_t begin, int64_t count, int64_t channels) {
    for (int64_t k = 0; k < count; ++k) rows_[k] = d + k * plane;
    for (int64_t o = 0; o < call_.outputs; o += kOutputs) {
      const float* filters = call_.last + o * channels + begin * kOutputs;
      float* y = y_ + o * t_.out_plane;
      for (int64_t at = 0; at < t_.rows * t_.out_stride; at += kStep) {
        Vec sum[kOutputs][kVectors];
        for (int i = 0; i < kOutputs; ++i)
          for (int n = 0; n < kVectors; ++n)
            sum[i][n] = begin ? load(y + i * t_.out_plane + at + n * kWidth)
                              : filled<Vec>(o + i < call_.outputs ? call_.last_bias[o + i] : 0);
        multiply(rows_, at, count, filters, sum);
        for (int i = 0; i < kOutputs; ++i)
          for (int n = 0; n < kVectors; ++n) store(y + i * t_.out_plane + at + n * kWidth, sum[i][n]);
      }
    }
  }

  // y to its place.
  void give() const {
    const int64_t height = min(t_.rows, t_.out_height - top_), width = min(t_.columns, t_.out_width - left_);
    for (int64_t o = 0; o < call_.outputs; ++o)
      for (int64_t r = 0; r < height; ++r) {
        const float* from = y_ + o * t_.out_plane + r * t_.out_stride;
        if (call_.subpixels) {
          const int64_t row = 2 * (top_ + r) + o / 2 % 2,
                        place = (o / 4 * 2 * t_.out_height + row) * 2 * t_.out_width + 2 * left_ + o % 2;
          for (int64_t i = 0; i < width; ++i) finish(from[i], place + 2 * i);
        } else {
          const int64_t place = (o * t_.out_height + top_ + r) * t_.out_width + left_;
          int64_t i = 0;
          for (; i + kWidth <= width; i += kWidth) finish(load(from + i), place + i);
          for (; i < width; ++i) finish(from[i], place + i);
        }
      }
  }

  template <typename V>
  void finish(V v, int64_t place) const {
    if (call_.relu) v = relu(v);
    if (call_.add) {
      V other;
      __builtin_memcpy(&other, call_.add + place, sizeof other);
      v += other;
    }
    store(call_.out + place, v);
  }

  const MobileBlock& call_;
  const Tiling& t_;
  const float** rows_;
  const int64_t top_, left_;
  int64_t mid_top_, mid_left_;
  float *x_, *e_, *d_, *y_;
};

void run_tiles(void* argument, int64_t begin, int64_t end) {
  auto& [call, tiling, failed] = *static_cast<Context*>(argument);
  const int64_t products = call.first ? call.inputs * call.kernel * call.kernel : 0;
  const int64_t pointers = (products > kChunk ? products : kChunk) * static_cast<int64_t>(sizeof(void*)) / 4;
  float* memory = scratch(rounded_up(pointers, kLine) + tiling.floats(call));
  if (!memory) {
    failed = true;
    return;
  }
  for (int64_t index = begin; index < end; ++index)
    Tile(call, tiling, index, memory + rounded_up(pointers, kLine), reinterpret_cast<const float**>(memory)).run();
}

}  // namespace

bool mobile_block(const MobileBlock& call) {
  const Tiling tiling = tiling_of(call);
  Context context{call, tiling};
  parallel_for(tiling.tiles, 1, call.threads, run_tiles, &context);
  return !context.failed;
}

}  // namespace IFAN_ISA
}  // namespace ifan
