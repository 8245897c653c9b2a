// The masked multi-task loss; its gradients are made in the forward pass. For an element with weight w, smoothing s, K
// classes and label t:
//
//   loss = w (log sum exp z - (1 - s) z_t - s mean z)        gradient = w (softmax z - (1 - s) [k = t] - s / K)
//
// A thread takes a pixel and its classes one after another, twice: for the log sum exp, then for the gradient; what it
// reads the second time is in the cache. Where the labels are finer than the logits, a thread upsamples at its pixel
// and keeps the log sum exp only; then one thread a logit gathers the pixels that read it, so that nothing is added
// atomically. A classification is parsing of one image with a pixel a row. Sums: a thread, a block, a task, in order.
// Kept are the gradients of a task's weighted *sum*; `scale_kernel` multiplies them by what only the device knows.
#include <cfloat>
#include <cmath>

#include "hybrid_loss.h"
#include "launch.h"

namespace ifan::cuda {
namespace {

constexpr int kThreads = 256;

struct Tap {
  int low, high;
  float share;
};  // (1 - share) of logit `low` and share of logit `high`

// The logits a fine pixel reads along one axis, corners not aligned; in whole numbers, so that every thread agrees, and
// in 32 bits, which sizes up to kLongest allow: a division in 64 is some hundred instructions.
__device__ __forceinline__ Tap tap_of(unsigned at, unsigned size, unsigned fine) {
  const unsigned twice = (2 * at + 1) * size > fine ? (2 * at + 1) * size - fine : 0;
  const unsigned low = twice / (2 * fine), high = low + 1 < size ? low + 1 : size - 1;
  return {int(low), int(high), float(twice - low * 2 * fine) / float(2 * fine)};
}

__device__ __forceinline__ float lerp(float a, float b, float share) { return a + (b - a) * share; }

// One pixel's logits: as they are, or upsampled.
template <class T, bool FINE>
struct Pixel {
  const T* base;
  int64_t top, bottom, left, right, by_class;
  float down, across;

