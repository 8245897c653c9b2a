#include "encode_predictions.h"

#include "discs.h"
#include "elementary.h"
#include "runtime/thread_pool.h"

namespace ifan {
namespace IFAN_ISA {
namespace {

constexpr int64_t kThreadWork = 8192;  // values that are worth waking a thread for

template <typename Call>
int64_t planes_of(const Call& call) {
  int64_t planes = call.classes + call.points_count;
  for (int64_t t = 0; t < call.tasks; ++t) planes += call.sizes[t];
  return planes;
}

// Exponentials over their largest of n <= kWidth pixels' logits to `out`, planes `stride` apart in both; returns their
// sum.
Vec exponentials(const float* logits, float* out, int64_t classes, int64_t stride, int64_t n) {
  Vec most = load_first(logits, n), sum{};
  for (int64_t k = 1; k < classes; ++k) {
    const Vec v = load_first(logits + k * stride, n);
    most = v > most ? v : most;
  }
  for (int64_t k = 0; k < classes; ++k) {
    const Vec e = exponential(load_first(logits + k * stride, n) - most);
    sum += e;
    store_first(out + k * stride, e, n);
  }
  return sum;
}

void disc_row(const EncodePlanes& call, int64_t lane, int64_t p, int64_t y, float* out) {
  const float* point = call.points + lane * 2 * call.points_count + p;
  const float cx = centre(point[0], call.size),
              dy = static_cast<float>(y) - centre(point[call.points_count], call.size);
  for (int64_t x = 0; x < call.size; ++x) {
    const float dx = static_cast<float>(x) - cx;
    out[x] = dx * dx + dy * dy < static_cast<float>(call.radius * call.radius);
  }
}

void encode_rows(void* argument, int64_t begin, int64_t end) {  // index: (lane, row)
  const EncodePlanes& call = *static_cast<const EncodePlanes*>(argument);
  const int64_t size = call.size, pixels = size * size, planes = planes_of(call);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t lane = index / size, y = index % size;
    float* out = call.out + lane * planes * pixels + y * size;
    const float* logits = call.parsing + lane * call.classes * pixels + y * size;
    for (int64_t x = 0; call.classes && x < size; x += kWidth) {
      const int64_t n = min(kWidth, size - x);
      const Vec sum = exponentials(logits + x, out + x, call.classes, pixels, n);
      for (int64_t k = 0; k < call.classes; ++k) {
        float* e = out + k * pixels + x;
        store_first(e, load_first(e, n) / sum, n);
      }
    }
    out += call.classes * pixels;
    for (int64_t p = 0; p < call.points_count; ++p, out += pixels) disc_row(call, lane, p, y, out);
    for (int64_t t = 0; t < call.tasks; ++t) {
      const float* values = call.logits[t] + lane * call.strides[t];
      float most = call.sizes[t] ? values[0] : 0, sum = 0;
      for (int64_t k = 1; k < call.sizes[t]; ++k) most = values[k] > most ? values[k] : most;
      for (int64_t k = 0; k < call.sizes[t]; ++k) sum += expf(values[k] - most);
      for (int64_t k = 0; k < call.sizes[t]; ++k, out += pixels) {
        const float value = expf(values[k] - most) / sum;
        for (int64_t x = 0; x < size; ++x) out[x] = value;
      }
    }
  }
}

void backward_row(const EncodeBackward& call, int64_t lane, int64_t y, int64_t planes) {
  const int64_t size = call.size, pixels = size * size, at = lane * call.classes * pixels + y * size;
  for (int64_t x = 0; x < size; x += kWidth) {
    const int64_t n = min(kWidth, size - x);
    const float* g = call.gradient + lane * planes * pixels + y * size + x;
    float* out = call.parsing_gradient + at + x;
    const Vec sum = exponentials(call.parsing + at + x, out, call.classes, pixels, n);
    Vec dot{};
    for (int64_t k = 0; k < call.classes; ++k) dot += load_first(out + k * pixels, n) * load_first(g + k * pixels, n);
    dot /= sum;
    for (int64_t k = 0; k < call.classes; ++k)
      store_first(out + k * pixels, load_first(out + k * pixels, n) / sum * (load_first(g + k * pixels, n) - dot), n);
  }
}

double plane_sum(const float* g, int64_t size) {
  double sum = 0;
  for (int64_t y = 0; y < size; ++y, g += size) {
    Vec row{};
    for (int64_t x = 0; x < size; x += kWidth) row += load_first(g + x, min(kWidth, size - x));
    sum += sum_of(row);
  }
  return sum;
}

void backward_classes(const EncodeBackward& call, int64_t lane, int64_t planes) {
  const int64_t pixels = call.size * call.size, constant = planes - call.classes - call.points_count;
  const float* g = call.gradient + (lane * planes + call.classes + call.points_count) * pixels;
  const float* logits = call.logits + lane * constant;
  float* out = call.logits_gradient + lane * constant;
  for (int64_t t = 0; t < call.tasks; ++t) {
    const int64_t size = call.sizes[t];
    double most = size ? logits[0] : 0, sum = 0, dot = 0;
    for (int64_t k = 1; k < size; ++k) most = logits[k] > most ? static_cast<double>(logits[k]) : most;
    for (int64_t k = 0; k < size; ++k) {
      const double e = exp(logits[k] - most);
      out[k] = static_cast<float>(plane_sum(g + k * pixels, call.size));
      sum += e, dot += e * out[k];
    }
    for (int64_t k = 0; k < size; ++k) out[k] = static_cast<float>(exp(logits[k] - most) / sum * (out[k] - dot / sum));
    g += size * pixels, logits += size, out += size;
  }
}

void backward_lanes(void* argument, int64_t begin, int64_t end) {  // index: (lane, row), then lane
  const EncodeBackward& call = *static_cast<const EncodeBackward*>(argument);
  const int64_t planes = planes_of(call), rows = call.classes ? call.lanes * call.size : 0;
  for (int64_t index = begin; index < end; ++index)
    if (index < rows)
      backward_row(call, index / call.size, index % call.size, planes);
    else
      backward_classes(call, index - rows, planes);
}

}  // namespace

bool encode_planes(const EncodePlanes& call) {
  const int64_t values = planes_of(call) * call.size;
  const int threads = static_cast<int>(min(call.threads, call.lanes * call.size * values / kThreadWork + 1));
  parallel_for(call.lanes * call.size, 1 + kThreadWork / 4 / (values + 1), threads, encode_rows,
               const_cast<EncodePlanes*>(&call));
  return true;
}

bool encode_backward(const EncodeBackward& call) {
  const int64_t work = call.lanes * planes_of(call) * call.size * call.size;
  const int threads = static_cast<int>(min(call.threads, work / kThreadWork + 1));
  const int64_t rows = call.classes ? call.lanes * call.size : 0, constant = call.tasks ? call.lanes : 0;
  parallel_for(rows + constant, 1, threads, backward_lanes, const_cast<EncodeBackward*>(&call));
  return true;
}

}  // namespace IFAN_ISA
}  // namespace ifan
