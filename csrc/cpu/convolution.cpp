#include "convolution.h"

#include <atomic>

#include "runtime/cache.h"
#include "runtime/scratch.h"
#include "runtime/thread_pool.h"
#include "winograd_outputs.h"

namespace ifan {
namespace IFAN_ISA {
namespace {

// Some channels through one prologue: what is transformed before it is multiplied.
struct Part {
  int64_t prologue, first, channels;
};

struct Context {
  const ConvolutionForward& call;
  const Plan& plan;
  Tiling tiling;
  int64_t share;   // outputs of a prologue
  int64_t chunk;   // channels of a part
  int64_t pieces;  // a block's outputs are shared out among so many threads, each of which transforms the inputs
  std::atomic<bool> failed{false};

  int64_t blocks() const { return groups(share); }  // of one prologue's filters
  int64_t parts() const { return (call.x.channels + chunk - 1) / chunk * call.prologues; }
  Part part(int64_t index) const {  // the prologues in turn, while the second-level cache has the channels
    const int64_t first = index / call.prologues * chunk;
    return {index % call.prologues, first, min(chunk, call.x.channels - first)};
  }
};

// A block's buffers, one behind the other in this thread's scratch. What passes through the second-level cache are the
// strips, with 24 values a tile instead of 36; points are made of them a row at a time, in the first-level cache.
template <int N>
struct Buffers {
  static constexpr int64_t tiles = N * kWidth;
  static constexpr int some = N < 2 ? N : 2;  // vectors of tiles that are multiplied at a time
  int64_t
      point;  // from one point's transformed inputs to the next's: no power of two, which would fall on one cache set
  int64_t stride;  // from one point's sums to the next's
  float *strips[2], *transformed, *sums,
      *pixels;  // this part's and the next one's strips, [six points][channel][tile],
                // [prologue][point][output][tile], [channel][pixel][tile]

  Buffers(const Context& c, float* memory)
      : point((c.chunk + 1) * some * kWidth), stride(c.blocks() * kOutputs * tiles) {
    strips[0] = memory + kWidth;
    strips[1] = strips[0] + (c.parts() > 1 ? c.chunk * Strip<N>::size : 0);
    transformed = strips[1] - kWidth + c.chunk * Strip<N>::size;
    sums = transformed + 6 * point;
    pixels = sums + c.call.prologues * kPoints * stride;
  }
  int64_t size() const { return pixels - strips[0] + kWidth + 64 * tiles; }
  float* sums_of(int64_t prologue) const { return sums + prologue * kPoints * stride; }
};

// Reads a part of a block into strips, a given number of channels at a time: memory answers late, so the next part is
// read little by little between the products of the one before.
template <int N, bool normalise>
struct Reader {
  const Context& context;
  const Block<N>& block;
  Part part;
  float* strip;
  int64_t done = 0;

