#include <atomic>
#include <cstring>

#include "affine_relu.h"
#include "runtime/scratch.h"
#include "runtime/thread_pool.h"
#include "winograd_outputs.h"

namespace ifan {
namespace IFAN_ISA {
namespace {

constexpr int kVectors = 2;
using Tiles = Block<kVectors>;
constexpr int64_t kTiles = Tiles::size;
constexpr int64_t kSharesWorthWaking =
    1 << 15;  // values of a weight's gradient that are added up sooner than another thread wakes
constexpr int64_t kOutputPixels =
    16 * kTiles + kWidth;           // from one output's pixels of a block to the next's; no power of two
constexpr int64_t kTilesALine = 4;  // a line is asked for every so many tiles; a divisor of all vectors' lengths
constexpr int64_t kBatch = 64;      // tiles, about, whose output gradients are transformed at a time

int64_t ceil_to(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

struct Context {
  const ConvolutionBackward& call;
  const Plan& plan;
  Tiling tiling;
  int64_t rows, blocks;  // of tiles, in a batch
  int64_t wide;          // outputs rounded up to whole vectors
  int64_t chunk;         // channels between two readings of the batch's output gradients; a multiple of kOutputs
  // From one point's values of a block to the next's: no powers of two, which would fall on one cache set.
  int64_t to_inputs() const { return (call.outputs + 1) * kTiles; }
  int64_t to_weights() const { return kTiles * wide + kWidth; }
  int64_t inputs() const { return (chunk + 1) * kTiles; }
  bool many() const {
    return wide > 2 * kWidth;
  }  // outputs: what belongs to them does not stay in the second-level cache
  // Rows of outputs lie in panels of two vectors, or one at the end: floats of a row in the panel of output o, and the
  // place of o among `count` rows.
  int64_t panel(int64_t o) const { return min(2 * kWidth, wide - o / (2 * kWidth) * 2 * kWidth); }
  int64_t place(int64_t o, int64_t count) const { return o % (2 * kWidth) + o / (2 * kWidth) * 2 * kWidth * count; }
  std::atomic<bool> failed{false};
};

// This thread's buffers. The first two hold a batch's gradients, `chunk` its inputs of some channels and then the
// gradients of these, [block][point][channel][tile]; `gradients` these as planes, behind the prologue, [channel][row of
// tiles][pixel]; `pixels` holds kWidth outputs of a block, `filters` a part of the lanes.
struct Buffers {
  float *to_inputs, *to_weights, *chunk, *gradients, *pixels, *filters;

  static int64_t layout(const Context& c, float* memory, Buffers* b) {
    int64_t used = 0;
    const auto take = [&](int64_t floats) {
      float* at = memory ? memory + used : nullptr;
      used += ceil_to(floats, 16) + 16;  // never a power of two apart
      return at;
    };
    b->to_inputs = take(c.blocks * kPoints * c.to_inputs());
    b->to_weights = take(c.blocks * kPoints * c.to_weights());
    b->chunk = take(c.blocks * kPoints * c.inputs());
    b->gradients = take(c.call.scale ? c.chunk * c.rows * 4 * c.tiling.width : 0);
    b->pixels = take(kWidth * kOutputPixels);
    b->filters = take(kPoints * c.call.x.channels * c.wide);
    return used;
  }
};

// The 4 x 4 pixels of a block's tiles to y [row][column][tile], zeros beyond the border and the last tile.
void gather_pixels(const Tiles& block, const Plane<false>* planes, float* y) {
  for (int64_t k = 0; k < 4; ++k) {
    alignas(64) float pixels[4 * kTiles];
    if (block.tiles < kTiles) memset(pixels, 0, sizeof pixels);
    for (int64_t r = 0; r < block.count; ++r)
      copy_row(planes[r], block.tiling, block.runs[r], 4 * block.runs[r].y + k, pixels + 4 * block.runs[r].at);
    for (int64_t i = 0; i < kTiles; i += kWidth) {
      const float* x = pixels + 4 * i;
      const Vec in[4] = {load(x), load(x + kWidth), load(x + 2 * kWidth), load(x + 3 * kWidth)};
      Vec p[4];
      Quads<kWidth>::turn(in, p);
      for (int q = 0; q < 4; ++q) store(y + (4 * k + q) * kTiles + i, p[q]);
    }
  }
}

// A y A^T of kWidth outputs, y [output][pixel][tile], to out [point][tile][row of a panel]: the tiles' rows for the
// product with the inputs. They are turned, in place, while they are 16 pixels and not yet 36 points.
void transform_gradients(float* y, float* out, int64_t row, int64_t stride) {
  for (int64_t t = 0; t < kTiles; t += kWidth) {
    for (int64_t p = 0; p < 16; ++p) {
      Vec v[kWidth];
      for (int o = 0; o < kWidth; ++o) v[o] = load(y + o * kOutputPixels + p * kTiles + t);
      transpose(v);
      for (int i = 0; i < kWidth; ++i) store(y + i * kOutputPixels + p * kTiles + t, v[i]);
    }
    for (int64_t i = 0; i < kWidth; ++i) {
      const float* tile = y + i * kOutputPixels + t;
      Vec half[4][6];
      for (int r = 0; r < 4; ++r) {
        Vec x[4];
        for (int q = 0; q < 4; ++q) x[q] = load(tile + (4 * r + q) * kTiles);
        gradient_transform(x, half[r]);
      }
      for (int j = 0; j < 6; ++j) {
        Vec x[4], m[6];
        for (int r = 0; r < 4; ++r) x[r] = half[r][j];
        gradient_transform(x, m);
        for (int k = 0; k < 6; ++k) store(out + (6 * k + j) * stride + (t + i) * row, m[k]);
      }
    }
  }
}

// The tiles of a batch, by block; whether those before it have left sums to add to.
struct Batch {
  int64_t tiles;
  bool add;
  int64_t blocks() const { return (tiles + kTiles - 1) / kTiles; }
  int64_t in_block(int64_t i) const { return ceil_to(min(tiles - i * kTiles, kTiles), kWidth); }  // whole vectors
};

// Rows of tiles [begin, end), of all lanes, and the chunk of channels that is worked on there.
struct Region {
  int64_t begin, end, first, channels;
};

// The memory that is needed behind a chunk's products, in pieces that are asked for during these: in turns a plane
// where gradients belong and one of the next chunk's sources.
class Prefetcher {
 public:
  Prefetcher(const Context& context, const Region& region)
      : context_(context), region_(region), lane_(region.begin / rows()) {
    find();
  }

  // At most so many floats; behind the last piece what is asked for is of no use.
  const float* next(int64_t floats) {
    if (at_ >= end_ && plane_ < 2 * region_.channels) {
      if (++lane_ * rows() >= region_.end) lane_ = region_.begin / rows(), ++plane_;
      if (plane_ < 2 * region_.channels) find();
    }
    at_ += floats;
    return at_ - floats;
  }

 private:
  int64_t rows() const { return context_.tiling.rows; }
  void find() {
    const Tiling& tiling = context_.tiling;
    const int64_t c = region_.first + plane_ / 2, later = min(c + region_.channels, context_.call.x.channels - 1);
    const int64_t first = region_.begin > lane_ * rows() ? 4 * (region_.begin - lane_ * rows()) : 0;
    at_ = (plane_ % 2 ? context_.plan.plane(lane_, later) : context_.plan.gradient(lane_, c)) + first * tiling.width;
    end_ = at_ + (min(4 * (region_.end - lane_ * rows()), tiling.height) - first) * tiling.width;
  }

  const Context& context_;
  const Region region_;
  int64_t lane_, plane_ = 0;
  const float *at_, *end_;
};

// sums [M][output] (+)= v [M][tile] g [tile][output] over the tiles of a batch, for a panel of N vectors of outputs;
// `v_step`, `g_step`: from block to block. Memory from `next` on is asked for, a line for some tiles.
template <int M, int N>
void correlate(const Batch& batch, const float* v, int64_t v_step, const float* g, int64_t g_step, float* sums,
               const float* next) {
  Vec sum[M][N];
  for (int i = 0; i < M; ++i)
    for (int n = 0; n < N; ++n) sum[i][n] = batch.add ? load(sums + (i * N + n) * kWidth) : Vec{};
  for (int64_t b = 0; b < batch.blocks(); ++b, v += v_step, g += g_step) {
    const int64_t tiles = batch.in_block(b);
    const float* row = g;
    for (int64_t t = 0; t < tiles; next += kLine) {
      __builtin_prefetch(next);
      for (const int64_t end = t + kTilesALine; t < end; ++t, row += N * kWidth) {
        Vec x[N];
        for (int n = 0; n < N; ++n) x[n] = load(row + n * kWidth);
        for (int i = 0; i < M; ++i)
          for (int n = 0; n < N; ++n) sum[i][n] += v[i * kTiles + t] * x[n];
      }
    }
  }
  for (int i = 0; i < M; ++i)
    for (int n = 0; n < N; ++n) store(sums + (i * N + n) * kWidth, sum[i][n]);
}

// For so many channels, or the most of them that one call takes: M of these.
template <int N>
auto correlate_for(int64_t channels, int64_t* M) {
  constexpr int third = kOutputs / 3;
  *M = channels >= kOutputs ? kOutputs : channels >= third ? third : 1;
  return *M == kOutputs ? correlate<kOutputs, N> : *M == third ? correlate<third, N> : correlate<1, N>;
}

void transform_gradients(const Context& context, const Tiles& block, int64_t index, const Buffers& b) {
  const ConvolutionBackward& call = context.call;
  const int64_t pixels = context.tiling.height * context.tiling.width;
  float* to_inputs = b.to_inputs + index * kPoints * context.to_inputs();
  float* to_weights = b.to_weights + index * kPoints * context.to_weights();
  Plane<false> planes[kTiles];
  const float* next[kTiles];
  for (int64_t o = 0; o < call.outputs; ++o) {
    for (int64_t r = 0; r < block.count; ++r) {
      planes[r].data = call.gradient + block.runs[r].lane * call.gradient_lane_stride + o * pixels;
      next[r] = planes[r].data + (o + 1 < call.outputs ? pixels : 0);
    }
    transform_inputs(block, planes, next, to_inputs + o * kTiles, context.to_inputs());
    gather_pixels(block, planes, b.pixels + o % kWidth * kOutputPixels);
    const int64_t beyond =
        o == call.outputs - 1 ? kWidth - 1 - o % kWidth : 0;  // outputs of the last vector, which have no gradient
    memset(b.pixels + (o % kWidth + 1) * kOutputPixels, 0, beyond * kOutputPixels * sizeof(float));
    if (o % kWidth + beyond == kWidth - 1)
      transform_gradients(b.pixels, to_weights + context.place(o / kWidth * kWidth, kTiles), context.panel(o),
                          context.to_weights());
  }
}

// The transformed inputs of a block, for some channels.
template <bool normalise>
void transform_chunk(const Context& context, const Tiles& block, int64_t first, int64_t channels, float* out) {
  const ConvolutionBackward& call = context.call;
  Plane<normalise> planes[kTiles];
  const float* next[kTiles];
  for (int64_t c = first; c < first + channels; ++c) {
    for (int64_t r = 0; r < block.count; ++r) {
      const int64_t lane = block.runs[r].lane, at = context.plan.task[lane] * call.x.channels + c;
      planes[r] = {context.plan.plane(lane, c), normalise ? call.scale[at] : 1, normalise ? call.shift[at] : 0};
      next[r] = context.plan.plane(lane, min(c + kChannelsAhead, call.x.channels - 1));
    }
    transform_inputs(block, planes, next, out + (c - first) * kTiles, context.inputs());
  }
}

// The products of the chunk's inputs and the outputs' gradients, to the gradient of the transformed filters, which is
// asked for before it is added to if outputs are many.
void add_filters(const Context& context, const Batch& batch, const Region& region, const Buffers& b,
                 Prefetcher& prefetcher) {
  const int64_t v_step = kPoints * context.inputs(), g_step = kPoints * context.to_weights(),
                inputs = context.call.x.channels;
  for (int64_t p = 0; p < kPoints; ++p)
    for (int64_t o = 0; o < context.wide; o += 2 * kWidth)
      for (int64_t c = 0, some; c < region.channels; c += some) {
        const int64_t left = region.channels - c, row = context.panel(o);
        const auto correlate = row == 2 * kWidth ? correlate_for<2>(left, &some) : correlate_for<1>(left, &some);
        const float *v = b.chunk + p * context.inputs() + c * kTiles,
                    *g = b.to_weights + p * context.to_weights() + context.place(o, kTiles);
        float* sums = b.filters + p * inputs * context.wide + context.place(o, inputs) + (region.first + c) * row;
        const float* next = context.many() ? sums + some * row : prefetcher.next(batch.tiles / kTilesALine * kLine);
        correlate(batch, v, v_step, g, g_step, sums, next);
      }
}

// The products that the gradients of the chunk's inputs are made of, in place of these inputs. A panel of filters is
// read for all blocks, and asked for before the first of them if outputs are many.
void multiply_filters(const Context& context, const Batch& batch, const Region& region, const Buffers& b,
                      Prefetcher& prefetcher) {
  const int64_t outputs = context.call.outputs, panels = ceil_to(context.call.x.channels, kOutputs) / kOutputs;
  for (int64_t p = 0; p < kPoints; ++p)
    for (int64_t c = 0; c < region.channels; c += kOutputs)
      for (int64_t i = 0; i < batch.blocks(); ++i) {
        const float* filters = context.call.filters + (p * panels + (region.first + c) / kOutputs) * outputs * kOutputs;
        const float* next = context.many() && i == 0 ? filters + kFiltersAhead : prefetcher.next(outputs * kOutputs);
        products<kVectors>(filters, b.to_inputs + (i * kPoints + p) * context.to_inputs(), outputs,
                           b.chunk + (i * kPoints + p) * context.inputs() + c * kTiles, false, region.channels - c,
                           next);
      }
}

// A lane's plane of a channel in `gradients`, of which the region's rows are there.
float* plane_in(const Context& context, const Region& region, float* gradients, int64_t lane, int64_t c) {
  return gradients + ((c - region.first) * (region.end - region.begin) + lane * context.tiling.rows - region.begin) *
                         4 * context.tiling.width;
}

// The chunk's gradients of what the convolution reads, to `gradients` if there is a prologue, else to where the
// sources' belong.
template <bool normalise>
void write_inputs(const Context& context, const Tiles& block, const Region& region, const float* sums,
                  float* gradients) {
  float* planes[kTiles];
  for (int64_t c = 0; c < region.channels; ++c) {
    for (int64_t r = 0; r < block.count; ++r) {
      const int64_t lane = block.runs[r].lane, channel = region.first + c;
      planes[r] =
          normalise ? plane_in(context, region, gradients, lane, channel) : context.plan.gradient(lane, channel);
    }
    write_planes(block, sums + c * kTiles, context.inputs(), planes, false,
                 !normalise && context.plan.target(region.first + c).add);
  }
}

// From `gradients` through the prologue to where the sources' gradients belong.
void differentiate_prologue(const Context& context, const Region& region, float* gradients) {
  const ConvolutionBackward& call = context.call;
  const int64_t height = context.tiling.height, width = context.tiling.width, rows = context.tiling.rows;
  for (int64_t lane = region.begin / rows; lane * rows < region.end;
       ++lane) {  // a lane's rows follow each other in memory
    const int64_t y = region.begin > lane * rows ? 4 * (region.begin - lane * rows) : 0;
    const int64_t n = (min(4 * (region.end - lane * rows), height) - y) * width;
    for (int64_t c = region.first; c < region.first + region.channels; ++c) {
      const int64_t at = context.plan.task[lane] * call.x.channels + c;
      affine_relu_backward(
          context.plan.plane(lane, c) + y * width, plane_in(context, region, gradients, lane, c) + y * width,
          context.plan.gradient(lane, c) + y * width, n, {call.scale[at], call.shift[at], call.mean[at]},
          call.sums + 2 * (lane * call.x.channels + c), context.plan.target(c).add);
    }
  }
}

template <bool normalise>
void work_on_batch(const Context& context, int64_t begin, int64_t end, bool add, const Buffers& b) {
  const int64_t columns = context.tiling.columns, from = begin * columns, last = end * columns,
                channels = context.call.x.channels;
  const Batch batch{last - from, add};
  const auto each_block = [&](auto work) {
    for (int64_t i = 0; i < batch.blocks(); ++i) work(Tiles(context.tiling, from + i * kTiles, last), i);
  };
  each_block([&](const Tiles& block, int64_t i) { transform_gradients(context, block, i, b); });
  for (int64_t first = 0; first < channels; first += context.chunk) {
    const int64_t some = min(context.chunk, channels - first);
    const auto at = [&](int64_t i) { return b.chunk + i * kPoints * context.inputs(); };
    each_block([&](const Tiles& block, int64_t i) { transform_chunk<normalise>(context, block, first, some, at(i)); });
    const Region region{begin, end, first, some};
    Prefetcher prefetcher(context, region);
    add_filters(context, batch, region, b, prefetcher);
    multiply_filters(context, batch, region, b, prefetcher);
    each_block(
        [&](const Tiles& block, int64_t i) { write_inputs<normalise>(context, block, region, at(i), b.gradients); });
    if (normalise) differentiate_prologue(context, region, b.gradients);
  }
}

// G^T u G, the gradient of the weight for that of the transformed filters, to out (outputs, channels, 3, 3).
void weight_gradient(const Context& context, const float* filters, float* out) {
  const int64_t channels = context.call.x.channels, outputs = context.call.outputs, wide = context.wide;
  double exact[6][3];
  float g[6][3];
  filter_matrix(exact);
  for (int i = 0; i < 18; ++i) g[i / 3][i % 3] = static_cast<float>(exact[i / 3][i % 3]);
  for (int64_t o = 0; o < wide; o += kWidth)
    for (int64_t c = 0; c < channels; ++c) {
      const float* from = filters + context.place(o, channels) + c * context.panel(o);
      Vec half[6][3] = {};
      for (int k = 0; k < 6; ++k)
        for (int l = 0; l < 6; ++l) {
          const float* u = from + (6 * k + l) * wide * channels;
          __builtin_prefetch(u + kChannelsAhead *
                                     context.panel(o));  // 36 streams are too many for the processor to foresee
          for (int j = 0; j < 3; ++j) half[k][j] += g[l][j] * load(u);
        }
      alignas(64) float w[9][kWidth];
      for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j) {
          Vec sum{};
          for (int k = 0; k < 6; ++k) sum += g[k][i] * half[k][j];
          store(w[3 * i + j], sum);
        }
      for (int64_t v = 0; v < kWidth && o + v < outputs; ++v)
        for (int64_t i = 0; i < 9; ++i) out[((o + v) * channels + c) * 9 + i] = w[i][v];
    }
}

template <bool normalise>
void work_on_parts(void* argument, int64_t begin, int64_t end) {
  Context& context = *static_cast<Context*>(argument);
  const ConvolutionBackward& call = context.call;
  Buffers b;
  float* memory = scratch(Buffers::layout(context, nullptr, &b));
  if (!memory) {
    context.failed = true;
    return;
  }
  Buffers::layout(context, memory, &b);
  const int64_t lanes = call.x.lanes;
  for (int64_t part = begin; part < end; ++part) {
    const int64_t first = part * lanes / call.parts, last = (part + 1) * lanes / call.parts,
                  first_row = first * context.tiling.rows;
    if (normalise)
      memset(call.sums + 2 * first * call.x.channels, 0, 2 * (last - first) * call.x.channels * sizeof(double));
    const int64_t end_row = last * context.tiling.rows;
    for (int64_t row = first_row; row < end_row; row += context.rows)
      work_on_batch<normalise>(context, row, min(row + context.rows, end_row), row > first_row, b);
    weight_gradient(context, b.filters, call.shares + part * call.outputs * call.x.channels * 9);
  }
}

void add_shares(void* argument, int64_t begin, int64_t end) {
  const ConvolutionBackward& call = static_cast<const Context*>(argument)->call;
  const int64_t size = call.outputs * call.x.channels * 9;
  memcpy(call.weight_gradient + begin, call.shares + begin, (end - begin) * sizeof(float));
  for (int64_t part = 1; part < call.parts; ++part)
    for (int64_t i = begin; i < end; ++i) call.weight_gradient[i] += call.shares[part * size + i];
}

}  // namespace

bool convolution_backward(const ConvolutionBackward& call) {
  const Plan plan(call.x);
  if (!plan.made()) return false;
  const Tiling tiling(call.x.lanes, call.x.height, call.x.width);
  const int64_t rows = kBatch > tiling.columns ? kBatch / tiling.columns : 1;
  const int64_t blocks = Batch{rows * tiling.columns, false}.blocks(), wide = ceil_to(call.outputs, kWidth);
  Context context{call, plan, tiling, rows, blocks, wide, 24};
  if (context.many()) context.chunk = 48;
  parallel_for(call.parts, 1, call.threads, call.scale ? work_on_parts<true> : work_on_parts<false>, &context);
  parallel_for(call.outputs * call.x.channels * 9, kSharesWorthWaking, call.threads, add_shares, &context);
  return !context.failed;
}

}  // namespace IFAN_ISA
}  // namespace ifan
