// One layer of a dense block: 3x3 convolution of the normalised, rectified concatenation of the sources, which is never
// written, to a few output channels; float16 or bfloat16 in and out, multiplied on tensor cores, added in float32.
//
// An implicit matrix product a tap: pixels x channels times channels x outputs. A block of four warps makes kHeight x
// kWidth pixels of kOutputs channels; a warp's fragments are rows of 16 pixels. For kDepth channels at a time the block
// brings the tile with its border into shared memory, normalised, rectified and rounded to the type, and the nine taps
// of the filters; then every tap reads the same tile, shifted. Pixels outside the map are 0 after the ReLU, not before.
// Rows in shared memory are kPitch values long: the 32 lanes of a fragment's load fall into 32 different banks.
#include "dense_block.h"
#include "launch.h"

namespace ifan::cuda {
namespace {

constexpr int kThreads = 128, kHeight = 8, kWidth = 16, kOutputs = 16, kDepth = 16, kPitch = kDepth + 8;
constexpr int kAbreast = kThreads / (kDepth / 2);
constexpr int kRows = kHeight + 2, kColumns = kWidth + 2, kTilesM = kHeight * 32 / kThreads, kTilesN = kOutputs / 8;

// The block's place: output tile, outputs and lane.
struct Place {
  int64_t lane, outputs;  // outputs: the first of kOutputs
  int y, x;
};

__device__ __forceinline__ Place place_of(const DenseLayer& call) {
  const int across = (int(call.width) + kWidth - 1) / kWidth, down = (int(call.height) + kHeight - 1) / kHeight;
  const unsigned tiles = across * down, groups = unsigned(call.outputs + kOutputs - 1) / kOutputs,
                 rest = blockIdx.x / tiles;
  const int tile = int(blockIdx.x % tiles);
  return {rest / groups, rest % groups * kOutputs, tile / across * kHeight, tile % across * kWidth};
}

__device__ __forceinline__ uint32_t pair_of(uint16_t low, uint16_t high) { return uint32_t(high) << 16 | low; }
template <class T>
__device__ __forceinline__ uint16_t raw(T value) {
  uint16_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Channels start .. start + kDepth of one source, normalised and rectified, pairs of channels by pixel. A thread keeps
// one pair, whose scale and shift it makes once; kAbreast threads of a pair take neighbouring pixels.
template <class T>
__device__ void load_tile(const DenseLayer& call, const LayerSource& source, const Place& place, int task,
                          int64_t first, int64_t start, uint32_t* tile) {
  const int64_t row = source.rows ? source.rows[place.lane] : place.lane;
  const int pair = threadIdx.x / kAbreast;
  const int64_t channel = start + pair * 2, there = source.channels - channel;  // how many of the pair, or more
  const T* x = static_cast<const T*>(source.x) + row * source.stride[0] + channel * source.stride[1];
  float scale[2] = {}, shift[2] = {};
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int64_t at = task * call.channels + first + channel + j;
    if (j >= there) break;
    scale[j] = call.weight[at] / sqrtf(call.var[at] + call.eps);
    shift[j] = call.bias[at] - call.mean[at] * scale[j];
  }
  for (int spot = threadIdx.x % kAbreast; spot < kRows * kColumns; spot += kAbreast) {
    const int y = place.y + spot / kColumns - 1, line = place.x + spot % kColumns - 1;
    uint16_t values[2] = {0, 0};
    if (y >= 0 && y < call.height && line >= 0 && line < call.width) {
      const T* from = x + y * source.stride[2] + line * source.stride[3];
#pragma unroll
      for (int j = 0; j < 2; ++j)
        if (j < there) values[j] = raw(narrow<T>(fmaxf(widen(from[j * source.stride[1]]) * scale[j] + shift[j], 0.f)));
    }
    tile[spot * (kPitch / 2) + pair] = pair_of(values[0], values[1]);
  }
}

// The nine taps of the same channels: by tap and output, pairs of channels.
template <class T>
__device__ void load_filters(const DenseLayer& call, const LayerSource& source, const Place& place, int64_t first,
                             int64_t start, uint32_t* filters) {
  const T* all = static_cast<const T*>(call.filters);
  for (int i = threadIdx.x; i < 9 * kOutputs * kDepth / 2; i += kThreads) {
    const int pair = i % (kDepth / 2), output = i / (kDepth / 2) % kOutputs, tap = i / (kDepth / 2) / kOutputs;
    uint16_t values[2] = {0, 0};
    if (place.outputs + output < call.outputs) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int64_t channel = start + pair * 2 + j;
        if (channel < source.channels)
          values[j] = raw(all[(tap * call.outputs + place.outputs + output) * call.channels + first + channel]);
      }
    }
    filters[(tap * kOutputs + output) * (kPitch / 2) + pair] = pair_of(values[0], values[1]);
  }
}

