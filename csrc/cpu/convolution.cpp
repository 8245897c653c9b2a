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
};

// A block's buffers, one behind the other in this thread's scratch.
template <int N>
struct Buffers {
  static constexpr int64_t tiles = N * kWidth;
  int64_t point;   // from one point's transformed inputs to the next's: no power of two, which would fall on one cache set
  int64_t stride;  // from one point's sums to the next's
  float *transformed, *sums, *pixels;  // [prologue][point][channel][tile], [point][prologue][output][tile], [channel][pixel][tile]

  Buffers(const Context& c, float* memory)
      : point((c.chunk + 1) * tiles), stride(c.call.prologues * c.blocks() * kOutputs * tiles) {
    transformed = memory;
    sums = transformed + c.call.prologues * kPoints * point;
    pixels = sums + kPoints * stride;
  }
  int64_t size() const { return pixels - transformed + 64 * tiles; }
};

template <int N, bool normalise>
void transform_chunk(const Context& context, const Block<N>& block, int64_t first, int64_t channels, const Buffers<N>& b) {
  const ConvolutionForward& call = context.call;
  Plane<normalise> planes[Block<N>::size];
  for (int64_t c = first; c < first + channels; ++c)
    for (int64_t i = 0; i < call.prologues; ++i) {
      for (int64_t r = 0; r < block.count; ++r) {
        const int64_t lane = block.runs[r].lane, at = (i * call.x.tasks + context.plan.task[lane]) * call.x.channels + c;
        planes[r] = {context.plan.plane(lane, c), normalise ? call.scale[at] : 1, normalise ? call.shift[at] : 0};
        if (i == 0 && c + 1 < call.x.channels) prefetch(context.plan.plane(lane, c + 1), context.tiling, block.runs[r]);
      }
      transform_inputs(block, planes, b.transformed + i * kPoints * b.point + (c - first) * block.size, b.point);
    }
}

// Adds a chunk's products with the filters of the outputs from `begin` to `end` to the block's sums.
template <int N>
void multiply_chunk(const Context& context, int64_t first, int64_t channels, int64_t begin, int64_t end, const Buffers<N>& b) {
  const ConvolutionForward& call = context.call;
  const int64_t blocks = context.blocks(), inputs = call.x.channels;
  for (int64_t i = 0; i < call.prologues; ++i)
    for (int64_t p = 0; p < kPoints; ++p)
      for (int64_t o = begin / kOutputs; o < groups(end); ++o)
        products<N>(call.filters + (((i * kPoints + p) * blocks + o) * inputs + first) * kOutputs,
                    b.transformed + (i * kPoints + p) * b.point, channels,
                    b.sums + p * b.stride + (i * blocks + o) * kOutputs * b.tiles, first > 0, end - o * kOutputs);
}

// The outputs from `begin` to `end` of every prologue.
template <int N>
void write_outputs(const Context& context, const Block<N>& block, int64_t begin, int64_t end, const Buffers<N>& b) {
  constexpr int64_t tiles = N * kWidth;
  const ConvolutionForward& call = context.call;
  const int64_t plane = call.x.height * call.x.width, step = call.epilogue == Epilogue::relu_phase_shift ? 4 : 1;
  float* planes[tiles];
  for (int64_t i = 0; i < call.prologues; ++i)
    for (int64_t o = begin; o < end; o += step) {
      const float* sums = b.sums + (i * context.blocks() * kOutputs + o) * tiles;
      for (int64_t j = 0; j < step; ++j) transform_outputs<N>(sums + j * tiles, b.stride, b.pixels + 16 * j * tiles);
      if (call.epilogue != Epilogue::none)
        for (int64_t j = 0; j < 16 * step * tiles; j += kWidth) store(b.pixels + j, relu(load(b.pixels + j)));
      for (int64_t r = 0; r < block.count; ++r)  // four planes become one of four times the size
        planes[r] = call.out + block.runs[r].lane * call.out_lane_stride + (i * context.share + o) * plane;
      if (step == 1)
        scatter(block, b.pixels, planes, call.add);
      else
        for (int64_t r = 0; r < block.count; ++r) scatter_shifted(b.pixels, tiles, context.tiling, block.runs[r], planes[r]);
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
    for (int64_t first = 0; first < channels; first += context.chunk) {
      const int64_t some = least(context.chunk, channels - first);
      transform_chunk<N, normalise>(context, block, first, some, b);
      multiply_chunk(context, first, some, first_output, end_output, b);
    }
    write_outputs<N>(context, block, first_output, end_output, b);
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
  const int64_t share = call.outputs / call.prologues, chunk = call.prologues > 1 ? 24 : share > 24 ? 512 : 64;
  Context context{call, plan, Tiling(call.x.lanes, call.x.height, call.x.width), share, least(call.x.channels, chunk), 1};
  if (context.tiling.tiles() > kWidth)
    run<2>(context);
  else
    run<1>(context);
  return !context.failed;
}

}  // namespace IFAN_ISA
}  // namespace ifan
