// Normalisation, ReLU and pooling of one source of a concatenation that is never written.
//
//   z = x scale + shift     scale = weight / sqrt(var + eps)     shift = bias - mean scale     y = average of relu(z)
//   gx = d scale            S0 = sum d     S1 = sum d (x - mean)                               d = gy where z > 0
//
// A block covers kTile pixels of one plane. Forward reads each value once and writes 1 / pool^2 of them. Backward
// recomputes z; a block owns its piece of the source's gradient and adds the lanes that read the piece, in their order,
// in registers: neither atomics nor a gradient a lane. S0 and S1 are written a block and added by `norm_gradients` in
// double precision.
#include "integrate.h"
#include "launch.h"

namespace ifan::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 4096;

// Columns that a thread takes at once, of POOL rows: 16 bytes where rows are aligned (WIDE), else one output.
template <class T, int POOL, bool WIDE>
constexpr int kColumns = WIDE ? 16 / int(sizeof(T)) : POOL;

struct Affine {
  float scale, shift, mean;
};

__device__ __forceinline__ Affine affine_of(const Integrate& call, int64_t lane, int64_t channel) {
  const int64_t at = task_of(call.segments, lane) * call.total + call.first + channel;
  const float scale = call.weight[at] / sqrtf(call.var[at] + call.eps);
  return {scale, call.bias[at] - call.mean[at] * scale, call.mean[at]};
}

// Where a block and its threads are: an item is kColumns columns of POOL rows.
template <class T, int POOL, bool WIDE>
struct Place {
  static constexpr int kWide = kColumns<T, POOL, WIDE>, kItems = kTile / (kWide * POOL), kEach = kItems / kThreads;
  unsigned plane, tile, tiles, channel, lane;  // lane: the source's row in backward
  int columns, items;

  __device__ explicit Place(const Integrate& call) {
    columns = static_cast<int>(call.width) / kWide;
    items = static_cast<int>(call.height / POOL) * columns;
    tiles = (items + kItems - 1) / kItems;
    plane = blockIdx.x / tiles;  // in 32 bits, as all divisions here: one in 64 is some hundred instructions
    tile = blockIdx.x % tiles;
    lane = plane / unsigned(call.channels);
    channel = plane % unsigned(call.channels);
  }
  __device__ int item(int k) const { return int(tile) * kItems + k * kThreads + int(threadIdx.x); }
};

template <class T, bool WIDE, int N>
__device__ __forceinline__ void load(const T* from, int64_t stride, float (&values)[N]) {
  if constexpr (WIDE) {
    load_wide<T, N>(from, values);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = widen(from[i * stride]);
  }
}

template <class T, bool WIDE, int N>
__device__ __forceinline__ void store(T* to, const float (&values)[N]) {
  if constexpr (WIDE) {
    store_wide<T, N>(to, values);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = narrow<T>(values[i]);
  }
}

template <class T, int POOL, bool WIDE>
__global__ void __launch_bounds__(kThreads) forward_kernel(const __grid_constant__ Integrate call) {
  using Here = Place<T, POOL, WIDE>;
  constexpr int N = Here::kWide;
  const Here here(call);
  const int64_t lane = here.lane, channel = here.channel;
  const int64_t row = call.rows ? call.rows[lane] : lane;
  const Affine by = affine_of(call, lane, channel);
  const T* x = static_cast<const T*>(call.x) + row * call.stride[0] + channel * call.stride[1];
  T* y = static_cast<T*>(call.y) + (lane * call.total + call.first + channel) * here.items * (N / POOL);
#pragma unroll
  for (int k = 0; k < Here::kEach; ++k) {
    const int item = here.item(k);
    if (item >= here.items) break;
    const int line = item / here.columns, column = item % here.columns * N;
    float sums[N / POOL] = {};
#pragma unroll
    for (int i = 0; i < POOL; ++i) {
      float values[N];
      load<T, WIDE>(x + (int64_t(line) * POOL + i) * call.stride[2] + column * call.stride[3], call.stride[3], values);
#pragma unroll
      for (int j = 0; j < N; ++j) sums[j / POOL] += fmaxf(values[j] * by.scale + by.shift, 0.f) * (1.f / (POOL * POOL));
    }
    store<T, WIDE>(y + int64_t(item) * (N / POOL), sums);
  }
}

template <class T, int POOL, bool WIDE>
__global__ void __launch_bounds__(kThreads) backward_kernel(const __grid_constant__ Integrate call) {
  using Here = Place<T, POOL, WIDE>;
  constexpr int N = Here::kWide;
  const Here here(call);
  const int64_t row = here.lane, channel = here.channel;
  const T* x = static_cast<const T*>(call.x) + row * call.stride[0] + channel * call.stride[1];
  float gradient[Here::kEach][POOL][N] = {};
  const int64_t end = call.rows ? call.lanes : min(row + 1, call.lanes);  // no lanes: rows may be null for every source
  for (int64_t lane = call.rows ? 0 : row; lane < end; ++lane) {
    if (call.rows && call.rows[lane] != row) continue;
    const Affine by = affine_of(call, lane, channel);
    const T* y = static_cast<const T*>(call.y) + (lane * call.total + call.first + channel) * here.items * (N / POOL);
    Pair sums = {0.f, 0.f};
#pragma unroll
    for (int k = 0; k < Here::kEach; ++k) {
      const int item = here.item(k);
      if (item >= here.items) break;
      const int line = item / here.columns, column = item % here.columns * N;
      float arriving[N / POOL];
      load<T, WIDE>(y + int64_t(item) * (N / POOL), 1, arriving);
#pragma unroll
      for (int i = 0; i < POOL; ++i) {
        float values[N];
        load<T, WIDE>(x + (int64_t(line) * POOL + i) * call.stride[2] + column * call.stride[3], call.stride[3],
                      values);
#pragma unroll
        for (int j = 0; j < N; ++j) {
          const float d = values[j] * by.scale + by.shift > 0.f ? arriving[j / POOL] * (1.f / (POOL * POOL)) : 0.f;
          gradient[k][i][j] += d * by.scale;
          sums.a += d;
          sums.b += d * (values[j] - by.mean);
        }
      }
    }
    sums = block_sum(sums);
    if (threadIdx.x == 0) {
      float* to = call.sums + ((lane * here.tiles + here.tile) * call.total + call.first + channel) * 2;
      to[0] = sums.a;
      to[1] = sums.b;
    }
  }
  T* to = static_cast<T*>(call.x_gradient) + int64_t(here.plane) * call.height * call.width;
#pragma unroll
  for (int k = 0; k < Here::kEach; ++k) {
    const int item = here.item(k);
    if (item >= here.items) break;
    const int line = item / here.columns, column = item % here.columns * N;
#pragma unroll
    for (int i = 0; i < POOL; ++i)
      store<T, WIDE>(to + (int64_t(line) * POOL + i) * call.width + column, gradient[k][i]);
  }
}