using Sums = float[kTilesM][kTilesN][4];

// One kDepth of channels: nine taps, each a product of the shifted tile and its filters.
template <class T>
__device__ __forceinline__ void multiply(const uint32_t* tile, const uint32_t* filters, Sums& sums) {
  const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, pair = threadIdx.x % 4;
#pragma unroll
  for (int tap = 0; tap < 9; ++tap) {
    uint32_t b[kTilesN][2];
#pragma unroll
    for (int n = 0; n < kTilesN; ++n) {
      const uint32_t* from = filters + (tap * kOutputs + n * 8 + group) * (kPitch / 2) + pair;
      b[n][0] = from[0], b[n][1] = from[4];
    }
#pragma unroll
    for (int m = 0; m < kTilesM; ++m) {
      const uint32_t* from = tile + ((warp * kTilesM + m + tap / 3) * kColumns + group + tap % 3) * (kPitch / 2) + pair;
      const uint32_t* later = from + 8 * (kPitch / 2);
      const uint32_t a[4] = {from[0], later[0], from[4], later[4]};
#pragma unroll
      for (int n = 0; n < kTilesN; ++n) multiply_add<T>(sums[m][n], a, b[n]);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) layer_kernel(const __grid_constant__ DenseLayer call) {
  SHARED_ARRAY(uint32_t, tile, kRows * kColumns * kPitch / 2);
  SHARED_ARRAY(uint32_t, filters, 9 * kOutputs * kPitch / 2);
  const Place place = place_of(call);
  const int task = task_of(call.segments, place.lane);
  Sums sums = {};
  int64_t first = 0;
  for (int s = 0; s < call.count; ++s) {
    const LayerSource& source = call.sources[s];
    for (int64_t start = 0; start < source.channels; start += kDepth) {
      load_tile<T>(call, source, place, task, first, start, tile);
      load_filters<T>(call, source, place, first, start, filters);
      __syncthreads();
      multiply<T>(tile, filters, sums);
      __syncthreads();  // before the next channels overwrite these
    }
    first += source.channels;
  }
  const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, pair = threadIdx.x % 4;
  T* out = static_cast<T*>(call.y) + place.lane * call.y_stride[0];
#pragma unroll
  for (int m = 0; m < kTilesM; ++m)
#pragma unroll
    for (int n = 0; n < kTilesN; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int y = place.y + warp * kTilesM + m, x = place.x + group + i / 2 * 8;
        const int64_t output = place.outputs + n * 8 + pair * 2 + i % 2;
        if (y < call.height && x < call.width && output < call.outputs)
          out[output * call.y_stride[1] + y * call.width + x] = narrow<T>(sums[m][n][i]);
      }
}

}  // namespace

int dense_layer(const DenseLayer& call, Dtype dtype, uintptr_t stream) {
  const int64_t tiles = ceil_div(call.height, kHeight) * ceil_div(call.width, kWidth);
  const int64_t blocks = call.lanes * ceil_div(call.outputs, kOutputs) * tiles;
  if (tiles > INT_MAX || call.height * call.width > INT_MAX || call.count > kMaxSources) return cudaErrorInvalidValue;
  if (dtype == Dtype::float16) return launch(layer_kernel<__half>, blocks, kThreads, stream, call);
  if (dtype == Dtype::bfloat16) return launch(layer_kernel<__nv_bfloat16>, blocks, kThreads, stream, call);
  return cudaErrorInvalidValue;
}

}  // namespace ifan::cuda
