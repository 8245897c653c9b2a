#include "small_maps.h"

#include <cstring>

#include "runtime/scratch.h"
#include "runtime/thread_pool.h"
#include "simd.h"

namespace ifan {
namespace IFAN_ISA {
namespace {

constexpr int kSums = kRegisters == 32 ? 24 : 12;  // vectors of sums that stay in registers

int64_t vectors(int64_t outputs) { return (outputs + kWidth - 1) / kWidth; }

struct Context {
  const ConvolutionForward& call;
  const Plan& plan;
  float* inputs;        // [lane][channel][row][column], normalised, with a border of zeros
  int64_t wide, plane;  // a row and a plane of these
};

void prepare_inputs(void* argument, int64_t begin, int64_t end) {  // index: (lane, channel)
  const Context& context = *static_cast<const Context*>(argument);
  const ConvolutionForward& call = context.call;
  const int64_t channels = call.x.channels, height = call.x.height, width = call.x.width;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t lane = index / channels, c = index % channels;
    const float* x = context.plan.plane(lane, c);
    float* out = context.inputs + index * context.plane;
    memset(out, 0, context.plane * sizeof(float));
    out += context.wide + 1;
    const int64_t at = call.scale ? context.plan.task[lane] * channels + c : 0;
    for (int64_t y = 0; y < height; ++y)
      for (int64_t i = 0; i < width; ++i) {
        const float v = x[y * width + i];
        out[y * context.wide + i] = call.scale ? relu(v * call.scale[at] + call.shift[at]) : v;
      }
  }
}

// y [P][N vectors of outputs] = sum over channels and taps; `pixel`: where each pixel's window begins.
template <int N, int P>
void multiply(const Context& context, const float* x, const int64_t* pixel, const float* filters, int64_t step,
              float* y) {
  Vec sum[P][N] = {};
  for (int64_t c = 0; c < context.call.x.channels; ++c, x += context.plane)
    for (int64_t k = 0; k < 9; ++k, filters += step) {
      const float* shifted = x + k / 3 * context.wide + k % 3;
      Vec w[N];
      for (int n = 0; n < N; ++n) w[n] = load(filters + n * kWidth);
      for (int p = 0; p < P; ++p)
        for (int n = 0; n < N; ++n) sum[p][n] += shifted[pixel[p]] * w[n];
    }
  for (int p = 0; p < P; ++p)
    for (int n = 0; n < N; ++n) store(y + (p * N + n) * kWidth, sum[p][n]);
}

void write(const Context& context, const float* y, int64_t lane, int64_t first, int64_t outputs, int64_t pixel) {
  const ConvolutionForward& call = context.call;
  const int64_t width = call.x.width, plane = call.x.height * width;
  float* out = call.out + lane * call.out_lane_stride;
  for (int64_t i = 0; i < outputs; ++i) {
    const int64_t o = first + i;
    const float v = call.epilogue == Epilogue::none ? y[i] : relu(y[i]);
    if (call.epilogue == Epilogue::relu_phase_shift)  // channel 4c + 2i + j to row offset j, column offset i
      out[o / 4 * 4 * plane + (2 * (pixel / width) + o % 2) * 2 * width + 2 * (pixel % width) + o % 4 / 2] = v;
    else
      out[o * plane + pixel] = v;
  }
}

template <int N>
void convolve_pixels(void* argument, int64_t begin,
                     int64_t end) {  // index: (group of N vectors of outputs, lane, group of pixels)
  constexpr int P = kSums / N;
  const Context& context = *static_cast<const Context*>(argument);
  const ConvolutionForward& call = context.call;
  const int64_t pixels = call.x.height * call.x.width, groups = (pixels + P - 1) / P;
  float y[P * N * kWidth];
  for (int64_t index = begin; index < end; ++index) {
    const int64_t group = index % groups, lane = index / groups % call.x.lanes, v = index / groups / call.x.lanes * N;
    int64_t pixel[P];
    for (int64_t p = 0; p < P; ++p) {
      const int64_t at = min(group * P + p, pixels - 1);
      pixel[p] = at / call.x.width * context.wide + at % call.x.width;
    }
    const float* x = context.inputs + lane * call.x.channels * context.plane;
    multiply<N, P>(context, x, pixel, call.filters + v * kWidth, vectors(call.outputs) * kWidth, y);
    for (int64_t p = 0; p < P && group * P + p < pixels; ++p)
      write(context, y + p * N * kWidth, lane, v * kWidth, min(N * kWidth, call.outputs - v * kWidth), group * P + p);
  }
}

template <int N>
void run(Context& context) {
  const ConvolutionForward& call = context.call;
  const int64_t pixels = call.x.height * call.x.width, groups = (pixels + kSums / N - 1) / (kSums / N);
  parallel_for(vectors(call.outputs) / N * call.x.lanes * groups, 1, call.threads, convolve_pixels<N>, &context);
}

}  // namespace

// Whatever the number of maps: what is computed for one shall not depend on the others.
bool fits_small_maps(int64_t height, int64_t width) { return 2 * ((height + 3) / 4) * ((width + 3) / 4) <= kWidth; }

int64_t packed_small_filters(int64_t outputs, int64_t inputs) { return 9 * inputs * vectors(outputs) * kWidth; }

// filters [input][tap][outputs rounded up to whole vectors], zeros where there is no output.
void pack_small_filters(const FilterPacking& call) {
  const int64_t wide = vectors(call.outputs) * kWidth;
  for (int64_t c = 0; c < call.inputs; ++c)
    for (int64_t k = 0; k < 9; ++k)
      for (int64_t o = 0; o < wide; ++o)
        call.filters[(c * 9 + k) * wide + o] = o < call.outputs ? call.weight[(o * call.inputs + c) * 9 + k] : 0;
}

bool small_convolution_forward(const ConvolutionForward& call) {
  const Plan plan(call.x);
  if (!plan.made()) return false;
  const int64_t wide = call.x.width + 2, plane = (call.x.height + 2) * wide;
  Context context{call, plan, scratch(call.x.lanes * call.x.channels * plane), wide,
                  plane};  // no body asks for scratch again
  if (!context.inputs) return false;
  parallel_for(call.x.lanes * call.x.channels, 32, call.threads, prepare_inputs, &context);
  if (vectors(call.outputs) % 2)
    run<1>(context);
  else
    run<2>(context);
  return true;
}

}  // namespace IFAN_ISA
}  // namespace ifan
