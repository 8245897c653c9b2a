#include "convolution.h"

#include <atomic>

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
  int64_t share;   // outputs of a prologue
  int64_t chunk;   // channels transformed before they are multiplied: many sums are better not read again
  int64_t pieces;  // a block's outputs are shared out among so many threads, each of which transforms the inputs
  std::atomic<bool> failed{false};

  int64_t blocks() const { return groups(share); }  // of one prologue's filters
  int64_t strips() const { return chunk * call.prologues; }
};

// A block's buffers, one behind the other in this thread's scratch. What passes through the second-level cache are the strips, with
// 24 values a tile instead of 36; points are made of them a row at a time, in the first-level cache.
template <int N>
struct Buffers {
  static constexpr int64_t tiles = N * kWidth;
  int64_t point;   // from one point's transformed inputs to the next's: no power of two, which would fall on one cache set
  int64_t stride;  // from one point's sums to the next's
  float *strips, *transformed, *sums, *pixels;  // this chunk's and the next one's [channel][prologue] strips,
                                                // [six points][channel][tile], [point][prologue][output][tile],
                                                // [channel][pixel][tile]

  Buffers(const Context& c, float* memory)
      : point((c.chunk + 1) * tiles), stride(c.call.prologues * c.blocks() * kOutputs * tiles) {
    strips = memory;
    transformed = strips + (c.chunk < c.call.x.channels ? 2 : 1) * c.strips() * Strip<N>::size;
    sums = transformed + 6 * point;
    pixels = sums + kPoints * stride;
  }
  int64_t size() const { return pixels - strips + 64 * tiles; }
  float* strip(int64_t at) const { return strips + at * Strip<N>::size + kWidth; }
};

// Reads channels of a block into strips, as many at a time as it is told: memory answers late, so the next chunk is read little by
// little between the products of the one before.
template <int N, bool normalise>
struct Reader {
  const Context& context;
  const Block<N>& block;
  int64_t next, end;
  float* strip;

  // Not inlined: the compiler might join other multiplications and additions in the next copy, and a face's bits depend on its place.
  __attribute__((noinline)) void read_to(int64_t channel) {
    const ConvolutionForward& call = context.call;
    Plane<normalise> planes[Block<N>::size];
    const float* ahead[Block<N>::size];
    for (; next < least(channel, end); ++next)
      for (int64_t i = 0; i < call.prologues; ++i, strip += Strip<N>::size) {
        for (int64_t r = 0; r < block.count; ++r) {
          const int64_t lane = block.runs[r].lane, at = (i * call.x.tasks + context.plan.task[lane]) * call.x.channels + next;
          planes[r] = {context.plan.plane(lane, next), normalise ? call.scale[at] : 1, normalise ? call.shift[at] : 0};
          ahead[r] = context.plan.plane(lane, least(next + kChannelsAhead, call.x.channels - 1));
        }
        transform_down(block, planes, ahead, strip);
      }
  }
};

// Adds a chunk's products with the filters of the outputs from `begin` to `end` to the block's sums.
template <int N, bool normalise>
void multiply_chunk(const Context& context, const Block<N>& block, int64_t first, int64_t channels, int64_t begin, int64_t end,
                    int64_t strip, const Buffers<N>& b, Reader<N, normalise> next) {
  const ConvolutionForward& call = context.call;
  const int64_t blocks = context.blocks(), inputs = call.x.channels;
  for (int64_t i = 0; i < call.prologues; ++i)
    for (int64_t p = 0; p < kPoints; ++p) {
      if (p % 6 == 0)
        for (int64_t c = 0; c < channels; ++c)
          transform_along(block, b.strip(strip + c * call.prologues + i) + p / 6 * Strip<N>::row, b.transformed + c * b.tiles, b.point);
      for (int64_t o = begin / kOutputs; o < groups(end); ++o)
        products<N>(call.filters + (((i * kPoints + p) * blocks + o) * inputs + first) * kOutputs, b.transformed + p % 6 * b.point,
                    channels, b.sums + p * b.stride + (i * blocks + o) * kOutputs * b.tiles, first > 0, end - o * kOutputs);
      next.read_to(first + channels + context.chunk * (i * kPoints + p + 1) / (call.prologues * kPoints));
    }
}

