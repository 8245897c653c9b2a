#include "direct.h"

#include <atomic>

#include "direct_outputs.h"
#include "runtime/scratch.h"
#include "runtime/thread_pool.h"

namespace ifan {
namespace IFAN_ISA {
namespace {

constexpr int64_t kPixels = 16 * kWidth;  // of a row, at a time: what is read for them stays in the first-level cache

struct Context {
  const DirectConvolution& call;
  const Plan& plan;
  int64_t rows, width, pieces;  // rows of pixels (one where the planes lie in one piece), their length, pieces of a row
  std::atomic<bool> failed{false};
};

// kOutputs channels of N vectors of pixels; `rows`: where each product's values begin.
template <int N>
void multiply(const float* const* rows, int64_t offset, int64_t products, const float* filters, float* sums) {
  Vec sum[kOutputs][N] = {};
  for (int64_t k = 0; k < products; ++k, filters += kOutputs) {
    Vec x[N];
    for (int n = 0; n < N; ++n) x[n] = load(rows[k] + offset + n * kWidth);
    for (int o = 0; o < kOutputs; ++o)
      for (int n = 0; n < N; ++n) sum[o][n] += filters[o] * x[n];
  }
  for (int o = 0; o < kOutputs; ++o)
    for (int n = 0; n < N; ++n) store(sums + (o * N + n) * kWidth, sum[o][n]);
}

void convolve_rows(void* argument, int64_t begin, int64_t end) {  // index: (lane, row, piece)
  Context& context = *static_cast<Context*>(argument);
  const DirectConvolution& call = context.call;
  const int64_t channels = call.x.channels, products = channels * call.taps;
  // Pointers, one vector of each product's last pixels, and the sums.
  const int64_t pointers = products * static_cast<int64_t>(sizeof(void*)) / 4;
  float* memory = scratch(2 * pointers + products * kWidth + 2 * kOutputs * kWidth + 64);
  if (!memory) {
    context.failed = true;
    return;
  }
  const float** rows = reinterpret_cast<const float**>(memory);
  const float** tail_rows = rows + products;
  float* tail = memory + 2 * pointers;
  float* sums = tail + products * kWidth;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t piece = index % context.pieces, row = index / context.pieces % context.rows;
    const int64_t lane = index / context.pieces / context.rows, start = piece * kPixels;
    const int64_t pixels = min(kPixels, context.width - start), at = row * context.width + start;
    for (int64_t c = 0, k = 0; c < channels; ++c) {
      const float* plane = context.plan.plane(lane, c) + row * call.row_step + start;
      for (int64_t t = 0; t < call.taps; ++t, ++k) rows[k] = plane + call.offsets[t];
    }
    const int64_t whole = pixels / kWidth * kWidth, rest = pixels - whole;
    if (rest)
      for (int64_t k = 0; k < products; ++k) {
        tail_rows[k] = tail + k * kWidth;
        for (int64_t i = 0; i < kWidth; ++i) tail[k * kWidth + i] = i < rest ? rows[k][whole + i] : 0;
      }
    for (int64_t first = 0; first < call.outputs; first += kOutputs) {
      const float* filters = call.filters + first * products;
      int64_t i = 0;
      for (; i + 2 * kWidth <= whole; i += 2 * kWidth) {
        multiply<2>(rows, i, products, filters, sums);
        write_sums<2>(call, sums, lane, first, at + i, 2 * kWidth);
      }
      if (i < whole) {
        multiply<1>(rows, i, products, filters, sums);
        write_sums<1>(call, sums, lane, first, at + i, kWidth);
      }
      if (rest) {
        multiply<1>(tail_rows, 0, products, filters, sums);
        write_sums<1>(call, sums, lane, first, at + whole, rest);
      }
    }
  }
}

}  // namespace

int64_t packed_taps(int64_t outputs, int64_t products) { return groups(outputs) * kOutputs * products; }

// filters [group][product][kOutputs], zeros where a group is not full.
void pack_taps(const TapPacking& call) {
  for (int64_t o = 0; o < groups(call.outputs) * kOutputs; ++o)
    for (int64_t k = 0; k < call.products; ++k)
      call.filters[(o / kOutputs * call.products + k) * kOutputs + o % kOutputs] =
          o < call.outputs ? call.weight[o * call.products + k] : 0;
}

bool direct_convolution(const DirectConvolution& call) {
  const Plan plan(call.x);
  if (!plan.made()) return false;
  const bool flat =
      call.taps == 1 && call.row_step == call.x.width;  // rows follow each other in planes and output alike
  Context context{call, plan, flat ? 1 : call.x.height, flat ? call.x.height * call.x.width : call.x.width, 0};
  context.pieces = (context.width + kPixels - 1) / kPixels;
  parallel_for(call.x.lanes * context.rows * context.pieces, 1, call.threads, convolve_rows, &context);
  return !context.failed;
}

}  // namespace IFAN_ISA
}  // namespace ifan
