// Runs each native kernel without Python and compares it with a scalar computation in double precision.
//
//   driver [--threads N] [--callers N] [--only-run] [case ...]
//
// Compiled for one instruction set (-DIFAN_ISA): under valgrind for instruction counts, with a sanitizer, or for
// another processor under an emulator. Prints a line a case; exits 1 if one is wrong. --only-run leaves the comparison
// out; with
// --callers, several threads call the kernels at once.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include "channel_moments.h"
#include "convolution.h"
#include "direct.h"
#include "encode_predictions.h"
#include "feedback.h"
#include "integrate.h"
#include "small_maps.h"
#include "values.h"

#if __has_include(<valgrind/callgrind.h>)
#include <valgrind/callgrind.h>
#else
#define CALLGRIND_ZERO_STATS
#define CALLGRIND_DUMP_STATS_AT(name)
#endif

using namespace ifan;
namespace kernels = ifan::IFAN_ISA;

namespace {

int threads = 1;
bool compare = true;

thread_local const char* current = "";  // the case

// Calls a kernel twice; valgrind writes down what the second call took, when functions are bound and buffers are there.
template <typename Kernel>
void run(Kernel kernel) {
  kernel();
  CALLGRIND_ZERO_STATS;
  const bool enough = kernel();
  CALLGRIND_DUMP_STATS_AT(current);
  if (!enough) std::fprintf(stderr, "driver: out of memory\n"), std::exit(1);
}

double worst(std::initializer_list<double> errors) { return std::max(errors); }

// (5, 37, 19, 33), task by task, by plain loops.
struct Moments {
  const int64_t shape[4] = {Sample::lanes, 37, 19, 33}, pixels = shape[2] * shape[3],
                strides[4] = {37 * pixels, pixels, 33, 1};
  const int64_t segments[3] = {2, 0, 3}, count = 3 * shape[1];
  Values x = draw(shape[0] * strides[0]), mean = unwritten(count), var = unwritten(count);
  Exact exact_mean = Exact(count, 0), exact_var = Exact(count, 1);

