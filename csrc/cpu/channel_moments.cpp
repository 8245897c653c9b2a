#include "channel_moments.h"

#include <cstdlib>
#include <cstring>

#include "moments.h"
#include "runtime/thread_pool.h"

namespace ifan {
namespace IFAN_ISA {
namespace {

constexpr int64_t kRowChunk = 128;      // pixels of a tile of channels (channels-last): 16 KiB
constexpr int64_t kTile = 32;           // channels of a tile
constexpr int64_t kThreadWork = 32768;  // elements that are worth waking a thread for

float read(const float* p) { return *p; }
float read(const uint16_t* p) {
  const uint32_t bits = static_cast<uint32_t>(*p) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
void write(float* p, float value) { *p = value; }
void write(uint16_t* p, float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  *p = static_cast<uint16_t>(value != value ? 0x7fc0u : rounded);
}

// The same for `width` neighbouring channels over n pixels that lie `stride` apart. Width is a constant for whole
// tiles.
template <typename T>
inline __attribute__((always_inline)) void tile_moments(const T* x, int64_t n, int64_t stride, int64_t width,
                                                        Moments* out) {
  double sums[kTile] = {};
  float centre[kTile], squares[kTile] = {};
  for (int64_t p = 0; p < n; ++p)
    for (int64_t j = 0; j < width; ++j) sums[j] += read(x + p * stride + j);
  for (int64_t j = 0; j < width; ++j) centre[j] = static_cast<float>(sums[j] /= static_cast<double>(n));
  for (int64_t p = 0; p < n;) {
    float part[kTile] = {};
    for (const int64_t stop = min(n, p + kShortSum); p < stop; ++p)
      for (int64_t j = 0; j < width; ++j) {
        const float d = read(x + p * stride + j) - centre[j];
        part[j] += d * d;
      }
    for (int64_t j = 0; j < width; ++j) squares[j] += part[j];
  }
  for (int64_t j = 0; j < width; ++j) out[j] = moments_about(sums[j], centre[j], squares[j], n);
}

bool flat(const int64_t* shape,
          const int64_t* strides) {  // pixels of a plane follow each other at the distance strides[3]
  return shape[2] == 1 || strides[2] == shape[3] * strides[3];
}
bool plane_contiguous(const int64_t* shape, const int64_t* strides) { return flat(shape, strides) && strides[3] == 1; }
bool channels_contiguous(const int64_t* shape, const int64_t* strides) {
  return flat(shape, strides) && strides[1] == 1 && shape[1] > 1 && !plane_contiguous(shape, strides);
}
int64_t pixel(const int64_t* shape, const int64_t* strides, int64_t p) {
  return (p / shape[3]) * strides[2] + (p % shape[3]) * strides[3];
}

// Where the chunk's moments go: chunk-major, so that both layouts are joined by the same loop.
struct Forward {
  const MomentsForward* call;
  int64_t pixels, chunk, chunks;
  Moments* partial;  // (N, chunks, C)

  Moments* at(int64_t lane, int64_t piece) const { return partial + (lane * chunks + piece) * call->shape[1]; }
  int64_t size(int64_t piece) const { return min(chunk, pixels - piece * chunk); }
};

template <typename T>
const float* gather(const Forward& f, const T* plane, int64_t begin, int64_t n, float* buffer) {
  const int64_t *shape = f.call->shape, *strides = f.call->strides;
  for (int64_t p = 0; p < n;) {  // row by row, so that the inner loop has one stride
    const int64_t column = (begin + p) % shape[3], run = min(shape[3] - column, n - p);
    const T* row = plane + pixel(shape, strides, begin + p);
    if (strides[3] == 1)
      for (int64_t j = 0; j < run; ++j) buffer[p + j] = read(row + j);
    else
      for (int64_t j = 0; j < run; ++j) buffer[p + j] = read(row + j * strides[3]);
    p += run;
  }
  return buffer;
}

template <typename T>
void forward_planes(void* context, int64_t begin, int64_t end) {  // index: (lane, channel, chunk)
  const Forward& f = *static_cast<const Forward*>(context);
  const MomentsForward& call = *f.call;
  const bool direct = call.dtype == Dtype::float32 && plane_contiguous(call.shape, call.strides);
  float buffer[kPlaneChunk];
  int64_t piece = begin % f.chunks, channel = begin / f.chunks % call.shape[1], lane = begin / f.chunks / call.shape[1];
  for (int64_t index = begin; index < end; ++index) {
    const int64_t first = piece * f.chunk, n = f.size(piece);
    const T* plane = static_cast<const T*>(call.x) + lane * call.strides[0] + channel * call.strides[1];
    const float* values = direct ? reinterpret_cast<const float*>(plane) + first : gather(f, plane, first, n, buffer);
    f.at(lane, piece)[channel] = moments_of(values, n, values + n);
    if (++piece < f.chunks) continue;  // counting is cheaper than dividing where planes are small
    piece = 0;
    if (++channel < call.shape[1]) continue;
    channel = 0;
    ++lane;
  }
}

template <typename T>
void forward_rows(void* context, int64_t begin, int64_t end) {  // index: (lane, chunk), all channels
  const Forward& f = *static_cast<const Forward*>(context);
  const MomentsForward& call = *f.call;
  const int64_t channels = call.shape[1], stride = call.strides[3];
  for (int64_t index = begin; index < end; ++index) {
    const int64_t piece = index % f.chunks, lane = index / f.chunks, n = f.size(piece);
    const T* x = static_cast<const T*>(call.x) + lane * call.strides[0] + piece * f.chunk * stride;
    Moments* out = f.at(lane, piece);
    int64_t c = 0;
    for (; c + kTile <= channels; c += kTile) tile_moments(x + c, n, stride, kTile, out + c);
    if (c < channels) tile_moments(x + c, n, stride, channels - c, out + c);
  }
}

// Joins the chunks of a task's lanes: means first, then squares about the joint mean. Fixed order, double precision.
void join(const Forward& f, Moments* joint) {
  const MomentsForward& call = *f.call;
  const int64_t channels = call.shape[1];
  for (int64_t task = 0, lane = 0; task < call.tasks; lane += call.segments[task++]) {
    const int64_t lanes = call.segments[task];
    const double n = static_cast<double>(lanes * f.pixels);
    for (int64_t c = 0; c < channels; ++c) joint[c] = {0, lanes ? 0. : 1.};
    for (int64_t i = lane; i < lane + lanes; ++i)
      for (int64_t k = 0; k < f.chunks; ++k)
        for (int64_t c = 0; c < channels; ++c) joint[c].mean += f.size(k) / n * f.at(i, k)[c].mean;
    for (int64_t i = lane; i < lane + lanes; ++i)
      for (int64_t k = 0; k < f.chunks; ++k)
        for (int64_t c = 0; c < channels; ++c) {
          const double d = f.at(i, k)[c].mean - joint[c].mean;
          joint[c].square += (f.at(i, k)[c].square + f.size(k) * d * d) / n;
        }
    for (int64_t c = 0; c < channels; ++c) {
      call.mean[task * channels + c] = static_cast<float>(joint[c].mean);
      // moments_about() takes a difference, so a constant channel may come out a hair below zero.
      call.var[task * channels + c] = static_cast<float>(joint[c].square < 0 ? 0 : joint[c].square);
    }
  }
}

int useful_threads(const int64_t* shape, int threads) {
  const int64_t work = shape[0] * shape[1] * shape[2] * shape[3] / kThreadWork + 1;
  return static_cast<int>(min(threads, work));
}

}  // namespace

bool channel_moments_forward(const MomentsForward& call) {
  const int64_t *shape = call.shape, pixels = shape[2] * shape[3];
  const bool rows = channels_contiguous(shape, call.strides);
  Forward f{&call, pixels, rows ? kRowChunk : kPlaneChunk, 0, nullptr};
  f.chunks = (pixels + f.chunk - 1) / f.chunk;
  const int64_t count = shape[0] * f.chunks * shape[1];
  f.partial = static_cast<Moments*>(malloc((count + shape[1] + 1) * sizeof(Moments)));
  if (!f.partial) return false;
  const int threads = useful_threads(shape, call.threads);
  const bool wide = call.dtype == Dtype::float32;
  if (rows)
    parallel_for(shape[0] * f.chunks, 1, threads, wide ? forward_rows<float> : forward_rows<uint16_t>, &f);
  else
    parallel_for(count, neighbours(count, f.size(0), threads), threads,
                 wide ? forward_planes<float> : forward_planes<uint16_t>, &f);
  join(f, f.partial + count);
  free(f.partial);
  return true;
}

namespace {

struct Backward {
  const MomentsBackward* call;
  float *offset, *slope;  // (tasks, C): gmean / n, 2 gvar / n
  int64_t* task;          // (N,): of each lane
};

// The gradients that a plane's or a pixel's are stored at, from that address on, and what is added to them: none, one
// or two.
template <typename T, int added>
struct Gradients {
  T* to;
  const T* before[2];