  void read_to(int64_t channels) {
    const ConvolutionForward& call = context.call;
    Plane<normalise> planes[Block<N>::size];
    const float* ahead[Block<N>::size];
    for (; done < min(channels, part.channels); ++done, strip += Strip<N>::size) {
      const int64_t c = part.first + done;
      for (int64_t r = 0; r < block.count; ++r) {
        const int64_t lane = block.runs[r].lane,
                      at = (part.prologue * call.x.tasks + context.plan.task[lane]) * call.x.channels + c;
        planes[r] = {context.plan.plane(lane, c), normalise ? call.scale[at] : 1, normalise ? call.shift[at] : 0};
        ahead[r] = context.plan.plane(lane, min(c + kChannelsAhead, call.x.channels - 1));
      }
      transform_down(block, planes, ahead, strip);
    }
  }
};

// Adds a part's products with the filters of the outputs from `begin` to `end` to the block's sums, which are written
// after the last part.
template <int N, bool normalise>
void multiply_part(const Context& context, const Block<N>& block, Part part, int64_t begin, int64_t end,
                   const float* strips, const Buffers<N>& b, Reader<N, normalise> next) {
  const int64_t blocks = context.blocks(), inputs = context.call.x.channels;
  const int64_t ahead = part.channels < inputs ? inputs * kOutputs : kFiltersAhead;
  const int64_t first = part.prologue * context.share, calls = kPoints * N / b.some * (groups(end) - begin / kOutputs);
  Destination<N> destination(context.call, block, first + begin, first + end);
  const int64_t lines = part.first + part.channels < inputs ? 0 : (destination.lines() + calls - 1) / calls;
  int64_t step = 0;
  for (int64_t k = 0; k < 6; ++k)
    for (int64_t n = 0; n < N; n += b.some) {
      for (int64_t c = 0; c < part.channels; ++c)
        transform_along<b.some>(block, strips + c * Strip<N>::size + k * Strip<N>::row, n,
                                b.transformed + c * b.some * kWidth, b.point);
      for (int64_t j = 0; j < 6; ++j) {
        const int64_t p = 6 * k + j;
        for (int64_t o = begin / kOutputs; o < groups(end); ++o) {
          const float* filters =
              context.call.filters + (((part.prologue * kPoints + p) * blocks + o) * inputs + part.first) * kOutputs;
          products<b.some, b.tiles>(filters, b.transformed + j * b.point, part.channels,
                                    b.sums_of(part.prologue) + p * b.stride + o * kOutputs * b.tiles + n * kWidth,
                                    part.first > 0, end - o * kOutputs, filters + ahead);
          destination.prefetch(lines);
        }
        next.read_to(context.chunk * ++step * b.some / (kPoints * N));
      }
    }
}

template <int N, bool normalise>
void convolve_blocks(void* argument, int64_t begin, int64_t end) {  // index: (block, piece)
  Context& context = *static_cast<Context*>(argument);
  const ConvolutionForward& call = context.call;
  const int64_t units = (context.share + kUnit - 1) / kUnit, parts = context.parts();
  float* memory = scratch(Buffers<N>(context, nullptr).size());
  if (!memory) {
    context.failed = true;
    return;
  }
  const Buffers<N> b(context, memory);
  for (int64_t index = begin; index < end; ++index) {
    const Block<N> block(context.tiling, index / context.pieces * b.tiles, context.tiling.tiles());
    const int64_t piece = index % context.pieces, first_output = piece * units / context.pieces * kUnit;
    const int64_t end_output = min((piece + 1) * units / context.pieces * kUnit, context.share);
    const auto reader = [&](int64_t i) {  // beyond the last part there is nothing to read
      return Reader<N, normalise>{context, block, i < parts ? context.part(i) : Part{}, b.strips[i % 2]};
    };
    reader(0).read_to(context.chunk);
    for (int64_t i = 0; i < parts; ++i)
      multiply_part(context, block, context.part(i), first_output, end_output, b.strips[i % 2], b, reader(i + 1));
    for (int64_t i = 0; i < call.prologues; ++i)
      write_outputs(call, block, first_output, end_output, b.sums_of(i), b.stride, i * context.share, b.pixels);
  }
}

// Channels of a part. The sums of many outputs are read again for each part, which pays where they and the strips of
// two parts stay in the second-level cache.
int64_t chunk_of(bool many) {
  if (many) return kRegisters == 32 && second_level_cache() >= 1 << 21 ? 104 : 512;
  return kRegisters == 32 ? 32 : 88;  // AVX2's vectors hold half the tiles
}

template <int N>
void run(Context& context) {
  constexpr int64_t tiles = N * kWidth;
  const Body body = context.call.scale ? convolve_blocks<N, true> : convolve_blocks<N, false>;
  const int64_t blocks = (context.tiling.tiles() + tiles - 1) / tiles;
  if (blocks < context.call.threads) context.pieces = min(context.call.threads, (context.share + kUnit - 1) / kUnit);
  parallel_for(blocks * context.pieces, 1, context.call.threads, body, &context);
}

// Inputs whose filters' memory is asked for before it is written: a point each, too many streams for the processor to
// foresee.
constexpr int64_t kUnitsAhead = 12;

void pack_inputs(void* argument, int64_t begin, int64_t end) {  // index: (group of outputs, input)
  const FilterPacking& call = *static_cast<const FilterPacking*>(argument);
  double g[6][3];
  filter_matrix(g);
  const int64_t row = call.stride ? call.stride : 9 * (call.transposed ? call.outputs : call.inputs);
  const int64_t out_stride = call.transposed ? 9 : row, in_stride = call.transposed ? row : 9;
  const int64_t blocks = groups(call.outputs);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t block = index / call.inputs, c = index % call.inputs;
    double w[9][kOutputs] = {}, half[6][3][kOutputs];
    const int64_t some = min(kOutputs, call.outputs - block * kOutputs);
    for (int64_t o = 0; o < some; ++o) {
      const float* from = call.weight + (block * kOutputs + o) * out_stride + c * in_stride;
      for (int64_t i = 0; i < 9; ++i) w[i][o] = from[call.transposed ? 8 - i : i];
      __builtin_prefetch(from + kUnitsAhead * in_stride);
    }
    for (int i = 0; i < 6; ++i)
      for (int j = 0; j < 3; ++j)
        for (int o = 0; o < kOutputs; ++o)
          half[i][j][o] = g[i][0] * w[j][o] + g[i][1] * w[3 + j][o] + g[i][2] * w[6 + j][o];
    for (int i = 0; i < 6; ++i)
      for (int j = 0; j < 6; ++j) {
        float* out = call.filters + (((6 * i + j) * blocks + block) * call.inputs + c) * kOutputs;
        __builtin_prefetch(out + kUnitsAhead * kOutputs, 1);
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
  const int64_t share = call.outputs / call.prologues;
  if (!share) return true;
  const bool many = share > 24;  // outputs; where they are few, more tiles a block share one reading of the filters
  Context context{
      call, plan, Tiling(call.x.lanes, call.x.height, call.x.width), share, min(call.x.channels, chunk_of(many)), 1};
  if (kRegisters == 16 && !many && context.tiling.tiles() > 3 * kWidth)
    run<4>(context);
  else if (context.tiling.tiles() > kWidth)
    run<2>(context);
  else
    run<1>(context);
  return !context.failed;
}

}  // namespace IFAN_ISA
}  // namespace ifan
