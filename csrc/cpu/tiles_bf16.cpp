#include "tiles_bf16.h"

#include <atomic>

#include "runtime/scratch.h"
#include "runtime/thread_pool.h"
#include "tiles.h"

namespace ifan {
namespace IFAN_ISA {
namespace {

constexpr int64_t kBand = 1 << 17;  // floats: the pairs of a band of rows fill a quarter of a second-level cache
constexpr int64_t kVectors = 8;     // of pixels whose sums are made together
constexpr int64_t kFewestRows =
    8;  // of a band that is made smaller for more threads: the rows around it are read twice

// Pictures are cut into bands of rows; a band's inputs are rounded to pairs once, for all outputs.
struct Bands {
  TileProducts products;
  int64_t lanes, height, width, row;  // row: floats from one row of pairs to the next
  int64_t rows, bands, pieces;        // of a band; bands of a picture; threads that share a band's outputs
  int64_t pair;  // floats from one pair to the next: an odd number of vectors, or they would share cache sets

  Bands(TileProducts products, int64_t lanes, int64_t height, int64_t width, int threads)
      : products(products), lanes(lanes), height(height), width(width), row((width + kWidth - 1) / kWidth * kWidth) {
    const int64_t fitting = kBand / (padded_pairs() * row) - halo();
    rows = min(height, fitting < 1 ? 1 : fitting);
    if (threads > 1) {
      const int64_t share = (height * lanes + 4 * threads - 1) / (4 * threads);
      rows = min(rows, share < kFewestRows ? kFewestRows : share);
    }
    bands = (height + rows - 1) / rows;
    rows = (height + bands - 1) / bands;
    pieces = lanes * bands < threads ? min(threads, products.groups()) : 1;
    pair = ((rows + halo()) * row / kWidth | 1) * kWidth;
  }
  int64_t halo() const { return products.heights - 1; }
  int64_t padded_pairs() const { return products.chunks() * products.chunk(); }
  int64_t step() const {
    return row < kVectors * kWidth ? kVectors * kWidth / row : 1;
  }  // rows whose sums are made together
  int64_t sums() const { return products.shifts * products.group() * step() * row; }
};

// Sixteen sums of an output from `x` on of a row, added up over the shifts; `first`: those of shift 0, `shift` floats
// apart.
template <int shifts>
inline Vec sum_of_shifts(const float* first, int64_t shift, int64_t x, int64_t row) {
  if (shifts == 1) return load(first + x);
  const Vec left = _mm512_maskz_loadu_ps(x ? 0xffff : 0xfffe, first + x - 1);
  const Vec right = _mm512_maskz_loadu_ps(x + kWidth < row ? 0xffff : 0x7fff, first + 2 * shift + x + 1);
  return left + load(first + shift + x) + right;
}

inline void store_some(float* p, Vec v, int64_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), v); }

// Shares out (lane, band, piece of the groups). read(lane, first row, rows, memory) makes a band's pairs; write(lane,
// first output, first row, rows, sums) takes sums [shift][output][row][pixel] to their place.
template <int shifts, typename Read, typename Write>
bool convolve(const Bands& bands, const float* filters, int threads, Read read, Write write) {
  struct Context {
    const Bands& bands;
    const float* filters;
    Read& read;
    Write& write;
    std::atomic<bool> failed{false};
  } context{bands, filters, read, write};
  const auto body = [](void* argument, int64_t begin, int64_t end) {
    Context& c = *static_cast<Context*>(argument);
    const Bands& b = c.bands;
    const TileProducts& products = b.products;
    float* memory = scratch(b.padded_pairs() * b.pair + b.sums());
    if (!memory) {
      c.failed = true;
      return;
    }
    float* sums = memory + b.padded_pairs() * b.pair;
    memset(memory + products.pairs * b.pair, 0, (b.padded_pairs() - products.pairs) * b.pair * sizeof(float));
    const Tiles tiles(products.group(), products.chunk());
    for (int64_t index = begin; index < end; ++index) {
      const int64_t piece = index % b.pieces, first = index / b.pieces % b.bands * b.rows,
                    lane = index / b.pieces / b.bands;
      const int64_t rows = min(b.rows, b.height - first);
      c.read(lane, first, rows, memory);
      for (int64_t y = 0; y < rows; y += b.step()) {
        const int64_t some = min(b.step(), rows - y);
        for (int64_t g = piece * products.groups() / b.pieces; g < (piece + 1) * products.groups() / b.pieces; ++g) {
          group_products<shifts>(products, c.filters + g * products.group_filters(), memory + y * b.row, b.pair, b.row,
                                 some * b.row / kWidth, sums);
          c.write(lane, g * products.group(), first + y, some, sums);
        }
      }
    }
  };
  parallel_for(bands.lanes * bands.bands * bands.pieces, 1, threads, body, &context);
  return !context.failed;
}

TileProducts convolution_products(int64_t outputs, int64_t inputs) { return {(inputs + 1) / 2, 3, 3, outputs}; }

// A row of two planes, normalised, as pairs; zeros behind its end.
template <bool normalise>
inline void read_row(const float* even, const float* odd, int64_t width, const float scale[2], const float shift[2],
                     float* out) {
  const auto prologue = [&](Vec x, int k) {
    return normalise ? relu(multiply_add(x, filled<Vec>(scale[k]), filled<Vec>(shift[k]))) : x;
  };
  for (int64_t i = 0; i < width; i += kWidth) {
    const __mmask16 mask = first_lanes(width - i);
    const Vec a = prologue(_mm512_maskz_loadu_ps(mask, even + i), 0);
    const Vec b = odd ? prologue(_mm512_maskz_loadu_ps(mask, odd + i), 1) : Vec{};
    store_pairs(out + i, _mm512_maskz_mov_ps(mask, a), _mm512_maskz_mov_ps(mask, b));
  }
}

template <bool normalise>
bool convolve_normalised(const ConvolutionForward& call, const Plan& plan) {
  const int64_t channels = call.x.channels, height = call.x.height, width = call.x.width, plane = height * width;
  const Bands bands(convolution_products(call.outputs, channels), call.x.lanes, height, width, call.threads);
  const auto read = [&](int64_t lane, int64_t first, int64_t rows, float* out) {
    const int64_t begin = first ? first - 1 : 0, end = min(first + rows + 1, height);
    for (int64_t c = 0; c < channels; c += 2, out += bands.pair) {
      const bool odd = c + 1 < channels;
      const float* planes[2] = {plan.plane(lane, c), odd ? plan.plane(lane, c + 1) : nullptr};
      const float* ahead = plan.plane(lane, min(c + 2, channels - 1));
      const float* ahead_odd = plan.plane(lane, min(c + 3, channels - 1));
      const int64_t at = plan.task[lane] * channels + c;
      float scale[2] = {1, 1}, shift[2] = {0, 0};
      for (int64_t k = 0; normalise && k < 1 + odd; ++k) scale[k] = call.scale[at + k], shift[k] = call.shift[at + k];
      if (!first) memset(out, 0, bands.row * sizeof(float));
      for (int64_t y = begin; y < end; ++y) {
        for (int64_t i = 0; i < width; i += 16)
          __builtin_prefetch(ahead + y * width + i), __builtin_prefetch(ahead_odd + y * width + i);
        read_row<normalise>(planes[0] + y * width, odd ? planes[1] + y * width : nullptr, width, scale, shift,
                            out + (y - first + 1) * bands.row);
      }
      if (first + rows == height) memset(out + (rows + 1) * bands.row, 0, bands.row * sizeof(float));
    }
  };
  const int64_t row = bands.row;
  const auto write = [&](int64_t lane, int64_t first_output, int64_t y, int64_t rows, const float* sums) {
    const int64_t group = bands.products.group(), end = min(group, call.outputs - first_output);
    const int64_t output = rows * row, shift = group * output;
    float* out =
        call.out + lane * call.out_lane_stride + first_output * plane;  // four planes become one of four times the size
    const auto vector = [&](int64_t o, int64_t r, int64_t x) {
      const Vec v = sum_of_shifts<3>(sums + o * output + r * row, shift, x, row);
      return call.epilogue == Epilogue::none ? v : relu(v);
    };
    if (call.epilogue != Epilogue::relu_phase_shift) {
      for (int64_t o = 0; o < end; ++o)
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t x = 0; x < width; x += kWidth)
            store_some(out + o * plane + (y + r) * width + x, vector(o, r, x), width - x);
      return;
    }
    for (int64_t o = 0; o < end; o += 4)  // channels 4 c + 2 i + j to rows 2 y + j, columns 2 x + i
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = 0; j < 2; ++j)
          for (int64_t x = 0; x < width; x += kWidth) {
            const Vec even = vector(o + j, r, x), odd = vector(o + 2 + j, r, x);
            float* to = out + o * plane + (2 * (y + r) + j) * 2 * width + 2 * x;
            store_some(to, Interleaved<kWidth>::low(even, odd), 2 * (width - x));
            if (2 * (width - x) > kWidth)
              store_some(to + kWidth, Interleaved<kWidth>::high(even, odd), 2 * (width - x) - kWidth);
          }
  };
  return convolve<3>(bands, call.filters, call.threads, read, write);
}