// kAbreast channels a block; kShares threads share a channel's sums, each every kShares-th, added in the shares' order.
constexpr int kAbreast = 32, kShares = kThreads / kAbreast;
struct Wide {
  double zero, one;
};

__global__ void __launch_bounds__(kThreads) norm_gradients_kernel(const __grid_constant__ NormGradients call) {
  SHARED_ARRAY(Wide, shares, kThreads);
  const unsigned index = blockIdx.x * kAbreast + threadIdx.x % kAbreast,
                 size = call.segments.count * unsigned(call.total);
  const unsigned task = index / unsigned(call.total);
  Wide sums = {0, 0};
  if (index < size) {
    const int64_t channel = index % unsigned(call.total), end = call.segments.ends[task] * call.tiles;
    for (int64_t part = (task ? call.segments.ends[task - 1] : 0) * call.tiles + threadIdx.x / kAbreast; part < end;
         part += kShares) {
      sums.zero += call.sums[(part * call.total + channel) * 2];
      sums.one += call.sums[(part * call.total + channel) * 2 + 1];
    }
  }
  shares[threadIdx.x] = sums;
  __syncthreads();  // before one thread a channel adds the shares
  if (threadIdx.x >= kAbreast || index >= size) return;
  for (int share = 1; share < kShares; ++share) {
    sums.zero += shares[share * kAbreast + threadIdx.x].zero;
    sums.one += shares[share * kAbreast + threadIdx.x].one;
  }
  const double inverse = 1.0 / sqrt(double(call.var[index]) + call.eps), scale = call.weight[index] * inverse;
  call.gradients[index] = static_cast<float>(sums.one * inverse);
  call.gradients[index + size] = static_cast<float>(sums.zero);
  call.gradients[index + size * 2] = static_cast<float>(-sums.zero * scale);
  call.gradients[index + size * 3] = static_cast<float>(-0.5 * sums.one * scale * inverse * inverse);
}

bool aligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

// A plane in one piece is one long row; says whether rows can be moved 16 bytes at a time.
bool flatten(Integrate& call, int64_t columns, int pool) {
  if (pool == 1 && (call.stride[3] == 1 || call.width == 1) && (call.stride[2] == call.width || call.height == 1)) {
    call.width *= call.height;
    call.height = 1;
    call.stride[3] = 1;
  }
  bool wide = aligned(call.x) && aligned(call.y) && aligned(call.x_gradient) && call.width % columns == 0 &&
              call.stride[3] == 1;
  for (int i = 0; i < 3; ++i) wide = wide && (call.stride[i] % columns == 0 || (i == 2 && call.height == 1));
  return wide;
}

template <class T, int POOL, bool WIDE>
int run(const Integrate& call, bool backward, uintptr_t stream) {
  using Here = Place<T, POOL, WIDE>;
  const int64_t items = call.height / POOL * (call.width / Here::kWide);
  const int64_t planes = (backward ? call.source_rows : call.lanes) * call.channels;
  const int threads = static_cast<int>(items < kThreads ? ceil_div(items, 32) * 32 : kThreads);
  const auto kernel = backward ? backward_kernel<T, POOL, WIDE> : forward_kernel<T, POOL, WIDE>;
  return launch(kernel, planes * ceil_div(items, Here::kItems), threads, stream, call);
}

int run(Integrate call, Dtype dtype, int pool, bool backward, uintptr_t stream) {
  if ((pool != 1 && pool != 2) || call.height * call.width > INT_MAX || call.total > INT_MAX / kMaxTasks)
    return cudaErrorInvalidValue;
  return with_type(dtype, [&](auto type) {
    using T = decltype(type);
    if (flatten(call, 16 / sizeof(T), pool))
      return pool == 1 ? run<T, 1, true>(call, backward, stream) : run<T, 2, true>(call, backward, stream);
    return pool == 1 ? run<T, 1, false>(call, backward, stream) : run<T, 2, false>(call, backward, stream);
  });
}

}  // namespace

int64_t integrate_tiles(int64_t height, int64_t width) { return ceil_div(height * width, kTile); }

int integrate_forward(const Integrate& call, Dtype dtype, int pool, uintptr_t stream) {
  return run(call, dtype, pool, false, stream);
}

int integrate_backward(const Integrate& call, Dtype dtype, int pool, uintptr_t stream) {
  return run(call, dtype, pool, true, stream);
}

int norm_gradients(const NormGradients& call, uintptr_t stream) {
  return launch(norm_gradients_kernel, ceil_div(call.segments.count * call.total, kAbreast), kThreads, stream, call);
}

}  // namespace ifan::cuda
