#include "feedback.h"

#include <math.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "discs.h"
#include "elementary.h"
#include "runtime/scratch.h"
#include "runtime/thread_pool.h"
#include "simd.h"

namespace ifan {
namespace IFAN_ISA {
namespace {

// Row y of a plane to the inside of its border.
template <typename Value>
void write_row(const Border& border, float* plane, int64_t y, int64_t size, Value value) {
  float* row = plane + (y + border.top) * border.row;
  if (!border.split) {
    for (int64_t x = 0; x < size; ++x) row[x + border.left] = value(x);
    return;
  }
  for (int64_t x = 0; x < size; ++x) row[(x + border.left) % 2 * border.half + (x + border.left) / 2] = value(x);
}

void image_planes(void* argument, int64_t begin, int64_t end) {  // index: (lane, colour, row and column in a block)
  const PrepareImage& call = *static_cast<const PrepareImage*>(argument);
  const int64_t fold = call.fold, side = call.size * fold;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t column = index % fold, row = index / fold % fold, colour = index / (fold * fold) % 3,
                  lane = index / (3 * fold * fold);
    const uint8_t* first = call.images + ((3 * lane + 2 - colour) * side + row) * side + column;
    const float mean = call.mean[colour], scale = call.scale;
    for (int64_t y = 0; y < call.size; ++y)
      write_row(call.border, call.out + index * call.border.plane, y, call.size,
                [=](int64_t x) { return (static_cast<float>(first[(y * side + x) * fold]) - mean) * scale; });
  }
}

void bordered_planes(void* argument, int64_t begin, int64_t end) {  // index: (lane, plane)
  const AddBorder& call = *static_cast<const AddBorder*>(argument);
  for (int64_t index = begin; index < end; ++index) {
    const float* x = call.x + index / call.planes * call.lane_stride + index % call.planes * call.size * call.size;
    for (int64_t y = 0; y < call.size; ++y)
      write_row(call.border, call.out + index * call.border.plane, y, call.size,
                [=](int64_t i) { return x[y * call.size + i]; });
  }
}

constexpr int64_t kStem = 7, kReach = kStem / 2;

void class_shares(void* argument, int64_t begin, int64_t end) {  // index: (lane, output)
  const StemShares& call = *static_cast<const StemShares*>(argument);
  const int64_t size = call.size, pixels = size * size;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t lane = index / call.outputs, o = index % call.outputs;
    float sums[kStem * kStem] = {};
    for (int64_t c = 0; c < call.classes_count; ++c) {
      const float value = call.classes[lane * call.lane_stride + c * pixels];
      const float* table = call.by_border + (c * call.outputs + o) * kStem * kStem;
      for (int64_t i = 0; i < kStem * kStem; ++i) sums[i] += value * table[i];
    }
    const auto border = [&](int64_t i) { return i < kReach ? i : i >= size - kReach ? i - size + kStem : kReach; };
    for (int64_t y = 0; y < size; ++y) {
      const float *row = sums + border(y) * kStem, *share = call.share + index * pixels + y * size;
      float* out = call.out + index * pixels + y * size;
      for (int64_t x = 0; x < kReach; ++x) out[x] = share[x] + row[x];
      for (int64_t x = kReach; x < size - kReach; ++x) out[x] = share[x] + row[kReach];
      for (int64_t x = size - kReach; x < size; ++x) out[x] = share[x] + row[border(x)];
    }
  }
}

template <typename Call>
struct MayFail {
  const Call& call;
  std::atomic<bool> failed{false};
};

// One point's disc through its filters, to sums [row][column][output] of `side` x `side` pixels whose first is (left,
// top).
void add_disc(const StemShares& call, const float* filters, int64_t cx, int64_t cy, int64_t side, float* sums) {
  const int64_t radius = call.radius, outputs = call.outputs;
  for (int64_t dy = 1 - radius; dy < radius; ++dy)
    for (int64_t dx = 1 - radius; dx < radius; ++dx) {
      if (dx * dx + dy * dy >= radius * radius) continue;
      if (cx + dx < 0 || cx + dx >= call.size || cy + dy < 0 || cy + dy >= call.size) continue;
      for (int64_t k = 0; k < kStem * kStem;
           ++k) {  // input (y, x) meets tap (ky, kx) at output (y - ky + 3, x - kx + 3)
        const int64_t y = dy + radius - 1 + 2 * kReach - k / kStem, x = dx + radius - 1 + 2 * kReach - k % kStem;
        float* sum = sums + (y * side + x) * outputs;
        for (int64_t o = 0; o < outputs; ++o) sum[o] += filters[k * outputs + o];
      }
    }
}

void disc_shares(void* argument, int64_t begin, int64_t end) {  // index: lane
  auto& context = *static_cast<MayFail<StemShares>*>(argument);
  const StemShares& call = context.call;
  const int64_t size = call.size, outputs = call.outputs, reach = call.radius - 1 + kReach, side = 2 * reach + 1;
  float* sums = scratch(side * side * outputs);
  if (!sums) {
    context.failed = true;
    return;
  }
  for (int64_t lane = begin; lane < end; ++lane)
    for (int64_t p = 0; p < call.points_count; ++p) {
      const float* point = call.points + lane * 2 * call.points_count + p;
      const float x = centre(point[0], size), y = centre(point[call.points_count], size),
                  far = static_cast<float>(size + reach);
      if (!(x > -far && x < 2 * far && y > -far && y < 2 * far))
        continue;  // nothing of it in the picture; NaN draws nothing
      const int64_t cx = static_cast<int64_t>(x), cy = static_cast<int64_t>(y), left = cx - reach, top = cy - reach;
      memset(sums, 0, side * side * outputs * sizeof(float));
      add_disc(call, call.filters + p * kStem * kStem * outputs, cx, cy, side, sums);
      const int64_t first_x = left < 0 ? 0 : left, last_x = left + side < size ? left + side : size;
      const int64_t first_y = top < 0 ? 0 : top, last_y = top + side < size ? top + side : size;
      for (int64_t o = 0; o < outputs; ++o) {
        float* out = call.out + (lane * outputs + o) * size * size;
        for (int64_t v = first_y; v < last_y; ++v)
          for (int64_t u = first_x; u < last_x; ++u)
            out[v * size + u] += sums[((v - top) * side + u - left) * outputs + o];
      }
    }
}

void constant_maps(void* argument, int64_t begin, int64_t end) {  // index: (lane, channel of a map)
  const ClassMaps& call = *static_cast<const ClassMaps*>(argument);
  const int64_t width = call.width;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t lane = index / width, own = index % width;
    const float* input = call.planes + lane * call.lane_stride;
    // The first two maps are recomputed for every channel: some hundred products.
    const auto map = [&](const float* weight, int64_t o, auto value) {
      float sum = 0;
      for (int64_t i = 0; i < width; ++i) sum += weight[o * width + i] * value(i);
      return relu(sum);
    };
    const auto first = [&](int64_t o) {
      return map(call.weights[0], o, [&](int64_t i) { return input[i * call.plane_stride]; });
    };
    const auto second = [&](int64_t o) { return map(call.weights[1], o, first); };
    const float values[3] = {first(own), second(own), map(call.weights[2], own, second)};
    for (int level = 0; level < 3; ++level) {
      const int64_t pixels = call.sizes[level] * call.sizes[level];
      float* out = call.maps[level] + (lane * width + own) * pixels;
      for (int64_t i = 0; i < pixels; ++i) out[i] = values[level];
    }
  }
}