  __device__ Pixel(const CrossEntropy& call, int64_t image, unsigned y, unsigned x) {
    base = static_cast<const T*>(call.logits) + image * call.stride[0];
    by_class = call.stride[1];
    if constexpr (FINE) {
      const Tap row = tap_of(y, call.height, call.fine_height), column = tap_of(x, call.width, call.fine_width);
      top = row.low * call.stride[2], bottom = row.high * call.stride[2], down = row.share;
      left = column.low * call.stride[3], right = column.high * call.stride[3], across = column.share;
    } else {
      base += y * call.stride[2] + x * call.stride[3];
    }
  }
  __device__ __forceinline__ float operator[](int k) const {
    const T* z = base + k * by_class;
    if constexpr (!FINE) return widen(*z);
    return lerp(lerp(widen(z[top + left]), widen(z[top + right]), across),
                lerp(widen(z[bottom + left]), widen(z[bottom + right]), across), down);
  }
};

// A class, or one of these.
constexpr int kUnlabelled = -1, kNoClass = -2;

template <class Label>
__device__ __forceinline__ int label_at(const CrossEntropy& call, int64_t image, int64_t y, int64_t x) {
  const int64_t found = static_cast<const Label*>(
      call.labels)[image * call.label_stride[0] + y * call.label_stride[1] + x * call.label_stride[2]];
  if (found == call.ignored) return kUnlabelled;
  return found >= 0 && found < call.classes ? int(found) : kNoClass;
}

// The weight of a labelled pixel; a label that is no class, which cannot raise here, makes the loss NaN.
__device__ __forceinline__ float weight_of(const CrossEntropy& call, int label) {
  if (label == kNoClass) return NAN;
  return call.class_weights ? call.class_weights[label] : 1.f;
}

__device__ __forceinline__ float target_of(const CrossEntropy& call, int k, int label) {
  return (k == label ? 1.f - call.smoothing : 0.f) + call.smoothing / float(call.classes);
}

template <class T, class Label, bool FINE>
__global__ void __launch_bounds__(kThreads) cross_entropy_kernel(const __grid_constant__ CrossEntropy call) {
  const unsigned pixels = unsigned(call.fine_height * call.fine_width), blocks = (pixels + kThreads - 1) / kThreads;
  const unsigned pixel = blockIdx.x % blocks * kThreads + threadIdx.x, width = unsigned(call.fine_width);
  const int64_t image = blockIdx.x / blocks;
  Pair sums = {0.f, 0.f};
  if (pixel < pixels) {
    const unsigned y = pixel / width, x = pixel % width;
    const int label = label_at<Label>(call, image, y, x), classes = int(call.classes);
    const float weight = label == kUnlabelled ? 0.f : weight_of(call, label);
    const Pixel<T, FINE> z(call, image, y, x);
    float top = -FLT_MAX, sum = 0.f, wanted = 0.f;
    for (int k = 0; k < classes; ++k) {
      const float value = z[k], target = target_of(call, k, label), smaller = expf(-fabsf(value - top));
      sum = value > top ? sum * smaller + 1.f : sum + smaller;
      top = fmaxf(top, value);
      if (target != 0.f) wanted += value * target;  // a logit may be -inf
    }
    const float power = top + logf(sum);
    if (label != kUnlabelled) sums = {weight * (power - wanted), weight};
    if constexpr (FINE) {
      call.powers[image * pixels + pixel] = power;
    } else {
      T* to = static_cast<T*>(call.gradient) + image * call.gradient_stride[0] + y * call.gradient_stride[2] +
              x * call.gradient_stride[3];
      for (int k = 0; k < classes; ++k) {
        const float d = (expf(z[k] - power) - target_of(call, k, label)) * weight;
        to[k * call.gradient_stride[1]] = narrow<T>(label == kUnlabelled ? 0.f : d);
      }
    }
  }
  sums = block_sum(sums);
  if (threadIdx.x == 0) {
    call.sums[int64_t(blockIdx.x) * 2] = sums.a;
    call.sums[int64_t(blockIdx.x) * 2 + 1] = sums.b;
  }
}

// The first fine pixel that reads logit `index` along one axis; those after it follow until one does not.
__device__ __forceinline__ int first_reader(int index, int size, int fine) {
  const int twice = (2 * index - 1) * fine + size;
  return twice > 0 ? int(unsigned(twice) / unsigned(2 * size)) : 0;
}

// What of three neighbouring logits, the middle one being `index`, a fine pixel sees, and the middle one's share.
__device__ __forceinline__ float share_of(const Tap& tap, int index) {
  return (tap.low == index ? 1.f - tap.share : 0.f) + (tap.high == index ? tap.share : 0.f);
}
__device__ __forceinline__ float seen(const Tap& tap, int index, float before, float here, float after) {
  return tap.low == index ? lerp(here, after, tap.share) : lerp(before, here, tap.share);
}

template <class T>
__global__ void __launch_bounds__(kThreads) gather_kernel(const __grid_constant__ CrossEntropy call) {
  const int height = int(call.height), width = int(call.width), fine_height = int(call.fine_height),
            fine_width = int(call.fine_width);
  const unsigned pixels = height * width, blocks = (pixels + kThreads - 1) / kThreads;
  const unsigned plane = blockIdx.x / blocks, pixel = blockIdx.x % blocks * kThreads + threadIdx.x;
  if (pixel >= pixels) return;
  const int64_t image = plane / unsigned(call.classes);
  const int k = int(plane % unsigned(call.classes));
  const int i = int(pixel / unsigned(width)), j = int(pixel % unsigned(width));
  const T* logits = static_cast<const T*>(call.logits) + image * call.stride[0] + k * call.stride[1];
  float near[3][3];
#pragma unroll
  for (int a = 0; a < 3; ++a)
#pragma unroll
    for (int b = 0; b < 3; ++b) {
      const int64_t y = min(max(i + a - 1, 0), height - 1), x = min(max(j + b - 1, 0), width - 1);
      near[a][b] = widen(logits[y * call.stride[2] + x * call.stride[3]]);
    }
  float total = 0.f;
  for (int y = first_reader(i, height, fine_height); y < fine_height; ++y) {
    const Tap row = tap_of(y, height, fine_height);
    if (row.low > i) break;
    for (int x = first_reader(j, width, fine_width); x < fine_width; ++x) {
      const Tap column = tap_of(x, width, fine_width);
      if (column.low > j) break;
      const int label = label_at<uint8_t>(call, image, y, x);
      if (label == kUnlabelled) continue;
      const float z = seen(row, i, seen(column, j, near[0][0], near[0][1], near[0][2]),
                           seen(column, j, near[1][0], near[1][1], near[1][2]),
                           seen(column, j, near[2][0], near[2][1], near[2][2]));
      const float power = call.powers[(image * fine_height + y) * fine_width + x];
      const float share = share_of(row, i) * share_of(column, j);
      total += (expf(z - power) - target_of(call, k, label)) * weight_of(call, label) * share;
    }
  }
  static_cast<T*>(call.gradient)[image * call.gradient_stride[0] + k * call.gradient_stride[1] +
                                 i * call.gradient_stride[2] + j * call.gradient_stride[3]] = narrow<T>(total);
}

struct Slope {
  float loss, slope;
};

__device__ __forceinline__ Slope distance_loss(const Points& call, float d) {
  if (call.kind == 2) return {d * d, 2.f * d};
  if (d >= call.width) return {d - (call.kind == 0 ? call.offset : call.width * 0.5f), 1.f};
  if (call.kind == 0) return {call.width * log1pf(d / call.curvature), call.width / (call.curvature + d)};
  return {d * d / (2.f * call.width), d / call.width};
}

template <class T>
__global__ void __launch_bounds__(kThreads) points_kernel(const __grid_constant__ Points call) {
  const unsigned index = blockIdx.x * kThreads + threadIdx.x, count = unsigned(call.count);
  const int64_t b = index / count, p = index % count;
  Pair sums = {0.f, 0.f};
  if (b < call.batch) {
    const float weight = fmaxf(call.weights[b * call.weight_stride[0] + p * call.weight_stride[1]], 0.f);
    for (int xy = 0; xy < 2; ++xy) {
      float slope = 0.f;
      if (weight > 0.f) {  // an unlabelled point's target may be NaN: it is not even read
        const float point =
            widen(static_cast<const T*>(call.points)[b * call.stride[0] + xy * call.stride[1] + p * call.stride[2]]);
        const float away =
            point - call.targets[b * call.target_stride[0] + xy * call.target_stride[1] + p * call.target_stride[2]];
        const Slope found = distance_loss(call, fabsf(away));
        sums.a += weight * found.loss;
        slope = away == 0.f ? 0.f : copysignf(weight * found.slope, away);
      }
      static_cast<T*>(call.gradient)[(b * 2 + xy) * call.count + p] = narrow<T>(slope);
    }
    sums.b = weight;
  }
  sums = block_sum(sums);
  if (threadIdx.x == 0) {
    call.sums[int64_t(blockIdx.x) * 2] = sums.a;
    call.sums[int64_t(blockIdx.x) * 2 + 1] = sums.b;
  }
}

// One block: the tasks one after another.
__global__ void __launch_bounds__(kThreads) finish_kernel(const __grid_constant__ FinishLoss call) {
  float total = 0.f;
  for (int task = 0; task < call.blocks.count; ++task) {
    Pair sums = {0.f, 0.f};
    for (int part = (task ? call.blocks.ends[task - 1] : 0) + int(threadIdx.x); part < call.blocks.ends[task];
         part += kThreads) {
      sums.a += call.sums[int64_t(part) * 2];
      sums.b += call.sums[int64_t(part) * 2 + 1];
    }
    sums = block_sum(sums);
    if (threadIdx.x == 0) {
      const float divisor = call.denominators ? call.denominators[task] : sums.b;
      // A sum of NaN, from a label out of range, must not look like an unlabelled task.
      const float loss = divisor > 0.f || divisor != divisor ? sums.a / divisor : 0.f;
      call.losses[task] = loss;
      call.counts[task] = sums.b;
      call.divisors[task] = divisor;
      total += call.task_weights[task] * loss;
    }
  }
  if (threadIdx.x == 0) *call.total = total;
}

template <class T, bool WIDE>
__global__ void __launch_bounds__(kThreads) scale_kernel(const __grid_constant__ ScaleGradient call) {
  constexpr int N = WIDE ? 16 / sizeof(T) : 1;
  const int64_t element = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * N;
  if (element >= call.elements) return;
  const unsigned row = unsigned(call.columns.ends[call.columns.count - 1]);
  const int of_row = call.columns.count > 1 ? task_of(call.columns, unsigned(element) % row) : 0;
  const int task = call.first_task + of_row;
  const float divisor = call.divisors[task];
  const float arriving = *call.of_total * call.task_weights[task] + call.of_losses[task];
  const float factor = divisor > 0.f || divisor != divisor ? arriving / divisor : 0.f;
  const T* made = static_cast<const T*>(call.made) + element;
  T* to = static_cast<T*>(call.gradient) + element;
  if constexpr (WIDE) {
    float values[N];
    load_wide<T, N>(made, values);
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] *= factor;
    store_wide<T, N>(to, values);
  } else {
    *to = narrow<T>(widen(*made) * factor);
  }
}

}  // namespace

