#include "integrate.h"

#include <cstdlib>

#include "runtime/thread_pool.h"

namespace ifan {
namespace IFAN_ISA {
namespace {

constexpr int64_t kRun = 512;           // values between two joins of the partial sums; also the row buffer
constexpr int64_t kLanes = 32;          // independent partial sums, which hide the latency of an addition
constexpr int64_t kThreadWork = 32768;  // values that are worth waking a thread for

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// NaN passes, as it does through PyTorch's ReLU.
float relu(float z) { return z < 0 ? 0 : z; }

struct Plan {
  const IntegrateCall* call;
  int64_t *task, *source, *channel;  // task of each lane; source of each channel and its place in there
};

bool make_plan(const IntegrateCall& call, Plan& plan) {
  plan.call = &call;
  plan.task = static_cast<int64_t*>(malloc((call.lanes + 2 * call.channels + 1) * sizeof(int64_t)));
  if (!plan.task) return false;
  plan.source = plan.task + call.lanes;
  plan.channel = plan.source + call.channels;
  for (int64_t t = 0, lane = 0; t < call.tasks; ++t)
    for (int64_t i = 0; i < call.segments[t]; ++i) plan.task[lane++] = t;
  for (int64_t s = 0, c = 0; s < call.count; ++s)
    for (int64_t k = 0; k < call.sources[s].channels; ++k, ++c) plan.source[c] = s, plan.channel[c] = k;
  return true;
}

const float* plane(const Plan& plan, int64_t lane, int64_t c) {
  const IntegrateSource& source = plan.call->sources[plan.source[c]];
  const int64_t row = source.per_sample ? plan.call->rows[lane] : lane;
  return source.data + row * source.lane_stride + plan.channel[c] * source.channel_stride;
}

void forward_planes(void* context, int64_t begin, int64_t end) {  // index: (lane, channel)
  const Plan& plan = *static_cast<const Plan*>(context);
  const IntegrateCall& call = *plan.call;
  const int64_t height = call.height, width = call.width, half = width / 2;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t lane = index / call.channels, c = index % call.channels, at = plan.task[lane] * call.channels + c;
    const float scale = call.scale[at], shift = call.shift[at], *x = plane(plan, lane, c);
    if (call.pool == 1) {
      float* y = call.out + index * height * width;
      for (int64_t i = 0; i < height * width; ++i) y[i] = relu(x[i] * scale + shift);
      continue;
    }
    float* y = call.out + index * (height / 2) * half;
    for (int64_t r = 0; r < height / 2; ++r) {
      const float *a = x + 2 * r * width, *b = a + width;
      float* row = y + r * half;
      for (int64_t j = 0; j < half; ++j)
        row[j] = 0.25f * ((relu(a[2 * j] * scale + shift) + relu(a[2 * j + 1] * scale + shift)) +
                          (relu(b[2 * j] * scale + shift) + relu(b[2 * j + 1] * scale + shift)));
    }
  }
}

struct Affine {
  float scale, shift, mean;
};

// One run of values: writes gx, adds to the two sums.
void backward_run(const float* x, const float* d, float* gx, int64_t n, Affine f, double* sums) {
  float first[kLanes] = {}, second[kLanes] = {};
  const int64_t whole = n - n % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) {
      const float v = x[i + j], e = v * f.scale + f.shift <= 0 ? 0 : d[i + j];
      first[j] += e;
      second[j] += e * (v - f.mean);
      gx[i + j] = e * f.scale;
    }
  for (int64_t i = whole; i < n; ++i) {
    const float v = x[i], e = v * f.scale + f.shift <= 0 ? 0 : d[i];
    first[i - whole] += e;
    second[i - whole] += e * (v - f.mean);
    gx[i] = e * f.scale;
  }
  for (int64_t j = 0; j < kLanes; ++j) sums[0] += first[j], sums[1] += second[j];
}

void backward_planes(void* context, int64_t begin, int64_t end) {  // index: (lane, channel)
  const Plan& plan = *static_cast<const Plan*>(context);
  const IntegrateCall& call = *plan.call;
  const int64_t height = call.height, width = call.width, pixels = height * width;
  float wide[kRun];
  for (int64_t index = begin; index < end; ++index) {
    const int64_t lane = index / call.channels, c = index % call.channels, at = plan.task[lane] * call.channels + c;
    const IntegrateSource& source = call.sources[plan.source[c]];
    const Affine f{call.scale[at], call.shift[at], call.mean[at]};
    const float* x = plane(plan, lane, c);
    float* gx = source.gradient + (lane * source.channels + plan.channel[c]) * pixels;
    double sums[2] = {0, 0};
    if (call.pool == 1) {
      const float* d = call.gradient + index * pixels;
      for (int64_t i = 0; i < pixels; i += kRun) backward_run(x + i, d + i, gx + i, least(kRun, pixels - i), f, sums);
    } else {
      const float* d = call.gradient + index * (pixels / 4);
      for (int64_t r = 0; r < height; ++r)
        for (int64_t i = 0; i < width; i += kRun) {
          const int64_t n = least(kRun, width - i);
          const float* row = d + (r / 2) * (width / 2) + i / 2;
          for (int64_t j = 0; j < n / 2; ++j) wide[2 * j] = wide[2 * j + 1] = 0.25f * row[j];
          backward_run(x + r * width + i, wide, gx + r * width + i, n, f, sums);
        }
    }
    call.sums[2 * index] = static_cast<float>(sums[0]);
    call.sums[2 * index + 1] = static_cast<float>(sums[1]);
  }
}

bool run(const IntegrateCall& call, Body body) {
  Plan plan;
  if (!make_plan(call, plan)) return false;
  const int64_t pixels = call.height * call.width, planes = call.lanes * call.channels;
  const int threads = static_cast<int>(least(call.threads, planes * pixels / kThreadWork + 1));
  parallel_for(planes, 1 + kThreadWork / 4 / pixels, threads, body, &plan);
  free(plan.task);
  return true;
}

}  // namespace

bool integrate_forward(const IntegrateCall& call) { return run(call, forward_planes); }
bool integrate_backward(const IntegrateCall& call) { return run(call, backward_planes); }

}  // namespace IFAN_ISA
}  // namespace ifan