void pooled_planes(void* argument, int64_t begin, int64_t end) {
  const MaxPool& call = *static_cast<const MaxPool*>(argument);
  const int64_t width = call.width;
  for (int64_t index = begin; index < end; ++index)
    for (int64_t y = 0; y < call.height; ++y) {
      const float *a = call.x + (index * call.height + y) * 4 * width, *b = a + 2 * width;
      float* out = call.out + (index * call.height + y) * width;
      for (int64_t x = 0; x < width; ++x) {
        const float s = a[2 * x] > a[2 * x + 1] ? a[2 * x] : a[2 * x + 1],
                    t = b[2 * x] > b[2 * x + 1] ? b[2 * x] : b[2 * x + 1];
        out[x] = s > t ? s : t;
      }
    }
}

void added_lanes(void* argument, int64_t begin, int64_t end) {
  const AddShared& call = *static_cast<const AddShared*>(argument);
  for (int64_t lane = begin; lane < end; ++lane)
    for (int64_t i = 0; i < call.values; ++i)
      call.out[lane * call.values + i] = call.x[lane * call.values + i] + call.y[i];
}

struct HeadContext {
  const DenseHead& call;
  const Plan& plan;
};

void head_outputs(void* argument, int64_t begin, int64_t end) {  // index: (lane, output)
  const auto& [call, plan] = *static_cast<const HeadContext*>(argument);
  const int64_t channels = call.x.channels, pixels = call.x.height * call.x.width;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t lane = index / call.outputs, j = index % call.outputs;
    const float* weight = call.weight + j * channels * pixels;
    Vec sum{};
    double total = call.bias[j];
    for (int64_t c = 0; c < channels; ++c, weight += pixels) {
      const float* x = plan.plane(lane, c);
      int64_t i = 0;
      for (; i + kWidth <= pixels; i += kWidth) sum += load(x + i) * load(weight + i);
      for (; i < pixels; ++i) total += x[i] * weight[i];
      if (c % 8 == 7 || c == channels - 1) {  // short partial sums in single precision
        for (int l = 0; l < kWidth; ++l) total += sum[l];
        sum = Vec{};
      }
    }
    call.out[index] = static_cast<float>(total);
  }
}