// The columns of a kernel lie beside each other as pairs of their own: where it is wide, channels are few.
TileProducts direct_products(int64_t outputs, int64_t channels, int64_t side) {
  return {(channels + 1) / 2 * side, side, 1, outputs};
}

int64_t side_of(int64_t taps) {
  int64_t side = 1;
  while (side * side < taps) ++side;
  return side;
}

}  // namespace

int64_t packed_tile_filters(int64_t outputs, int64_t inputs) {
  const TileProducts products = convolution_products(outputs, inputs);
  return products.groups() * products.group_filters();
}

void pack_tile_filters(const FilterPacking& call) {
  const auto weight = [&](int64_t o, int64_t pair, int64_t y, int64_t x, int64_t odd) {
    const int64_t c = 2 * pair + odd;
    return c < call.inputs ? call.weight[((o * call.inputs + c) * 3 + y) * 3 + x] : 0;
  };
  convolution_products(call.outputs, call.inputs).pack(weight, call.filters);
}

bool tile_convolution_forward(const ConvolutionForward& call) {
  const Plan plan(call.x);
  if (!plan.made()) return false;
  return call.scale ? convolve_normalised<true>(call, plan) : convolve_normalised<false>(call, plan);
}

int64_t packed_tile_taps(int64_t outputs, int64_t channels, int64_t taps) {
  const TileProducts products = direct_products(outputs, channels, side_of(taps));
  return products.groups() * products.group_filters();
}

