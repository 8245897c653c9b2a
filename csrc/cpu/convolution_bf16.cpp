#include "convolution_bf16.h"

#include <atomic>
#include <vector>

#include "pairs.h"
#include "runtime/scratch.h"
#include "runtime/thread_pool.h"
#include "winograd_outputs.h"

namespace ifan {
namespace IFAN_ISA {
namespace {

struct Context {
  const ConvolutionForward& call;
  const Plan& plan;
  Tiling tiling;
  int64_t chunk;   // pairs of channels transformed before they are multiplied: many sums are better not read again
  int64_t pieces;  // a block's outputs are shared out among so many threads, each of which transforms the inputs
  std::atomic<bool> failed{false};
};

// A block's buffers, one behind the other in this thread's scratch.
template <int N>
struct Buffers {
  static constexpr int64_t tiles = N * kWidth, two_strips = 2 * Strip<N>::size;
  int64_t point;   // from one point's pairs to the next's: no power of two, which would fall on one cache set
  int64_t stride;  // from one point's sums to the next's
  float *strips, *pairs, *sums;  // strips of an even and of an odd channel, in the end 64 vectors of tiles of pixels

  Buffers(const Context& c, float* memory)
      : point((c.chunk + 1) * tiles), stride(groups(c.call.outputs) * kOutputs * tiles) {
    strips = memory;
    pairs = strips + (two_strips > 64 * tiles ? two_strips : 64 * tiles);
    sums = pairs + kPoints * point;
  }
  int64_t size() const { return sums - strips + kPoints * stride; }
};

// Two channels' strips, transformed along their rows, to v [point][tile] of pairs, points `stride` apart.
template <int N>
void transform_pairs(const Block<N>& block, const float* even, const float* odd, float* v, int64_t stride) {
  for (int64_t k = 0; k < 6; ++k, even += Strip<N>::row, odd += Strip<N>::row, v += 6 * stride)
    for (int64_t n = 0; n < N; ++n) {
      Vec s[6], t[6];
      transform_tiles(block, even, n, s), transform_tiles(block, odd, n, t);
      for (int64_t j = 0; j < 6; ++j) store_pairs(v + j * stride + n * kWidth, s[j], t[j]);
    }
}

template <int N, bool normalise>
void transform_chunk(const Context& context, const Block<N>& block, int64_t first, int64_t pairs, const Buffers<N>& b) {
  const ConvolutionForward& call = context.call;
  Plane<normalise> planes[Block<N>::size];
  const float* next[Block<N>::size];
  for (int64_t pair = first; pair < first + pairs; ++pair) {
    for (int64_t c = 2 * pair; c < 2 * pair + 2; ++c) {
      float* strip = b.strips + c % 2 * Strip<N>::size;
      if (c == call.x.channels) {  // an odd number of them: zeros complete the last pair
        memset(strip, 0, Strip<N>::size * sizeof(float));
        continue;
      }
      for (int64_t r = 0; r < block.count; ++r) {
        const int64_t lane = block.runs[r].lane, at = context.plan.task[lane] * call.x.channels + c;
        planes[r] = {context.plan.plane(lane, c), normalise ? call.scale[at] : 1, normalise ? call.shift[at] : 0};
        next[r] = context.plan.plane(lane, min(c + 2, call.x.channels - 1));
      }
      transform_down(block, planes, next, strip + kWidth);
    }
    transform_pairs(block, b.strips + kWidth, b.strips + Strip<N>::size + kWidth, b.pairs + (pair - first) * block.size,
                    b.point);
  }
}

template <int N, bool normalise>
void convolve_blocks(void* argument, int64_t begin, int64_t end) {  // index: (block, piece)
  constexpr int64_t tiles = N * kWidth;
  Context& context = *static_cast<Context*>(argument);
  const ConvolutionForward& call = context.call;
  const int64_t pairs = (call.x.channels + 1) / 2, blocks = groups(call.outputs);
  float* memory = scratch(Buffers<N>(context, nullptr).size());
  if (!memory) {
    context.failed = true;
    return;
  }
  const Buffers<N> b(context, memory);
  for (int64_t index = begin; index < end; ++index) {
    const Block<N> block(context.tiling, index / context.pieces * tiles, context.tiling.tiles());
    const int64_t piece = index % context.pieces, units = (call.outputs + kUnit - 1) / kUnit;
    const int64_t first_output = piece * units / context.pieces * kUnit;
    const int64_t end_output = min((piece + 1) * units / context.pieces * kUnit, call.outputs);
    for (int64_t first = 0; first < pairs; first += context.chunk) {
      const int64_t some = min(context.chunk, pairs - first);
      transform_chunk<N, normalise>(context, block, first, some, b);
      for (int64_t p = 0; p < kPoints; ++p)
        for (int64_t o = first_output / kOutputs; o < groups(end_output); ++o)
          pair_products<kOutputs, N>(call.filters + ((p * blocks + o) * pairs + first) * kOutputs,
                                     b.pairs + p * b.point, some, b.sums + p * b.stride + o * kOutputs * tiles,
                                     first > 0);
    }
    write_outputs(call, block, first_output, end_output, b.sums, b.stride, 0, b.strips);
  }
}

template <int N>
void run(Context& context) {
  constexpr int64_t tiles = N * kWidth;
  const Body body = context.call.scale ? convolve_blocks<N, true> : convolve_blocks<N, false>;
  const int64_t blocks = (context.tiling.tiles() + tiles - 1) / tiles;
  if (blocks < context.call.threads)
    context.pieces = min(context.call.threads, (context.call.outputs + kUnit - 1) / kUnit);
  parallel_for(blocks * context.pieces, 1, context.call.threads, body, &context);
}

}  // namespace

int64_t packed_filters(int64_t outputs, int64_t inputs) {
  return kPoints * groups(outputs) * kOutputs * ((inputs + 1) / 2);
}

// filters [point][group][pair of inputs][kOutputs] of pairs, zeros where a group is not full and beside the last of an
// odd number.
void pack_filters(const FilterPacking& call) {
  const int64_t pairs = (call.inputs + 1) / 2;
  std::vector<float> whole(avx512::packed_filters(call.outputs, call.inputs));
  avx512::pack_filters({call.weight, call.outputs, call.inputs, false, whole.data()});
  for (int64_t g = 0; g < kPoints * groups(call.outputs); ++g)
    for (int64_t c = 0; c < call.inputs; c += 2)
      for (int64_t o = 0; o < kOutputs; ++o) {
        const float* even = whole.data() + (g * call.inputs + c) * kOutputs + o;
        store_pair(call.filters + (g * pairs + c / 2) * kOutputs + o, even[0],
                   c + 1 < call.inputs ? even[kOutputs] : 0);
      }
}

bool convolution_forward(const ConvolutionForward& call) {
  const Plan plan(call.x);
  if (!plan.made()) return false;
  const int64_t pairs = (call.x.channels + 1) / 2;
  Context context{call, plan, Tiling(call.x.lanes, call.x.height, call.x.width),
                  call.outputs > 24 ? min(pairs, 256) : 64, 1};
  if (context.tiling.tiles() > kWidth)
    run<2>(context);
  else
    run<1>(context);
  return !context.failed;
}

}  // namespace IFAN_ISA
}  // namespace ifan
