#include "integrate.h"

#include "integrate_planes.h"
#include "runtime/thread_pool.h"

namespace ifan {
namespace IFAN_ISA {
namespace {

constexpr int64_t kThreadWork = 32768;  // values that are worth waking a thread for

struct Context {
  const IntegrateCall& call;
  const Plan& plan;
};

void forward_planes(void* context, int64_t begin, int64_t end) {  // index: (lane, channel)
  const auto& [call, plan] = *static_cast<const Context*>(context);
  const int64_t channels = call.x.channels, height = call.x.height, width = call.x.width;
  const int64_t averages = (height / call.pool) * (width / call.pool);
  const bool large = call.x.lanes * channels * averages >= kStreamed;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t lane = index / channels, c = index % channels, at = plan.task[lane] * channels + c;
    const Writer write(call.out + index * averages, width / call.pool, large);
    const float* x = plan.plane(lane, c);
    forward_plane(x, call.pool, height, width, call.scale[at], call.shift[at], write, x + kAhead);
  }
  finish_streams();
}

void backward_planes(void* context, int64_t begin, int64_t end) {  // index: (lane, channel)
  const auto& [call, plan] = *static_cast<const Context*>(context);
  const int64_t channels = call.x.channels, height = call.x.height, width = call.x.width, pixels = height * width;
  const bool large = call.x.lanes * channels * pixels >= kStreamed;
  const auto differentiate = [&](int64_t lane, int64_t c, auto write) {
    const int64_t index = lane * channels + c, at = plan.task[lane] * channels + c;
    const Affine f{call.scale[at], call.shift[at], call.mean[at]};
    const float *x = plan.plane(lane, c), *d = call.gradient + index * (pixels / (call.pool * call.pool));
    double sums[2] = {0, 0};
    visit_plane(
        x, d, call.pool, height, width, f, sums, [&](int64_t i, auto e, auto) { write(i, e * f.scale); }, x + kAhead);
    call.sums[2 * index] = static_cast<float>(sums[0]);
    call.sums[2 * index + 1] = static_cast<float>(sums[1]);
  };
  const auto repeats = [&](int64_t c,
                           int64_t s) {  // whether source s adds to the gradient of that which channel c belongs to
    return s > plan.source[c] && call.x.targets[s].data == plan.target(c).data;
  };
  for (int64_t index = begin; index < end; ++index) {
    const int64_t lane = index / channels, c = index % channels;
    if (plan.target(c).add)
      continue;  // done together with the channel that it repeats, while the caches hold both planes
    float* gradient = plan.gradient(lane, c);
    bool repeated = false;
    for (int64_t s = 0; s < call.x.count; ++s) repeated |= repeats(c, s);
    differentiate(lane, c, Writer(gradient, width, large && !repeated));
    for (int64_t s = 0, first = 0; repeated && s < call.x.count; first += call.x.sources[s++].channels)
      if (repeats(c, s))
        differentiate(lane, first + plan.channel[c], [=](int64_t i, auto v) { add_to(gradient + i, v); });
  }
  finish_streams();
}

bool run(const IntegrateCall& call, Body body) {
  const Plan plan(call.x);
  if (!plan.made()) return false;
  Context context{call, plan};
  const int64_t pixels = call.x.height * call.x.width, planes = call.x.lanes * call.x.channels;
  const int threads = static_cast<int>(min(call.threads, planes * pixels / kThreadWork + 1));
  parallel_for(planes, neighbours(planes, pixels, threads), threads, body, &context);
  return true;
}

}  // namespace

bool integrate_forward(const IntegrateCall& call) { return run(call, forward_planes); }
bool integrate_backward(const IntegrateCall& call) { return run(call, backward_planes); }

}  // namespace IFAN_ISA
}  // namespace ifan
