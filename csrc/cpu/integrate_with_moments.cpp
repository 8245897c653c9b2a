#include "integrate_with_moments.h"

#include <math.h>

#include <atomic>

#include "integrate_planes.h"
#include "runtime/thread_pool.h"

namespace ifan {
namespace IFAN_ISA {
namespace {

constexpr int64_t kThreadWork = 32768;  // values that are worth waking a thread for

template <typename Call>
struct Context {
  const Call& call;
  const Plan& plan;
  std::atomic<bool> failed{false};
};

// One channel of one task.
struct Piece {
  int64_t at, channel, first, end;  // place in (tasks, channels); lanes [first, end)

  Piece(const Concatenation& x, int64_t index) : at(index), channel(index % x.channels), first(0) {
    const int64_t task = index / x.channels;
    for (int64_t t = 0; t < task; ++t) first += x.segments[t];
    end = first + x.segments[task];
  }

  // The plane of the next piece that stands where this one has a lane's: what the second look at the lane asks for, while memory has
  // little else to do. Behind the last piece it is of no use.
  const float* behind(const Plan& plan, int64_t lane) const {
    const Piece next(*plan.x, least(at + 1, plan.x->tasks * plan.x->channels - 1));
    const int64_t other = next.first + lane - first;
    return other < next.end ? plan.plane(other, next.channel) : plan.plane(lane, channel);
  }
};

float inverse_deviation(float var, float eps) { return 1 / sqrtf(var + eps); }

// Joins the chunks of all lanes in their order, as channel_moments.cpp does. `partial`: room for them.
Moments moments_of_piece(const Plan& plan, const Piece& piece, Moments* partial) {
  const int64_t pixels = plan.x->height * plan.x->width, chunks = (pixels + kPlaneChunk - 1) / kPlaneChunk;
  const int64_t count = (piece.end - piece.first) * chunks;
  const double n = static_cast<double>((piece.end - piece.first) * pixels);
  const auto size = [&](int64_t i) { return least(kPlaneChunk, pixels - i % chunks * kPlaneChunk); };
  Moments joint{0, count ? 0. : 1.};
  const auto chunk = [&](int64_t i) { return plan.plane(piece.first + i / chunks, piece.channel) + i % chunks * kPlaneChunk; };
  for (int64_t i = 0; i < count; ++i) {
    partial[i] = moments_of(chunk(i), size(i), chunk(least(i + 1, count - 1)));
    joint.mean += size(i) / n * partial[i].mean;
  }
  for (int64_t i = 0; i < count; ++i) {
    const double d = partial[i].mean - joint.mean;
    joint.square += (partial[i].square + size(i) * d * d) / n;
  }
  return {joint.mean, joint.square < 0 ? 0 : joint.square};
}

void forward_pieces(void* context, int64_t begin, int64_t end) {  // index: (task, channel)
  auto& [call, plan, failed] = *static_cast<Context<IntegrateWithMomentsForward>*>(context);
  const Concatenation& x = call.shared.x;
  const int pool = call.shared.pool;
  const int64_t pixels = x.height * x.width, averages = pixels / (pool * pool), chunks = (pixels + kPlaneChunk - 1) / kPlaneChunk;
  const bool large = x.lanes * x.channels * averages >= kStreamed;
  Moments* partial = reinterpret_cast<Moments*>(scratch(x.lanes * chunks * (sizeof(Moments) / sizeof(float)) + 1));
  if (!partial) {
    failed = true;
    return;
  }
  for (int64_t index = begin; index < end; ++index) {
    const Piece piece(x, index);
    const Moments moments = moments_of_piece(plan, piece, partial);
    const float mean = call.mean[index] = static_cast<float>(moments.mean), var = call.var[index] = static_cast<float>(moments.square);
    const float scale = call.shared.weight[index] * inverse_deviation(var, call.shared.eps), shift = call.shared.bias[index] - mean * scale;
    for (int64_t lane = piece.first; lane < piece.end; ++lane)
      forward_plane(plan.plane(lane, piece.channel), pool, x.height, x.width, scale, shift,
                    Writer(call.out + (lane * x.channels + piece.channel) * averages, x.width / pool, large), piece.behind(plan, lane));
  }
  finish_streams();
}

void backward_pieces(void* context, int64_t begin, int64_t end) {  // index: (task, channel)
  auto& [call, plan, failed] = *static_cast<Context<IntegrateWithMomentsBackward>*>(context);
  const Concatenation& x = call.shared.x;
  const int pool = call.shared.pool;
  const int64_t pixels = x.height * x.width;
  const bool large = x.lanes * x.channels * pixels >= kStreamed;
  for (int64_t index = begin; index < end; ++index) {
    const Piece piece(x, index);
    const float inverse = inverse_deviation(call.var[index], call.shared.eps), scale = call.shared.weight[index] * inverse;
    const Affine f{scale, call.shared.bias[index] - call.mean[index] * scale, call.mean[index]};
    const auto visit = [&](int64_t lane, double* sums, auto write, const float* next) {
      const float* d = call.gradient + (lane * x.channels + piece.channel) * (pixels / (pool * pool));
      visit_plane(plan.plane(lane, piece.channel), d, pool, x.height, x.width, f, sums, write, next);
    };
    double sums[2] = {0, 0};
    for (int64_t lane = piece.first; lane < piece.end; ++lane)
      visit(lane, sums, [](int64_t, auto, auto) {}, plan.plane(lane, piece.channel) + kAhead);
    call.bias_gradient[index] = static_cast<float>(sums[0]);
    call.weight_gradient[index] = static_cast<float>(sums[1] * inverse);
    const double n = static_cast<double>((piece.end - piece.first) * pixels);
    const float offset = static_cast<float>((call.mean_gradient[index] - sums[0] * scale) / n);
    const float slope = static_cast<float>(2 * (call.var_gradient[index] - sums[1] * scale * inverse * inverse / 2) / n);
    for (int64_t lane = piece.first; lane < piece.end; ++lane) {
      const Writer write(plan.gradient(lane, piece.channel), x.width, large);
      double unused[2] = {0, 0};
      const auto differentiate = [&](int64_t i, auto e, auto deviation) { write(i, e * scale + (deviation * slope + offset)); };
      visit(lane, unused, differentiate, piece.behind(plan, lane));
    }
  }
  finish_streams();
}

template <typename Call>
bool run(const Call& call, Body body) {
  const Concatenation& x = call.shared.x;
  const Plan plan(x);
  if (!plan.made()) return false;
  Context<Call> context{call, plan};
  const int64_t pieces = x.tasks * x.channels, values = x.lanes * x.channels * x.height * x.width;
  const int threads = static_cast<int>(least(call.shared.threads, values / kThreadWork + 1));
  parallel_for(pieces, neighbours(pieces, x.height * x.width, threads), threads, body, &context);
  return !context.failed;
}

}  // namespace

bool integrate_with_moments_forward(const IntegrateWithMomentsForward& call) { return run(call, forward_pieces); }
bool integrate_with_moments_backward(const IntegrateWithMomentsBackward& call) { return run(call, backward_pieces); }

}  // namespace IFAN_ISA
}  // namespace ifan
