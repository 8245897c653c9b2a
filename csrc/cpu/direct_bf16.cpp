#include "direct_bf16.h"

#include <algorithm>
#include <atomic>

#include "direct_outputs.h"
#include "pairs.h"
#include "runtime/scratch.h"
#include "runtime/thread_pool.h"

namespace ifan {
namespace IFAN_ISA {
namespace {

constexpr int64_t kPixels = 16 * kWidth;  // of a row, at a time: their pairs stay in the second-level cache

struct Context {
  const DirectConvolution& call;
  const Plan& plan;
  int64_t rows, width, pieces;  // rows of pixels (one where the planes lie in one piece), their length, pieces of a row
  int64_t nearest, span;        // the least offset, and how far the others reach from it
  std::atomic<bool> failed{false};

  int64_t pairs() const { return (call.x.channels + 1) / 2; }
  // From one pair of channels to the next: a vector more than is read, which keeps them off one cache set.
  int64_t stride() const { return (span + kPixels) / kWidth * kWidth + 2 * kWidth; }
};

// kOutputs channels of N vectors of pixels; `rows`: where each product's pairs begin.
template <int N>
void multiply(const float* const* rows, int64_t offset, int64_t products, const float* filters, float* sums) {
  Vec sum[kOutputs][N] = {};
  for (int64_t k = 0; k < products; ++k, filters += kOutputs) {
    __m512bh x[N];
    for (int n = 0; n < N; ++n) x[n] = (__m512bh)load(rows[k] + offset + n * kWidth);
    for (int o = 0; o < kOutputs; ++o)
      for (int n = 0; n < N; ++n) sum[o][n] = _mm512_dpbf16_ps(sum[o][n], x[n], (__m512bh)_mm512_set1_ps(filters[o]));
  }
  for (int o = 0; o < kOutputs; ++o)
    for (int n = 0; n < N; ++n) store(sums + (o * N + n) * kWidth, sum[o][n]);
}

// All outputs of N vectors of pixels, `pixels` of which are in the picture.
template <int N>
void convolve(const Context& context, const float* const* rows, int64_t offset, int64_t lane, int64_t at,
              int64_t pixels) {
  const DirectConvolution& call = context.call;
  const int64_t products = context.pairs() * call.taps;
  float sums[kOutputs * N * kWidth];
  for (int64_t first = 0; first < call.outputs; first += kOutputs) {
    multiply<N>(rows, offset, products, call.filters + first * products, sums);
    write_sums<N>(call, sums, lane, first, at, pixels);
  }
}

// What the taps read for some pixels, as pairs [pair of channels][stride]; `from`: where the first pixel's nearest tap
// reads.
void round_to_pairs(const Context& context, int64_t lane, int64_t from, int64_t pixels, float* pairs) {
  const int64_t channels = context.call.x.channels, values = context.span + pixels;
  for (int64_t c = 0; c < channels; c += 2, pairs += context.stride()) {
    const float* even = context.plan.plane(lane, c) + from;
    const float* odd = c + 1 < channels ? context.plan.plane(lane, c + 1) + from : nullptr;
    const float* next[2] = {even, even};  // planes lie too far apart for the processor to guess
    for (int64_t k = 0; k < 2 && c + 2 + k < channels; ++k) next[k] = context.plan.plane(lane, c + 2 + k) + from;
    for (int64_t i = 0; i < values; i += kWidth) {
      __builtin_prefetch(next[0] + i), __builtin_prefetch(next[1] + i);
      interleave(pairs + i, even + i, odd ? odd + i : nullptr, values - i);
    }
  }
}

void convolve_rows(void* argument, int64_t begin, int64_t end) {  // index: (lane, row, piece)
  Context& context = *static_cast<Context*>(argument);
  const DirectConvolution& call = context.call;
  const int64_t pairs = context.pairs(), products = pairs * call.taps;
  const int64_t pointers = (products * static_cast<int64_t>(sizeof(void*)) / 4 + kWidth) / kWidth * kWidth;
  float* memory = scratch(pointers + pairs * context.stride());
  if (!memory) {
    context.failed = true;
    return;
  }
  const float** rows = reinterpret_cast<const float**>(memory);
  float* values = memory + pointers;
  for (int64_t k = 0; k < products; ++k)
    rows[k] = values + k / call.taps * context.stride() + call.offsets[k % call.taps] - context.nearest;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t piece = index % context.pieces, row = index / context.pieces % context.rows;
    const int64_t lane = index / context.pieces / context.rows, start = piece * kPixels;
    const int64_t pixels = min(kPixels, context.width - start), at = row * context.width + start;
    round_to_pairs(context, lane, row * call.row_step + start + context.nearest, pixels, values);
    int64_t i = 0;
    for (; i + kWidth < pixels; i += 2 * kWidth)
      convolve<2>(context, rows, i, lane, at + i, min(2 * kWidth, pixels - i));
    if (i < pixels) convolve<1>(context, rows, i, lane, at + i, pixels - i);
  }
}

}  // namespace

int64_t packed_taps(int64_t outputs, int64_t channels, int64_t taps) {
  return groups(outputs) * kOutputs * ((channels + 1) / 2) * taps;
}

// filters [group][pair of channels][tap][kOutputs] of pairs, zeros where a group is not full and beside the last of an
// odd number.
void pack_taps(const TapPacking& call, int64_t taps) {
  const int64_t channels = call.products / taps, pairs = (channels + 1) / 2;
  const auto weight = [&](int64_t o, int64_t c, int64_t t) {
    return o < call.outputs && c < channels ? call.weight[(o * channels + c) * taps + t] : 0;
  };
  for (int64_t o = 0; o < groups(call.outputs) * kOutputs; ++o)
    for (int64_t k = 0; k < pairs * taps; ++k)
      store_pair(call.filters + (o / kOutputs * pairs * taps + k) * kOutputs + o % kOutputs,
                 weight(o, k / taps * 2, k % taps), weight(o, k / taps * 2 + 1, k % taps));
}

bool direct_convolution(const DirectConvolution& call) {
  const Plan plan(call.x);
  if (!plan.made()) return false;
  const bool flat =
      call.taps == 1 && call.row_step == call.x.width;  // rows follow each other in planes and output alike
  const auto [nearest, farthest] = std::minmax_element(call.offsets, call.offsets + call.taps);
  Context context{call, plan,     flat ? 1 : call.x.height, flat ? call.x.height * call.x.width : call.x.width,
                  0,    *nearest, *farthest - *nearest};
  context.pieces = (context.width + kPixels - 1) / kPixels;
  parallel_for(call.x.lanes * context.rows * context.pieces, 1, call.threads, convolve_rows, &context);
  return !context.failed;
}

}  // namespace IFAN_ISA
}  // namespace ifan
