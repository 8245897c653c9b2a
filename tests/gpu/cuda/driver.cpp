// Runs every kernel once on small arrays of their exact size, for AddressSanitizer and ThreadSanitizer; the values are
// compared elsewhere. Exits with 1 if an entry point reports an error or leaves an output unwritten.
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "cuda_types.h"
#include "dense_block.h"
#include "hybrid_loss.h"
#include "integrate.h"

using namespace ifan::cuda;

namespace {

std::mt19937 generator(1);
bool failed = false;

std::vector<float> random(int64_t n) {
  std::vector<float> x(n);
  for (float& value : x) value = 0.5f + std::uniform_real_distribution<float>()(generator);
  return x;
}
std::vector<__half> halves(int64_t n) {
  std::vector<__half> x(n);
  for (__half& value : x) value = __float2half(std::uniform_real_distribution<float>(-1, 1)(generator));
  return x;
}
std::vector<float> unset(int64_t n) { return std::vector<float>(n, std::numeric_limits<float>::quiet_NaN()); }

void expect(bool good, const char* what) {
  if (!good) failed = true, std::printf("wrong: %s\n", what);
}
void written(const std::vector<float>& x, const char* what) {
  bool whole = true;
  for (float value : x) whole = whole && !std::isnan(value);
  expect(whole, what);
}

void integrate_case(int64_t height, int64_t width, int pool) {
  const int64_t samples = 2, lanes = 3, channels = 2, pixels = height * width, tiles = integrate_tiles(height, width);
  const std::vector<float> x = random(samples * channels * pixels);
  const std::vector<float> norms[4] = {random(2 * channels), random(2 * channels), random(2 * channels),
                                       random(2 * channels)};
  const std::vector<int64_t> rows = {1, 0, 1};
  std::vector<float> y = unset(lanes * channels * pixels / pool / pool), gradient = unset(x.size());
  std::vector<float> sums = unset(lanes * tiles * channels * 2), of_norm = unset(8 * channels);
  Integrate call = {
      x.data(),        samples,         channels, height,      width,           {channels * pixels, pixels, width, 1},
      rows.data(),     lanes,           0,        channels,    norms[0].data(), norms[1].data(),
      norms[2].data(), norms[3].data(), 1e-3f,    {2, {1, 3}}, y.data(),        nullptr,
      nullptr};
  expect(integrate_forward(call, Dtype::float32, pool, 0) == 0, "integrate_forward");
  written(y, "integrate's output");
  call.x_gradient = gradient.data(), call.sums = sums.data();
  expect(integrate_backward(call, Dtype::float32, pool, 0) == 0, "integrate_backward");
  written(gradient, "integrate's gradient");
  const NormGradients of = {sums.data(), norms[0].data(), norms[3].data(), of_norm.data(),
                            tiles,       channels,        1e-3f,           {2, {1, 3}}};
  expect(norm_gradients(of, 0) == 0, "norm_gradients");
  written(of_norm, "the norm's gradients");
}

void loss_case(int64_t finer) {
  const int64_t batch = 2, classes = 3, side = 10, fine = side * finer, points = 70;
  const std::vector<float> logits = random(batch * classes * side * side), weights = random(classes),
                           places = random(batch * 2 * points);
  const std::vector<float> targets = random(batch * 2 * points), point_weights = random(batch * points),
                           two = random(2);
  std::vector<uint8_t> labels(batch * fine * fine);
  for (size_t i = 0; i < labels.size(); ++i) labels[i] = i % 5 == 4 ? 255 : i % 3;
  const int64_t parts[2] = {loss_blocks(batch, fine * fine), loss_blocks(1, batch * points)};
  std::vector<float> made[2] = {unset(logits.size()), unset(places.size())}, powers = unset(labels.size());
  std::vector<float> sums = unset((parts[0] + parts[1]) * 2), result = unset(7), scaled = unset(logits.size());
  CrossEntropy call = {logits.data(),
                       batch,
                       classes,
                       side,
                       side,
                       {classes * side * side, side * side, side, 1},
                       labels.data(),
                       {fine * fine, fine, 1},
                       fine,
                       fine,
                       weights.data(),
                       0.1f,
                       255,
                       made[0].data(),
                       {classes * side * side, side * side, side, 1},
                       finer > 1 ? powers.data() : nullptr,
                       sums.data()};
  expect(cross_entropy(call, Dtype::float32, true, 0) == 0, "cross_entropy");
  Points at = {places.data(),
               targets.data(),
               point_weights.data(),
               made[1].data(),
               sums.data() + parts[0] * 2,
               batch,
               points,
               {2 * points, points, 1},
               {2 * points, points, 1},
               {points, 1},
               0,
               0.1f,
               0.02f,
               0.05f};
  expect(points_loss(at, Dtype::float32, 0) == 0, "points_loss");
  FinishLoss finish = {sums.data(), two.data(), nullptr,    &result[0],
                       &result[1],  &result[3], &result[5], {2, {int(parts[0]), int(parts[0] + parts[1])}}};
  expect(finish_loss(finish, 0) == 0, "finish_loss");
  ScaleGradient scale = {
      made[0].data(), scaled.data(), int64_t(scaled.size()), &result[0], &result[1], two.data(), &result[5], 0,
      {1, {1}}};
  expect(scale_gradient(scale, Dtype::float32, 0) == 0, "scale_gradient");
  for (const auto& x : {made[0], made[1], sums, result, scaled}) written(x, "the loss");
}

void dense_case() {
  const int64_t lanes = 2, channels = 17, outputs = 12, height = 9, width = 5, pixels = height * width;
  const std::vector<__half> x = halves(lanes * channels * pixels), filters = halves(9 * outputs * channels);
  std::vector<__half> y(lanes * outputs * pixels, __half{0x7fff});
  const std::vector<float> norms[4] = {random(channels), random(channels), random(channels), random(channels)};
  DenseLayer call = {};
  call.sources[0] = {x.data(), channels, {channels * pixels, pixels, width, 1}, nullptr};
  call.count = 1, call.lanes = lanes, call.channels = channels, call.height = height, call.width = width,
  call.outputs = outputs;
  call.weight = norms[0].data(), call.bias = norms[1].data(), call.mean = norms[2].data(), call.var = norms[3].data();
  call.eps = 1e-3f, call.segments = {1, {2}}, call.filters = filters.data(), call.y = y.data();
  call.y_stride[0] = outputs * pixels, call.y_stride[1] = pixels;
  expect(dense_layer(call, Dtype::float16, 0) == 0, "dense_layer");
  std::vector<float> found;
  for (__half value : y) found.push_back(__half2float(value));
  written(found, "the layer");
}

}  // namespace

int main() {
  integrate_case(4, 4, 1);
  integrate_case(12, 16, 2);
  integrate_case(6, 7, 1);
  loss_case(1);
  loss_case(2);
  dense_case();
  std::puts(failed ? "failed" : "passed");
  return failed;
}