  Gradients(const MomentsBackward& call, int64_t offset) : to(static_cast<T*>(call.gradient) + offset) {
    for (int i = 0; i < added; ++i) before[i] = static_cast<const T*>(call.before[i]) + offset;
  }
  void operator()(int64_t i, float value) const {
    for (int k = added - 1; k >= 0; --k) value += read(before[k] + i);
    write(to + i, value);
  }
  Vec sum(int64_t i, Vec value) const {  // of floats
    for (int k = added - 1; k >= 0; --k) value += load(before[k] + i);
    return value;
  }
};

template <typename T, int added>
void backward_planes(void* context, int64_t begin, int64_t end) {  // index: (lane, channel)
  const Backward& b = *static_cast<const Backward*>(context);
  const MomentsBackward& call = *b.call;
  const int64_t *shape = call.shape, *xs = call.strides, *gs = call.gradient_strides, pixels = shape[2] * shape[3];
  const bool direct = plane_contiguous(shape, xs) && plane_contiguous(shape, gs);
  const bool large = direct && shape[0] * shape[1] * pixels >= kStreamed;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t channel = index % shape[1], lane = index / shape[1], at = b.task[lane] * shape[1] + channel;
    const float mean = call.mean[at], offset = b.offset[at], slope = b.slope[at];
    const T* x = static_cast<const T*>(call.x) + lane * xs[0] + channel * xs[1];
    const Gradients<T, added> store(call, lane * gs[0] + channel * gs[1]);
    if constexpr (sizeof(T) == sizeof(float)) {
      const Writer writer(store.to, pixels, large);
      if (writer.streamed) {
        for (int64_t p = 0; p < pixels; p += kWidth) writer(p, store.sum(p, offset + slope * (load(x + p) - mean)));
        continue;
      }
    }
    if (direct)
      for (int64_t p = 0; p < pixels; ++p) store(p, offset + slope * (read(x + p) - mean));
    else
      for (int64_t p = 0; p < pixels; ++p)
        store(pixel(shape, gs, p), offset + slope * (read(x + pixel(shape, xs, p)) - mean));
  }
  finish_streams();
}

template <typename T, int added>
void backward_rows(void* context, int64_t begin, int64_t end) {  // index: (lane, pixel), all channels
  const Backward& b = *static_cast<const Backward*>(context);
  const MomentsBackward& call = *b.call;
  const int64_t channels = call.shape[1], pixels = call.shape[2] * call.shape[3];
  for (int64_t index = begin; index < end; ++index) {
    const int64_t lane = index / pixels, p = index % pixels, at = b.task[lane] * channels;
    const float *mean = call.mean + at, *offset = b.offset + at, *slope = b.slope + at;
    const T* x = static_cast<const T*>(call.x) + lane * call.strides[0] + p * call.strides[3];
    const Gradients<T, added> store(call, lane * call.gradient_strides[0] + p * call.gradient_strides[3]);
    for (int64_t c = 0; c < channels; ++c) store(c, offset[c] + slope[c] * (read(x + c) - mean[c]));
  }
}

}  // namespace

bool channel_moments_backward(const MomentsBackward& call) {
  const int64_t *shape = call.shape, pixels = shape[2] * shape[3], values = call.tasks * shape[1];
  float* factors = static_cast<float*>(malloc((2 * values + 1) * sizeof(float)));
  int64_t* task = static_cast<int64_t*>(malloc((shape[0] + 1) * sizeof(int64_t)));
  if (factors && task) {
    Backward b{&call, factors, factors + values, task};
    for (int64_t t = 0, lane = 0; t < call.tasks; lane += call.segments[t++]) {
      const float n = static_cast<float>(call.segments[t] * pixels);
      for (int64_t i = lane; i < lane + call.segments[t]; ++i) task[i] = t;
      for (int64_t at = t * shape[1]; at < (t + 1) * shape[1]; ++at) {
        b.offset[at] = call.segments[t] ? call.mean_gradient[at] / n : 0;
        b.slope[at] = call.segments[t] ? 2 * call.var_gradient[at] / n : 0;
      }
    }
    const int threads = useful_threads(shape, call.threads);
    const bool rows = channels_contiguous(shape, call.strides) && channels_contiguous(shape, call.gradient_strides);
    const auto run = [&](Body by_row, Body by_plane) {
      if (rows)
        parallel_for(shape[0] * pixels, neighbours(shape[0] * pixels, shape[1], threads), threads, by_row, &b);
      else
        parallel_for(shape[0] * shape[1], neighbours(shape[0] * shape[1], pixels, threads), threads, by_plane, &b);
    };
    const auto run_for = [&](auto type) {
      using T = decltype(type);
      if (call.before[0] && call.before[1])
        run(backward_rows<T, 2>, backward_planes<T, 2>);
      else if (call.before[0])
        run(backward_rows<T, 1>, backward_planes<T, 1>);
      else
        run(backward_rows<T, 0>, backward_planes<T, 0>);
    };
    call.dtype == Dtype::float32 ? run_for(float{}) : run_for(uint16_t{});
  }
  const bool enough = factors && task;
  free(factors);
  free(task);
  return enough;
}

}  // namespace IFAN_ISA
}  // namespace ifan