template <int N, bool normalise>
void convolve_blocks(void* argument, int64_t begin, int64_t end) {  // index: (block, piece)
  Context& context = *static_cast<Context*>(argument);
  const ConvolutionForward& call = context.call;
  const int64_t channels = call.x.channels, units = (context.share + kUnit - 1) / kUnit;
  float* memory = scratch(Buffers<N>(context, nullptr).size());
  if (!memory) {
    context.failed = true;
    return;
  }
  const Buffers<N> b(context, memory);
  for (int64_t index = begin; index < end; ++index) {
    const Block<N> block(context.tiling, index / context.pieces * b.tiles, context.tiling.tiles());
    const int64_t piece = index % context.pieces, first_output = piece * units / context.pieces * kUnit;
    const int64_t end_output = least((piece + 1) * units / context.pieces * kUnit, context.share);
    Reader<N, normalise>{context, block, 0, channels, b.strip(0)}.read_to(context.chunk);
    for (int64_t first = 0, strip = 0; first < channels; first += context.chunk, strip = context.strips() - strip) {
      const int64_t some = least(context.chunk, channels - first);
      const Reader<N, normalise> next{context, block, first + some, channels, b.strip(context.strips() - strip)};
      multiply_chunk(context, block, first, some, first_output, end_output, strip, b, next);
    }
    for (int64_t i = 0; i < call.prologues; ++i)
      write_outputs(call, block, first_output, end_output, b.sums + i * context.blocks() * kOutputs * b.tiles, b.stride,
                    i * context.share, b.pixels);
  }
}

template <int N>
void run(Context& context) {
  constexpr int64_t tiles = N * kWidth;
  const Body body = context.call.scale ? convolve_blocks<N, true> : convolve_blocks<N, false>;
  const int64_t blocks = (context.tiling.tiles() + tiles - 1) / tiles;
  if (blocks < context.call.threads) context.pieces = least(context.call.threads, (context.share + kUnit - 1) / kUnit);
  parallel_for(blocks * context.pieces, 1, context.call.threads, body, &context);
}

void pack_inputs(void* argument, int64_t begin, int64_t end) {  // index: (group of outputs, input)
  const FilterPacking& call = *static_cast<const FilterPacking*>(argument);
  double g[6][3];
  filter_matrix(g);
  const int64_t out_stride = call.transposed ? 9 : 9 * call.inputs, in_stride = call.transposed ? 9 * call.outputs : 9;
  const int64_t blocks = groups(call.outputs);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t block = index / call.inputs, c = index % call.inputs;
    double w[9][kOutputs] = {}, half[6][3][kOutputs];
    const int64_t some = least(kOutputs, call.outputs - block * kOutputs);
    for (int64_t o = 0; o < some; ++o) {
      const float* from = call.weight + (block * kOutputs + o) * out_stride + c * in_stride;
      for (int64_t i = 0; i < 9; ++i) w[i][o] = from[call.transposed ? 8 - i : i];
    }
    for (int i = 0; i < 6; ++i)
      for (int j = 0; j < 3; ++j)
        for (int o = 0; o < kOutputs; ++o) half[i][j][o] = g[i][0] * w[j][o] + g[i][1] * w[3 + j][o] + g[i][2] * w[6 + j][o];
    for (int i = 0; i < 6; ++i)
      for (int j = 0; j < 6; ++j) {
        float* out = call.filters + (((6 * i + j) * blocks + block) * call.inputs + c) * kOutputs;
        for (int o = 0; o < kOutputs; ++o)
          out[o] = static_cast<float>(half[i][0][o] * g[j][0] + half[i][1][o] * g[j][1] + half[i][2][o] * g[j][2]);
      }
  }
}

}  // namespace

int64_t packed_filters(int64_t outputs, int64_t inputs) { return kPoints * groups(outputs) * kOutputs * inputs; }

// filters [point][group][input][kOutputs], zeros where a group is not full.
void pack_filters(const FilterPacking& call) {
  parallel_for(groups(call.outputs) * call.inputs, 128, call.threads, pack_inputs, const_cast<FilterPacking*>(&call));
}

bool convolution_forward(const ConvolutionForward& call) {
  const Plan plan(call.x);
  if (!plan.made()) return false;
  const int64_t share = call.outputs / call.prologues, together = kRegisters == 32 ? 24 : 48;  // AVX2's vectors hold half the tiles
  const int64_t chunk = call.prologues > 1 ? together : share > 24 ? 512 : 64;
  Context context{call, plan, Tiling(call.x.lanes, call.x.height, call.x.width), share, least(call.x.channels, chunk), 1};
  if (context.tiling.tiles() > kWidth)
    run<2>(context);
  else
    run<1>(context);
  return !context.failed;
}

}  // namespace IFAN_ISA
}  // namespace ifan
