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
  static constexpr int64_t tiles = N * kWidth, row = 4 * tiles + 2 * kWidth, channel = 6 * row;
  int64_t point;  // from one point's pairs to the next's: no power of two, which would fall on one cache set
  float *pixels;  // of an even and of an odd channel: six rows, transformed across the rows, each with a vector before and after it
  float *pairs, *sums;

  static int64_t size(int64_t chunk, int64_t outputs) {
    return kWidth * 8 * tiles + kPoints * (chunk + 1 + groups(outputs) * kOutputs) * tiles;
  }
  Buffers(float* memory, int64_t chunk) : point((chunk + 1) * tiles) {
    static_assert(kWidth * 8 * tiles >= 2 * channel && kWidth * 8 * tiles >= 64 * tiles, "");
    pixels = memory + kWidth;
    pairs = memory + kWidth * 8 * tiles;
    sums = pairs + kPoints * point;
  }
};

// A block as the transforms see it: vectors of pixels in the first dimension, eight tiles of two channels in the second.
template <int N>
struct Layout {
  const Block<N>& block;
  const bool aligned;                                             // every vector of pixels lies in one row; then of each of them:
  int64_t run[4 * N], offset[4 * N], begin[4 * N], end[4 * N] = {};  // run, place of the first of six rows, which lie in the picture
  __mmask16 left[2 * N] = {}, right[2 * N] = {};     // of values that have a neighbour
  bool before, after;                                // whether the block itself has one

  explicit Layout(const Block<N>& b) : block(b), aligned(b.tiling.width % kWidth == 0) {
    const Tiling& t = b.tiling;
    for (int64_t r = 0; aligned && r < b.count; ++r)
      for (int64_t i = 0; i < 4 * b.runs[r].count; i += kWidth) {
        const int64_t v = 4 * b.runs[r].at / kWidth + i / kWidth, y = 4 * b.runs[r].y - 1;
        run[v] = r, offset[v] = y * t.width + 4 * b.runs[r].x + i;
        begin[v] = y < 0 ? -y : 0, end[v] = least(6, t.height - y);
      }
    for (int64_t i = 0; i < b.size; ++i) {
      left[i / 8] |= static_cast<__mmask16>((b.inner_left[i] & 3) << 2 * (i % 8));
      right[i / 8] |= static_cast<__mmask16>((b.inner_right[i] & 3) << 2 * (i % 8));
    }
    const Run& last = b.runs[b.count - 1];
    before = b.runs[0].x > 0, after = last.x + last.count < t.columns;
  }
};

// A column of six pixels beside the block, transformed, to the rows of `out`.
template <bool normalise>
void transform_neighbour(const Plane<normalise>& plane, const Tiling& t, int64_t first, int64_t x, float* out, int64_t row) {
  float d[6] = {};
  for (int64_t k = 0; k < 6; ++k)
    if (first + k >= 0 && first + k < t.height) d[k] = plane(plane.data[(first + k) * t.width + x]);
  input_transform(d, 1);
  for (int64_t k = 0; k < 6; ++k) out[k * row] = d[k];
}

// The six rows of a block's pixels of one channel, transformed across the rows. `planes`: that of each run; `next`: those asked
// for meanwhile where vectors are aligned, a line for each, so that the requests never queue up.
template <int N, bool normalise>
void transform_across(const Layout<N>& layout, const Plane<normalise>* planes, const float* const* next, float* out) {
  constexpr int64_t row = Buffers<N>::row;
  const Block<N>& block = layout.block;
  const Tiling& t = block.tiling;
  float copied[6][4 * block.size];
  for (int64_t k = 0; k < 6 && !layout.aligned; ++k)
    for (int64_t r = 0; r < block.count; ++r)
      copy_row(planes[r], t, block.runs[r], 4 * block.runs[r].y - 1 + k, copied[k] + 4 * block.runs[r].at);
  for (int64_t v = 0; v < 4 * N; ++v) {
    Vec x[6] = {};
    if (!layout.aligned) {
      for (int64_t k = 0; k < 6; ++k) x[k] = load(copied[k] + v * kWidth);
    } else if (layout.end[v] > 0) {
      const Plane<normalise>& plane = planes[layout.run[v]];
      const float *from = plane.data + layout.offset[v], *ahead = next[layout.run[v]] + layout.offset[v];
      const auto read = [&](int64_t k) {
        x[k] = plane(load(from + k * t.width));
        __builtin_prefetch(ahead + k * t.width);
      };
      if (layout.begin[v] == 0 && layout.end[v] == 6) {
        for (int64_t k = 0; k < 6; ++k) read(k);
      } else {
        for (int64_t k = 0; k < 6; ++k)  // unrolled, so that x stays in registers
          if (k >= layout.begin[v] && k < layout.end[v]) read(k);
      }
    }
    input_transform(x, 1);
    for (int64_t k = 0; k < 6; ++k) store(out + k * row + v * kWidth, x[k]);
  }
  const Run &first = block.runs[0], &last = block.runs[block.count - 1];
  if (layout.before) transform_neighbour(planes[0], t, 4 * first.y - 1, 4 * first.x - 1, out - 1, row);
  if (layout.after)
    transform_neighbour(planes[block.count - 1], t, 4 * last.y - 1, 4 * (last.x + last.count), out + 4 * block.size, row);
}

