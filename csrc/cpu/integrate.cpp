#include "integrate.h"

#include <cstring>

#include "affine_relu.h"
#include "runtime/thread_pool.h"

namespace ifan {
namespace IFAN_ISA {
namespace {

constexpr int64_t kThreadWork = 32768;  // values that are worth waking a thread for

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

struct Context {
  const IntegrateCall& call;
  const Plan& plan;
};

void forward_planes(void* context, int64_t begin, int64_t end) {  // index: (lane, channel)
  const auto& [call, plan] = *static_cast<const Context*>(context);
  const int64_t channels = call.x.channels, height = call.x.height, width = call.x.width, half = width / 2;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t lane = index / channels, c = index % channels, at = plan.task[lane] * channels + c;
    const float scale = call.scale[at], shift = call.shift[at], *x = plan.plane(lane, c);
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

// A pooled row's gradient as that of each of its pixels: a quarter for each.
void widen(const float* d, int64_t n, float* out) {
  int64_t j = 0;
  for (; j + kWidth <= n; j += kWidth) {
    Vec twice[2];
    Doubled<kWidth>::split(0.25f * load(d + j), twice);
    store(out + 2 * j, twice[0]), store(out + 2 * j + kWidth, twice[1]);
  }
  for (; j < n; ++j) out[2 * j] = out[2 * j + 1] = 0.25f * d[j];
}

void backward_planes(void* context, int64_t begin, int64_t end) {  // index: (lane, channel)
  const auto& [call, plan] = *static_cast<const Context*>(context);
  const int64_t channels = call.x.channels, height = call.x.height, width = call.x.width, pixels = height * width;
  float wide[kRun];
  for (int64_t index = begin; index < end; ++index) {
    const int64_t lane = index / channels, c = index % channels, at = plan.task[lane] * channels + c;
    const Source& source = call.x.sources[plan.source[c]];
    const Affine f{call.scale[at], call.shift[at], call.mean[at]};
    const float* x = plan.plane(lane, c);
    float* gx = source.gradient + (lane * source.channels + plan.channel[c]) * pixels;
    double sums[2] = {0, 0};
    if (call.pool == 1) {
      const float* d = call.gradient + index * pixels;
      affine_relu_backward(x, d, gx, pixels, f, sums);
    } else {
      const float* d = call.gradient + index * (pixels / 4);
      for (int64_t begun = 0, n; begun < pixels; begun += n) {  // as many whole pairs of rows as a run holds, or a part of one row
        n = 2 * width <= kRun ? least(kRun / (2 * width) * 2 * width, pixels - begun) : least(kRun, width - begun % width);
        for (int64_t i = 0; i < n;) {
          const int64_t r = (begun + i) / width, column = (begun + i) % width, some = least(n - i, width - column);
          widen(d + (r / 2) * (width / 2) + column / 2, some / 2, wide + i);
          if (2 * width <= kRun) memcpy(wide + i + width, wide + i, width * sizeof(float)), i += width;
          i += some;
        }
        affine_relu_run(x + begun, wide, gx + begun, n, f, sums);
      }
    }
    call.sums[2 * index] = static_cast<float>(sums[0]);
    call.sums[2 * index + 1] = static_cast<float>(sums[1]);
  }
}

bool run(const IntegrateCall& call, Body body) {
  const Plan plan(call.x);
  if (!plan.made()) return false;
  Context context{call, plan};
  const int64_t pixels = call.x.height * call.x.width, planes = call.x.lanes * call.x.channels;
  const int threads = static_cast<int>(least(call.threads, planes * pixels / kThreadWork + 1));
  parallel_for(planes, 1 + kThreadWork / 4 / pixels, threads, body, &context);
  return true;
}

}  // namespace

bool integrate_forward(const IntegrateCall& call) { return run(call, forward_planes); }
bool integrate_backward(const IntegrateCall& call) { return run(call, backward_planes); }

}  // namespace IFAN_ISA
}  // namespace ifan