// sums = a map of `side` x `side` pixels + `coarse`, of half that side, enlarged. (The Axis of upsampling.h orders
// pixels by phase.)
void enlarge(const float* coarse, const float* map, int64_t side, float* row, float* sums) {
  const int64_t half = side / 2;
  const auto beside = [half](int64_t i) {
    return i % 2 ? std::min(i / 2 + 1, half - 1) : std::max(i / 2 - 1, int64_t{0});
  };
  for (int64_t y = 0; y < side; ++y, map += side, sums += side) {
    const float *near = coarse + y / 2 * half, *far = coarse + beside(y) * half;
    for (int64_t i = 0; i < half; ++i) row[i] = 0.75f * near[i] + 0.25f * far[i];
    for (int64_t x = 0; x < side; ++x) sums[x] = map[x] + 0.75f * row[x / 2] + 0.25f * row[beside(x)];
  }
}

// The mean of the distribution over size x size pixels that `heat` is the logarithm of, up to a constant.
void mean_place(const float* heat, int64_t size, float* x, float* y) {
  Vec most = load(heat);
  for (int64_t i = 0; i < size * size; i += kWidth) most = load(heat + i) > most ? load(heat + i) : most;
  float top = most[0];
  for (int l = 1; l < kWidth; ++l) top = std::max(top, most[l]);
  Vec column{};
  for (int l = 0; l < kWidth; ++l) column[l] = static_cast<float>(l);
  double mass = 0, along = 0, down = 0;
  for (int64_t v = 0; v < size; ++v) {
    Vec sum{}, moment{};
    for (int64_t u = 0; u < size; u += kWidth) {
      const Vec p = exponential(load(heat + v * size + u) - top);
      sum += p, moment += p * (column + static_cast<float>(u));
    }
    double row = 0;
    for (int l = 0; l < kWidth; ++l) row += sum[l], along += moment[l];
    mass += row, down += row * static_cast<double>(v);
  }
  const double side = static_cast<double>(size);
  *x = static_cast<float>((along / mass + 0.5) / side - 0.5);
  *y = static_cast<float>((down / mass + 0.5) / side - 0.5);
}

void heat_means(void* argument, int64_t begin, int64_t end) {  // index: (lane, point)
  auto& context = *static_cast<MayFail<HeatMaps>*>(argument);
  const HeatMaps& call = context.call;
  const int64_t pixels = call.size * call.size;
  float* memory = scratch(2 * pixels + call.size);
  if (!memory) {
    context.failed = true;
    return;
  }
  for (int64_t index = begin; index < end; ++index) {
    float *coarse = memory, *sums = memory + pixels;
    for (int64_t level = call.levels - 1; level >= 0; --level) {
      const int64_t side = call.size >> level;
      const float* map = call.maps[level] + index * side * side;
      if (level == call.levels - 1)
        memcpy(sums, map, side * side * sizeof(float));
      else
        enlarge(coarse, map, side, memory + 2 * pixels, sums);
      std::swap(coarse, sums);
    }
    float* out = call.out + index / call.points * 2 * call.points + index % call.points;
    mean_place(coarse, call.size, out, out + call.points);
  }
}

template <typename Call>
bool run(const Call& call, int64_t count, Body body) {
  parallel_for(count, 1, call.threads, body, const_cast<Call*>(&call));
  return true;
}

}  // namespace

bool prepare_image(const PrepareImage& call) { return run(call, 3 * call.fold * call.fold * call.lanes, image_planes); }
bool add_border(const AddBorder& call) { return run(call, call.lanes * call.planes, bordered_planes); }
bool stem_shares(const StemShares& call) {
  run(call, call.lanes * call.outputs, class_shares);
  MayFail<StemShares> context{call};
  if (call.points_count) parallel_for(call.lanes, 1, call.threads, disc_shares, &context);
  return !context.failed;
}

bool class_maps(const ClassMaps& call) { return run(call, call.lanes * call.width, constant_maps); }
bool max_pool(const MaxPool& call) { return run(call, call.planes, pooled_planes); }
bool add_shared(const AddShared& call) { return run(call, call.lanes, added_lanes); }

bool dense_head(const DenseHead& call) {
  const Plan plan(call.x);
  if (!plan.made()) return false;
  HeadContext context{call, plan};
  parallel_for(call.x.lanes * call.outputs, 1, call.threads, head_outputs, &context);
  return true;
}

bool heat_maps(const HeatMaps& call) {
  MayFail<HeatMaps> context{call};
  parallel_for(call.lanes * call.points, 1, call.threads, heat_means, &context);
  return !context.failed;
}

}  // namespace IFAN_ISA
}  // namespace ifan