void pack_tile_taps(const TapPacking& call, int64_t taps) {
  const int64_t channels = call.products / taps, side = side_of(taps);
  const auto weight = [&](int64_t o, int64_t pair, int64_t y, int64_t, int64_t odd) {
    const int64_t c = pair / side * 2 + odd;
    return c < channels ? call.weight[(o * channels + c) * taps + y * side + pair % side] : 0;
  };
  direct_products(call.outputs, channels, side).pack(weight, call.filters);
}

bool tile_direct_convolution(const DirectConvolution& call) {
  const Plan plan(call.x);
  if (!plan.made()) return false;
  const int64_t side = side_of(call.taps), channels = call.x.channels, plane = call.x.height * call.x.width;
  int64_t height = call.x.height, width = call.x.width, row_step = call.row_step;
  while (side == 1 && row_step == width && width < kVectors * kWidth && height % 2 == 0)
    width *= 2, row_step *= 2, height /= 2;
  const Bands bands(direct_products(call.outputs, channels, side), call.x.lanes, height, width, call.threads);
  const auto read = [&](int64_t lane, int64_t first, int64_t rows, float* out) {
    const float one[2] = {1, 1}, zero[2] = {0, 0};
    for (int64_t c = 0; c < channels; c += 2) {
      const float* even = plan.plane(lane, c) + first * row_step;
      const float* odd = c + 1 < channels ? plan.plane(lane, c + 1) + first * row_step : nullptr;
      const float* ahead = plan.plane(lane, min(c + 2, channels - 1)) + first * row_step;
      const float* ahead_odd = plan.plane(lane, min(c + 3, channels - 1)) + first * row_step;
      for (int64_t dx = 0; dx < side; ++dx, out += bands.pair)
        for (int64_t y = 0; y < rows + side - 1; ++y) {
          for (int64_t i = 0; i < width && !dx; i += 16)
            __builtin_prefetch(ahead + y * row_step + i), __builtin_prefetch(ahead_odd + y * row_step + i);
          read_row<false>(even + y * row_step + dx, odd ? odd + y * row_step + dx : nullptr, width, one, zero,
                          out + y * bands.row);
        }
    }
  };
  const auto write = [&](int64_t lane, int64_t first_output, int64_t y, int64_t rows, const float* sums) {
    const int64_t end = min(bands.products.group(), call.outputs - first_output);
    for (int64_t o = 0; o < end; ++o)
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t x = 0; x < width; x += kWidth) {
          const int64_t at = lane * call.out_lane_stride + (first_output + o) * plane + (y + r) * width + x,
                        n = width - x;
          Vec v = load(sums + (o * rows + r) * bands.row + x);
          if (call.initial) v += _mm512_maskz_loadu_ps(first_lanes(n), call.initial + at);
          store_some(call.out + at, call.relu ? relu(v) : v, n);
        }
  };
  return convolve<1>(bands, call.filters, call.threads, read, write);
}

}  // namespace IFAN_ISA
}  // namespace ifan