// 32 pixels of each of two channels to the first, second, third and fourth columns of eight tiles, the channels in turn.
inline void split_pairs(const float* even, const float* odd, Vec p[4]) {
  using Int = Lanes<kWidth>::Int;
  const Vec a = load(even), b = load(even + kWidth), c = load(odd), d = load(odd + kWidth);
  const Vec ac01 = IFAN_SHUFFLE(a, c, 0, 16, 4, 20, 8, 24, 12, 28, 1, 17, 5, 21, 9, 25, 13, 29);
  const Vec ac23 = IFAN_SHUFFLE(a, c, 2, 18, 6, 22, 10, 26, 14, 30, 3, 19, 7, 23, 11, 27, 15, 31);
  const Vec bd01 = IFAN_SHUFFLE(b, d, 0, 16, 4, 20, 8, 24, 12, 28, 1, 17, 5, 21, 9, 25, 13, 29);
  const Vec bd23 = IFAN_SHUFFLE(b, d, 2, 18, 6, 22, 10, 26, 14, 30, 3, 19, 7, 23, 11, 27, 15, 31);
  p[0] = IFAN_SHUFFLE(ac01, bd01, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
  p[1] = IFAN_SHUFFLE(ac01, bd01, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  p[2] = IFAN_SHUFFLE(ac23, bd23, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
  p[3] = IFAN_SHUFFLE(ac23, bd23, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}

template <int shift>
inline Vec shifted(__mmask16 kept, Vec high, Vec low) {
  return (Vec)_mm512_maskz_alignr_epi32(kept, (__m512i)high, (__m512i)low, shift);
}

// Two channels' rows, transformed along them, to v [point][tile] of pairs, points `stride` apart.
template <int N>
void transform_along(const Layout<N>& layout, const float* even, int64_t stride, float* v) {
  constexpr int64_t row = Buffers<N>::row, H = 2 * N, beyond = 4 * Block<N>::size;
  for (int64_t k = 0; k < 6; ++k, even += row) {
    const float* odd = even + Buffers<N>::channel;
    Vec p[H][4], before{}, after{};
    for (int64_t h = 0; h < H; ++h) split_pairs(even + 32 * h, odd + 32 * h, p[h]);
    if (layout.before) before[14] = even[-1], before[15] = odd[-1];
    if (layout.after) after[0] = even[beyond], after[1] = odd[beyond];
    for (int64_t n = 0; n < N; ++n) {
      Vec t[2][6];
      for (int64_t i = 0; i < 2; ++i) {
        const int64_t h = 2 * n + i;
        t[i][0] = shifted<14>(layout.left[h], p[h][3], h ? p[h - 1][3] : before);
        t[i][5] = shifted<2>(layout.right[h], h + 1 < H ? p[h + 1][0] : after, p[h][0]);
        for (int64_t q = 0; q < 4; ++q) t[i][1 + q] = p[h][q];
        input_transform(t[i], 1);
      }
      for (int64_t j = 0; j < 6; ++j) store_pairs(v + (6 * k + j) * stride + n * kWidth, t[0][j], t[1][j]);
    }
  }
}

template <int N, bool normalise>
void transform_inputs(const Context& context, const Layout<N>& layout, int64_t first, int64_t pairs, const Buffers<N>& b) {
  const ConvolutionForward& call = context.call;
  const Block<N>& block = layout.block;
  Plane<normalise> planes[Block<N>::size];
  const float* next[Block<N>::size];
  for (int64_t pair = first; pair < first + pairs; ++pair) {
    for (int64_t c = 2 * pair; c < 2 * pair + 2; ++c) {
      float* pixels = b.pixels + c % 2 * Buffers<N>::channel;
      if (c == call.x.channels) {  // an odd number of them: zeros complete the last pair
        memset(pixels - kWidth, 0, (Buffers<N>::channel + kWidth) * sizeof(float));
        continue;
      }
      for (int64_t r = 0; r < block.count; ++r) {
        const int64_t lane = block.runs[r].lane, at = context.plan.task[lane] * call.x.channels + c;
        planes[r] = {context.plan.plane(lane, c), normalise ? call.scale[at] : 1, normalise ? call.shift[at] : 0};
        next[r] = context.plan.plane(lane, least(c + 2, call.x.channels - 1));
      }
      transform_across(layout, planes, next, pixels);
    }
    transform_along(layout, b.pixels, b.point, b.pairs + (pair - first) * block.size);
  }
}

template <int N, bool normalise>
void convolve_blocks(void* argument, int64_t begin, int64_t end) {  // index: (block, piece)
  constexpr int64_t tiles = N * kWidth;
  Context& context = *static_cast<Context*>(argument);
  const ConvolutionForward& call = context.call;
  const int64_t pairs = (call.x.channels + 1) / 2, blocks = groups(call.outputs);
  float* memory = scratch(Buffers<N>::size(context.chunk, call.outputs));
  if (!memory) {
    context.failed = true;
    return;
  }
  const Buffers<N> b(memory, context.chunk);
  for (int64_t index = begin; index < end; ++index) {
    const Block<N> block(context.tiling, index / context.pieces * tiles, context.tiling.tiles());
    const Layout<N> layout(block);
    const int64_t piece = index % context.pieces, units = (call.outputs + kUnit - 1) / kUnit;
    const int64_t first_output = piece * units / context.pieces * kUnit;
    const int64_t end_output = least((piece + 1) * units / context.pieces * kUnit, call.outputs);
    for (int64_t first = 0; first < pairs; first += context.chunk) {
      const int64_t some = least(context.chunk, pairs - first);
      transform_inputs<N, normalise>(context, layout, first, some, b);
      for (int64_t p = 0; p < kPoints; ++p)
        for (int64_t o = first_output / kOutputs; o < groups(end_output); ++o)
          pair_products<kOutputs, N>(call.filters + ((p * blocks + o) * pairs + first) * kOutputs, b.pairs + p * b.point, some,
                                     b.sums + (p * blocks + o) * kOutputs * tiles, first > 0);
    }
    write_outputs<N>(call, block, first_output, end_output, b.sums, b.pixels);
  }
}

template <int N>
void run(Context& context) {
  constexpr int64_t tiles = N * kWidth;
  const Body body = context.call.scale ? convolve_blocks<N, true> : convolve_blocks<N, false>;
  const int64_t blocks = (context.tiling.tiles() + tiles - 1) / tiles;
  if (blocks < context.call.threads) context.pieces = least(context.call.threads, (context.call.outputs + kUnit - 1) / kUnit);
  parallel_for(blocks * context.pieces, 1, context.call.threads, body, &context);
}

}  // namespace

int64_t packed_filters(int64_t outputs, int64_t inputs) { return kPoints * groups(outputs) * kOutputs * ((inputs + 1) / 2); }

// filters [point][group][pair of inputs][kOutputs] of pairs, zeros where a group is not full and beside the last of an odd number.
void pack_filters(const FilterPacking& call) {
  const int64_t pairs = (call.inputs + 1) / 2;
  std::vector<float> whole(avx512::packed_filters(call.outputs, call.inputs));
  avx512::pack_filters({call.weight, call.outputs, call.inputs, false, whole.data()});
  for (int64_t g = 0; g < kPoints * groups(call.outputs); ++g)
    for (int64_t c = 0; c < call.inputs; c += 2)
      for (int64_t o = 0; o < kOutputs; ++o) {
        const float* even = whole.data() + (g * call.inputs + c) * kOutputs + o;
        store_pair(call.filters + (g * pairs + c / 2) * kOutputs + o, even[0], c + 1 < call.inputs ? even[kOutputs] : 0);
      }
}

bool convolution_forward(const ConvolutionForward& call) {
  const Plan plan(call.x);
  if (!plan.made()) return false;
  const int64_t pairs = (call.x.channels + 1) / 2;
  Context context{call, plan, Tiling(call.x.lanes, call.x.height, call.x.width), call.outputs > 24 ? least(pairs, 256) : 64, 1};
  if (context.tiling.tiles() > kWidth)
    run<2>(context);
  else
    run<1>(context);
  return !context.failed;
}

}  // namespace IFAN_ISA
}  // namespace ifan