  Moments() {
    for (int64_t t = 0, first = 0; t < 3; first += segments[t++])
      for (int64_t c = 0; c < shape[1] && segments[t]; ++c) {
        double sum = 0, squares = 0;
        const int64_t n = segments[t] * pixels;
        const auto value = [&](int64_t i) { return x[(first + i / pixels) * strides[0] + c * pixels + i % pixels]; };
        for (int64_t i = 0; i < n; ++i) sum += value(i);
        for (int64_t i = 0; i < n; ++i) squares += (value(i) - sum / n) * (value(i) - sum / n);
        exact_mean[t * shape[1] + c] = sum / n, exact_var[t * shape[1] + c] = squares / n;
      }
  }
};

double moments_forward() {
  Moments m;
  MomentsForward call{m.x.data(), Dtype::float32, {}, {}, m.segments, 3, m.mean.data(), m.var.data(), threads};
  std::copy_n(m.shape, 4, call.shape), std::copy_n(m.strides, 4, call.strides);
  run([&] { return kernels::channel_moments_forward(call); });
  return worst({error(m.mean, m.exact_mean), error(m.var, m.exact_var)});
}

double moments_backward() {
  Moments m;
  const Values mean(m.exact_mean.begin(), m.exact_mean.end()), of_mean = draw(m.count), of_var = draw(m.count);
  Values gradient = unwritten(m.x.size());
  MomentsBackward call{m.x.data(),    Dtype::float32,  {}, {}, m.segments, 3, mean.data(), of_mean.data(),
                       of_var.data(), gradient.data(), {}, {}, threads};
  std::copy_n(m.shape, 4, call.shape), std::copy_n(m.strides, 4, call.strides),
      std::copy_n(m.strides, 4, call.gradient_strides);
  run([&] { return kernels::channel_moments_backward(call); });
  Exact exact;
  for (size_t i = 0; i < m.x.size(); ++i) {
    const int64_t t = i / m.strides[0] < 2 ? 0 : 2, at = t * m.shape[1] + i / m.pixels % m.shape[1],
                  n = m.segments[t] * m.pixels;
    exact.push_back((of_mean[at] + 2.0 * of_var[at] * (m.x[i] - m.exact_mean[at])) / n);
  }
  return error(gradient, exact);
}

double integrate_forward(int pool) {
  Sample s(9, 14, 18, 38);
  const int64_t h = s.height / pool, w = s.width / pool;
  Values out = unwritten(s.lanes * s.total * h * w);
  const IntegrateCall call{s.read,     pool,    s.scale.data(), s.shift.data(), nullptr,
                           out.data(), nullptr, nullptr,        threads};
  run([&] { return kernels::integrate_forward(call); });
  if (!compare) return 0;
  Exact exact(out.size(), 0);
  for (int64_t i = 0; i < s.lanes * s.total; ++i)
    for (int64_t p = 0; p < s.pixels(); ++p)
      exact[i * h * w + p / s.width / pool * w + p % s.width / pool] +=
          s.prologue(i / s.total, i % s.total, p, true) / (pool * pool);
  return error(out, exact);
}

double integrate_backward(int pool) {
  Sample s(9, 14, 18, 38);
  const int64_t h = s.height / pool, w = s.width / pool;
  const Values gradient = draw(s.lanes * s.total * h * w);
  Values sums = unwritten(2 * s.lanes * s.total);
  const IntegrateCall call{s.read,          pool,        s.scale.data(), s.shift.data(), s.mean.data(), nullptr,
                           gradient.data(), sums.data(), threads};
  run([&] { return kernels::integrate_backward(call); });
  if (!compare) return 0;
  Exact d(s.lanes * s.total * s.pixels()), gx[2], exact_sums;
  for (size_t i = 0; i < d.size(); ++i) {
    const int64_t p = i % s.pixels();
    d[i] = gradient[i / s.pixels() * h * w + p / s.width / pool * w + p % s.width / pool] / (pool * pool);
  }
  s.backward(d, true, gx, &exact_sums);
  return worst({error(s.gradient[0], gx[0]), error(s.gradient[1], gx[1]), error(sums, exact_sums)});
}

// Calls visit(output value, input value, tap): which input pixel each output pixel reads through each tap of a 3x3
// convolution.
template <typename Visit>
void each_tap(int64_t height, int64_t width, Visit visit) {
  for (int64_t y = 0; y < height; ++y)
    for (int64_t x = 0; x < width; ++x)
      for (int64_t k = 0; k < 9; ++k) {
        const int64_t v = y + k / 3 - 1, u = x + k % 3 - 1;
        if (v >= 0 && v < height && u >= 0 && u < width) visit(y * width + x, v * width + u, k);
      }
}

Values packed(const Values& weight, int64_t outputs, int64_t inputs, bool transposed) {
  Values filters = unwritten(kernels::packed_filters(outputs, inputs));
  const FilterPacking call{weight.data(), outputs, inputs, transposed, filters.data()};
  run([&] { return kernels::pack_filters(call), true; });
  return filters;
}

Values packed_small(const Values& weight, int64_t outputs, int64_t inputs) {
  Values filters = unwritten(kernels::packed_small_filters(outputs, inputs));
  const FilterPacking call{weight.data(), outputs, inputs, false, filters.data()};
  run([&] { return kernels::pack_small_filters(call), true; });
  return filters;
}

double convolution_forward(bool normalise, Epilogue epilogue, bool small = false) {
  Sample s(31, 38, small ? 8 : 21, small ? 7 : 37);
  const int64_t outputs = 28, pixels = s.pixels();
  const Values weight = draw(outputs * s.total * 9);
  const Values filters = small ? packed_small(weight, outputs, s.total) : packed(weight, outputs, s.total, false);
  Values out = unwritten(s.lanes * outputs * pixels);
  ConvolutionForward call{s.read,   nullptr,    nullptr,          filters.data(), outputs,
                          epilogue, out.data(), outputs * pixels, threads};
  if (normalise) call.scale = s.scale.data(), call.shift = s.shift.data();
  run([&] { return small ? kernels::small_convolution_forward(call) : kernels::convolution_forward(call); });
  if (!compare) return 0;
  Exact exact(out.size(), 0), input(pixels);
  for (int64_t lane = 0; lane < s.lanes; ++lane)
    for (int64_t c = 0; c < s.total; ++c) {
      for (int64_t p = 0; p < pixels; ++p) input[p] = s.prologue(lane, c, p, normalise);
      for (int64_t o = 0; o < outputs; ++o) {
        double* sums = exact.data() + (lane * outputs + o) * pixels;
        const float* taps = weight.data() + (o * s.total + c) * 9;
        each_tap(s.height, s.width, [&](int64_t to, int64_t from, int64_t k) { sums[to] += taps[k] * input[from]; });
      }
    }
  if (epilogue != Epilogue::none)
    for (double& v : exact) v = std::fmax(v, 0);
  if (epilogue == Epilogue::relu_phase_shift) {  // channel 4 c + 2 i + j to row offset j, column offset i
    const Exact before = exact;
    for (size_t at = 0; at < before.size(); ++at) {
      const int64_t o = at / pixels % outputs, p = at % pixels, j = o % 2, i = o / 2 % 2;
      const int64_t row = 2 * (p / s.width) + j, column = 2 * (p % s.width) + i;
      exact[at / pixels / 4 * 4 * pixels + row * 2 * s.width + column] = before[at];
    }
  }
  return error(out, exact);
}

double convolution_backward(bool normalise) {
  Sample s(17, 21, 13, 22);
  const int64_t outputs = 12, pixels = s.pixels(), parts = 2;
  const Values weight = draw(outputs * s.total * 9), filters = packed(weight, s.total, outputs, true);
  const Values gradient = draw(s.lanes * outputs * pixels);
  Values shares = unwritten(parts * weight.size()), of_weight = unwritten(weight.size());
  Exact sums(2 * s.lanes * s.total, NAN);
  ConvolutionBackward call{s.read,           nullptr,         nullptr,          nullptr,       filters.data(),
                           outputs,          gradient.data(), outputs * pixels, shares.data(), parts,
                           of_weight.data(), nullptr,         threads};
  if (normalise)
    call.scale = s.scale.data(), call.shift = s.shift.data(), call.mean = s.mean.data(), call.sums = sums.data();
  run([&] { return kernels::convolution_backward(call); });
  if (!compare) return 0;
  Exact d(s.lanes * s.total * pixels, 0), exact_weight(weight.size(), 0), gx[2], exact_sums, input(pixels);
  for (int64_t lane = 0; lane < s.lanes; ++lane)
    for (int64_t c = 0; c < s.total; ++c) {
      for (int64_t p = 0; p < pixels; ++p) input[p] = s.prologue(lane, c, p, normalise);
      double* to_input = d.data() + (lane * s.total + c) * pixels;
      for (int64_t o = 0; o < outputs; ++o) {
        const float *g = gradient.data() + (lane * outputs + o) * pixels, *taps = weight.data() + (o * s.total + c) * 9;
        double* to_taps = exact_weight.data() + (o * s.total + c) * 9;
        each_tap(s.height, s.width, [&](int64_t to, int64_t from, int64_t k) {
          to_input[from] += taps[k] * g[to];
          to_taps[k] += input[from] * g[to];
        });
      }
    }
  s.backward(d, normalise, gx, &exact_sums);
  const double of_sums = normalise ? error(Values(sums.begin(), sums.end()), exact_sums) : 0;
  return worst({error(s.gradient[0], gx[0]), error(s.gradient[1], gx[1]), error(of_weight, exact_weight), of_sums});
}

// A 5x5 window over planes that hold their surroundings, added to what is there.
double direct_convolution() {
  Sample s(6, 7, 19, 70);
  const int64_t h = 15, w = 65, outputs = 13, taps = 25, products = s.total * taps;
  const Values weight = draw(outputs * products), initial = draw(s.lanes * outputs * h * w);
  Values filters = unwritten(kernels::packed_taps(outputs, products)), out = unwritten(initial.size());
  kernels::pack_taps({weight.data(), outputs, products, filters.data()});
  std::vector<int64_t> offsets;
  for (int64_t k = 0; k < taps; ++k) offsets.push_back(k / 5 * s.width + k % 5);
  DirectConvolution call{s.read,     offsets.data(),  taps, s.width, filters.data(), outputs, initial.data(),
                         out.data(), outputs * h * w, true, threads};
  call.x.height = h, call.x.width = w;
  run([&] { return kernels::direct_convolution(call); });
  if (!compare) return 0;
  Exact exact(initial.begin(), initial.end());
  for (size_t i = 0; i < exact.size(); ++i) {
    const int64_t lane = i / (outputs * h * w), o = i / (h * w) % outputs, at = i % (h * w) / w * s.width + i % w;
    for (int64_t k = 0; k < products; ++k)
      exact[i] += weight[o * products + k] * s.at(lane, k / taps, at + offsets[k % taps]);
    exact[i] = std::fmax(exact[i], 0);
  }
  return error(out, exact);
}

double dense_head() {
  Sample s(20, 11, 8, 9);
  const int64_t outputs = 10, inputs = s.total * s.pixels();
  const Values weight = draw(outputs * inputs), bias = draw(outputs);
  Values out = unwritten(s.lanes * outputs);
  run([&] { return kernels::dense_head({s.read, weight.data(), bias.data(), outputs, out.data(), threads}); });
  Exact exact;
  for (int64_t i = 0; i < s.lanes * outputs; ++i) {
    double sum = bias[i % outputs];
    for (int64_t k = 0; k < inputs; ++k)
      sum += weight[i % outputs * inputs + k] * s.at(i / outputs, k / s.pixels(), k % s.pixels());
    exact.push_back(sum);
  }
  return error(out, exact);
}

// Five points' maps of three levels, the finest of 32 px.
double heat_maps() {
  const int64_t lanes = 3, points = 5, size = 32, levels = 3;
  std::vector<Values> drawn;
  std::vector<const float*> maps;
  for (int64_t level = 0; level < levels; ++level)
    drawn.push_back(draw(lanes * points * (size >> level) * (size >> level), -3, 3));
  for (const Values& values : drawn) maps.push_back(values.data());
  Values out = unwritten(lanes * 2 * points);
  run([&] { return kernels::heat_maps({maps.data(), levels, lanes, points, size, out.data(), threads}); });
  Exact exact(out.size());
  for (int64_t map = 0; map < lanes * points; ++map) {
    Exact sums;  // of the levels so far, from the coarsest
    for (int64_t level = levels - 1; level >= 0; --level) {
      const int64_t side = size >> level, half = side / 2;
      Exact finer(side * side);
      for (int64_t i = 0; i < side * side; ++i) {
        finer[i] = drawn[level][map * side * side + i];
        if (level == levels - 1) continue;
        for (int64_t k = 0; k < 4; ++k) {  // the pixel that holds this one, and those beside, above and both
          const auto place = [half](int64_t at, bool beside) {
            return std::clamp<int64_t>(at / 2 + (beside ? 2 * (at % 2) - 1 : 0), 0, half - 1);
          };
          finer[i] += (k & 1 ? 0.25 : 0.75) * (k & 2 ? 0.25 : 0.75) *
                      sums[place(i / side, k & 2) * half + place(i % side, k & 1)];
        }
      }
      sums = finer;
    }
    double mass = 0, x = 0, y = 0;
    for (int64_t i = 0; i < size * size; ++i) {
      const double p = std::exp(sums[i]);
      mass += p, x += p * (i % size + 0.5), y += p * (i / size + 0.5);
    }
    double* place = exact.data() + map / points * 2 * points + map % points;
    place[0] = x / mass / size - 0.5, place[points] = y / mass / size - 0.5;
  }
  return error(out, exact);
}

// Softmax of nine classes, five discs, two classifications of seven and two classes, at 32 px.
double encode_planes() {
  const int64_t lanes = 3, size = 32, pixels = size * size, classes = 9, points = 5, sizes[2] = {7, 2},
                planes = 9 + 5 + 9;
  const Values parsing = draw(lanes * classes * pixels, -4, 4), places = draw(lanes * 2 * points, -0.6f, 0.6f);
  const Values logits[2] = {draw(lanes * 7, -3, 3), draw(lanes * 2, -3, 3)};
  const float* heads[2] = {logits[0].data(), logits[1].data()};
  Values out = unwritten(lanes * planes * pixels);
  const EncodePlanes call{parsing.data(), places.data(), heads, sizes, sizes, lanes, classes, points, 2, size, 5,
                          out.data(),     threads};
  run([&] { return kernels::encode_planes(call); });
  Exact exact(out.size());
  const auto softmax = [](const float* from, int64_t step, int64_t count, int64_t k) {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += std::exp(static_cast<double>(from[i * step]));
    return std::exp(static_cast<double>(from[k * step])) / sum;
  };
  for (int64_t i = 0; i < lanes * planes * pixels; ++i) {
    const int64_t lane = i / (planes * pixels), plane = i / pixels % planes, p = i % pixels,
                  k = plane - classes - points;
    if (plane < classes) {
      exact[i] = softmax(parsing.data() + lane * classes * pixels + p, pixels, classes, plane);
    } else if (k < 0) {
      const float* place = places.data() + lane * 2 * points + plane - classes;
      const double dx = p % size - std::nearbyint((place[0] + 0.5f) * size),
                   dy = p / size - std::nearbyint((place[points] + 0.5f) * size);
      exact[i] = dx * dx + dy * dy < 25;
    } else {
      const int64_t head = k >= 7;
      exact[i] = softmax(heads[head] + lane * sizes[head], 1, sizes[head], k - 7 * head);
    }
  }
  return error(out, exact);
}

struct Case {
  const char* name;
  double bound;  // largest relative L2 error
  double (*error)();
};

// Winograd's transforms round more than a direct sum does: see docs/kernels/dense_block.md.
constexpr double kSum = 1e-6, kWinograd = 3e-6;

const Case cases[] = {
    {"channel_moments_forward", kSum, moments_forward},
    {"channel_moments_backward", kSum, moments_backward},
    {"integrate_forward", kSum, [] { return integrate_forward(1); }},
    {"integrate_forward_pooled", kSum, [] { return integrate_forward(2); }},
    {"integrate_backward", kSum, [] { return integrate_backward(1); }},
    {"integrate_backward_pooled", kSum, [] { return integrate_backward(2); }},
    {"convolution_forward", kWinograd, [] { return convolution_forward(false, Epilogue::relu); }},
    {"convolution_forward_normalised", kWinograd, [] { return convolution_forward(true, Epilogue::none); }},
    {"convolution_forward_shifted", kWinograd, [] { return convolution_forward(false, Epilogue::relu_phase_shift); }},
    {"small_convolution_normalised", kSum, [] { return convolution_forward(true, Epilogue::none, true); }},
    {"small_convolution_shifted", kSum, [] { return convolution_forward(false, Epilogue::relu_phase_shift, true); }},
    {"convolution_backward", kWinograd, [] { return convolution_backward(false); }},
    {"convolution_backward_normalised", kWinograd, [] { return convolution_backward(true); }},
    {"direct_convolution", kSum, direct_convolution},
    {"dense_head", kSum, dense_head},
    {"heat_maps", kSum, heat_maps},
    {"encode_planes", kSum, encode_planes},
};

// The number of wrong cases, or -1 if a name stands for none. Prints a line a case unless quiet.
int check(const std::vector<std::string>& wanted, bool quiet) {
  size_t ran = 0, wrong = 0;
  for (const Case& c : cases) {
    if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), c.name) == wanted.end()) continue;
    current = c.name;
    const double found = c.error();
    const bool fails = compare && !(found < c.bound);
    ++ran, wrong += fails;
    if (!quiet) std::printf("%s error %.3g bound %.3g%s\n", c.name, found, c.bound, fails ? " WRONG" : "");
  }
  return ran < std::max<size_t>(wanted.size(), 1) ? -1 : static_cast<int>(wrong);
}

}  // namespace

int main(int count, char** arguments) {
  std::vector<std::string> wanted;
  int callers = 1;
  for (int i = 1; i < count; ++i) {
    if (!std::strcmp(arguments[i], "--threads") && i + 1 < count)
      threads = std::atoi(arguments[++i]);
    else if (!std::strcmp(arguments[i], "--callers") && i + 1 < count)
      callers = std::atoi(arguments[++i]);
    else if (!std::strcmp(arguments[i], "--only-run"))
      compare = false;
    else
      wanted.push_back(arguments[i]);
  }
  std::atomic<int> wrong{0};
  std::vector<std::thread> others;
  for (int i = 1; i < callers; ++i) others.emplace_back([&] { wrong += check(wanted, true) != 0; });
  const int own = check(wanted, false);
  for (std::thread& other : others) other.join();
  if (own < 0) return std::fprintf(stderr, "driver: no such case\n"), 2;
  return own + wrong > 0;
}