constexpr int64_t kLongest = 16384;  // of an image's sides

int64_t loss_blocks(int64_t batch, int64_t pixels) { return batch * ceil_div(pixels, kThreads); }

int cross_entropy(const CrossEntropy& call, Dtype dtype, bool byte_labels, uintptr_t stream) {
  if (call.powers &&
      (!byte_labels || max(max(call.height, call.width), max(call.fine_height, call.fine_width)) > kLongest))
    return cudaErrorInvalidValue;
  if (call.fine_height * call.fine_width > INT_MAX) return cudaErrorInvalidValue;
  return with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t blocks = loss_blocks(call.batch, call.fine_height * call.fine_width);
    if (!call.powers)
      return launch(byte_labels ? cross_entropy_kernel<T, uint8_t, false> : cross_entropy_kernel<T, int64_t, false>,
                    blocks, kThreads, stream, call);
    const int error = launch(cross_entropy_kernel<T, uint8_t, true>, blocks, kThreads, stream, call);
    if (error) return error;
    const int64_t planes = call.batch * call.classes;
    return launch(gather_kernel<T>, loss_blocks(planes, call.height * call.width), kThreads, stream, call);
  });
}

int points_loss(const Points& call, Dtype dtype, uintptr_t stream) {
  if (call.batch * call.count > INT_MAX) return cudaErrorInvalidValue;
  return with_type(dtype, [&](auto type) {
    return launch(points_kernel<decltype(type)>, loss_blocks(1, call.batch * call.count), kThreads, stream, call);
  });
}

int finish_loss(const FinishLoss& call, uintptr_t stream) { return launch(finish_kernel, 1, kThreads, stream, call); }

int scale_gradient(const ScaleGradient& call, Dtype dtype, uintptr_t stream) {
  if (call.columns.count > 1 && call.elements > INT_MAX) return cudaErrorInvalidValue;
  return with_type(dtype, [&](auto type) {
    using T = decltype(type);
    const bool wide = call.columns.count == 1 && call.elements % (16 / sizeof(T)) == 0 &&
                      (reinterpret_cast<uintptr_t>(call.made) | reinterpret_cast<uintptr_t>(call.gradient)) % 16 == 0;
    const int64_t items = call.elements / (wide ? 16 / int64_t(sizeof(T)) : 1);
    return launch(wide ? scale_kernel<T, true> : scale_kernel<T, false>, ceil_div(items, kThreads), kThreads, stream,
                  call);
  });
}

}  // namespace ifan::cuda
