// ifan._cpu: the CPU kernels for Python. No torch headers: tensors come as addresses, sizes and element strides, so
// that one build serves every torch version. The global interpreter lock is released while a kernel runs.
#include "bindings.h"

#include <algorithm>
#include <new>

#include "cpu/channel_moments.h"
#include "cpu/integrate.h"
#include "normalisation.h"

namespace py = pybind11;
using namespace ifan;

namespace {

Dtype dtype_of(const std::string& name) {
  if (name == "float32") return Dtype::float32;
  if (name == "bfloat16") return Dtype::bfloat16;
  throw std::invalid_argument("dtype must be float32 or bfloat16; got " + name + ". Convert the tensor.");
}

// Arguments of both directions of channel_moments, and the values (T, C) that they read or write.
void expect_moments(Address x, const Sizes& shape, const Sizes& strides, const std::vector<int64_t>& segments,
                    std::initializer_list<Address> values, int threads) {
  expect_strides("strides of x", strides, shape);
  expect_address("x", x, count_of("shape of x", {shape[0], shape[1], shape[2], shape[3]}));
  expect_segments(segments, shape[0]);
  const int64_t count = count_of("segments and channels", {static_cast<int64_t>(segments.size()), shape[1]});
  for (Address address : values) expect_address("values (T, C)", address, count);
  expect_threads(threads);
}

void channel_moments_forward(Address x, const std::string& dtype, const Sizes& shape, const Sizes& strides,
                             const std::vector<int64_t>& segments, Address mean, Address var, int threads) {
  expect_moments(x, shape, strides, segments, {mean, var}, threads);
  MomentsForward call{};
  call.x = reinterpret_cast<const void*>(x);
  call.dtype = dtype_of(dtype);
  std::copy(shape.begin(), shape.end(), call.shape);
  std::copy(strides.begin(), strides.end(), call.strides);
  call.segments = segments.data();
  call.tasks = static_cast<int64_t>(segments.size());
  call.mean = reinterpret_cast<float*>(mean);
  call.var = reinterpret_cast<float*>(var);
  call.threads = threads;
  py::gil_scoped_release release;
  if (!IFAN_PICK(channel_moments_forward)(call)) throw std::bad_alloc();
}

void channel_moments_backward(Address x, const std::string& dtype, const Sizes& shape, const Sizes& strides,
                              const std::vector<int64_t>& segments, Address mean, Address mean_gradient,
                              Address var_gradient, Address gradient, const Sizes& gradient_strides, Address before,
                              int threads) {
  expect_moments(x, shape, strides, segments, {mean, mean_gradient, var_gradient}, threads);
  expect_strides("strides of the gradient", gradient_strides, shape);
  expect_address("the gradient", gradient, count_of("shape", {shape[0], shape[1], shape[2], shape[3]}));
  MomentsBackward call{};
  call.x = reinterpret_cast<const void*>(x);
  call.dtype = dtype_of(dtype);
  std::copy(shape.begin(), shape.end(), call.shape);
  std::copy(strides.begin(), strides.end(), call.strides);
  call.segments = segments.data();
  call.tasks = static_cast<int64_t>(segments.size());
  call.mean = reinterpret_cast<const float*>(mean);
  call.mean_gradient = reinterpret_cast<const float*>(mean_gradient);
  call.var_gradient = reinterpret_cast<const float*>(var_gradient);
  call.gradient = reinterpret_cast<void*>(gradient);
  std::copy(gradient_strides.begin(), gradient_strides.end(), call.gradient_strides);
  call.before[0] = reinterpret_cast<const void*>(before);
  call.threads = threads;
  py::gil_scoped_release release;
  if (!IFAN_PICK(channel_moments_backward)(call)) throw std::bad_alloc();
}

// Arguments of both directions of integrate beside the inputs: `values` (T, C) and `maps` (N, C, H / pool, W / pool).
void expect_integrate(const Inputs& inputs, int pool, std::initializer_list<Address> values,
                      std::initializer_list<Address> maps, int threads) {
  const Concatenation& x = inputs.x;
  expect_range("pool", pool, 1, 2);
  expect(x.height % pool == 0 && x.width % pool == 0, "pool", "1 where H or W is odd", pool);
  for (Address address : values)
    expect_address("values (T, C)", address, count_of("segments and channels", {x.tasks, x.channels}));
  for (Address address : maps)
    expect_address("maps", address, x.lanes * x.channels * (x.height / pool) * (x.width / pool));
  expect_threads(threads);
}

// The addresses of a backward kernel's gradients.
void expect_targets(const Inputs& inputs) {
  expect(inputs.targets.size() == inputs.sources.size(), "gradients", "one a source",
         static_cast<int64_t>(inputs.targets.size()));
}

void integrate_forward(const std::vector<SourceFields>& sources, Address rows, const std::vector<int64_t>& segments,
                       const Sizes& shape, int pool, Address scale, Address shift, Address out, int threads) {
  const Inputs inputs(sources, rows, segments, shape);
  expect_integrate(inputs, pool, {scale, shift}, {out}, threads);
  IntegrateCall call{};
  call.x = inputs.x;
  call.pool = pool;
  call.scale = reinterpret_cast<const float*>(scale);
  call.shift = reinterpret_cast<const float*>(shift);
  call.out = reinterpret_cast<float*>(out);
  call.threads = threads;
  py::gil_scoped_release release;
  if (!IFAN_PICK(integrate_forward)(call)) throw std::bad_alloc();
}

void integrate_backward(const std::vector<SourceFields>& sources, Address rows, const std::vector<int64_t>& segments,
                        const Sizes& shape, const std::vector<TargetFields>& targets, int pool, Address scale,
                        Address shift, Address mean, Address gradient, Address sums, int threads) {
  const Inputs inputs(sources, rows, segments, shape, targets);
  expect_integrate(inputs, pool, {scale, shift, mean}, {gradient}, threads);
  expect_address("sums", sums, inputs.x.lanes * inputs.x.channels);
  expect_targets(inputs);
  IntegrateCall call{};
  call.x = inputs.x;
  call.pool = pool;
  call.scale = reinterpret_cast<const float*>(scale);
  call.shift = reinterpret_cast<const float*>(shift);
  call.mean = reinterpret_cast<const float*>(mean);
  call.gradient = reinterpret_cast<const float*>(gradient);
  call.sums = reinterpret_cast<float*>(sums);
  call.threads = threads;
  py::gil_scoped_release release;
  if (!IFAN_PICK(integrate_backward)(call)) throw std::bad_alloc();
}

// A weight (outputs, inputs, 3, 3) to be packed, with the floats from one row of it to the next.
using WeightFields = std::tuple<Address, int64_t, int64_t, int64_t>;

int64_t packed_filters(int64_t outputs, int64_t inputs, const std::string& isa) {
  count_of("filters", {outputs, inputs});
  return IFAN_PICK_FOR(isa_of(isa), packed_filters)(outputs, inputs);
}

// Several weights, one behind the other.
void pack_filters(const std::vector<WeightFields>& weights, bool transposed, Address filters, const std::string& isa,
                  int threads) {
  const Isa wanted = isa_of(isa);
  expect_threads(threads);
  for (const auto& [weight, outputs, inputs, stride] : weights) {
    const int64_t count = count_of("filters", {outputs, inputs, 9});
    expect_strides("strides of a weight", std::array{stride ? stride : inputs * 9, int64_t{1}},
                   std::array{transposed ? inputs : outputs, int64_t{1}});
    expect_address("a weight", weight, count);
    expect_address("filters", filters, count);
  }
  float* to = reinterpret_cast<float*>(filters);
  py::gil_scoped_release release;
  for (const auto& [weight, outputs, inputs, stride] : weights) {
    IFAN_PICK_FOR(wanted, pack_filters)(
        {reinterpret_cast<const float*>(weight), outputs, inputs, transposed, to, threads, stride});
    to += IFAN_PICK_FOR(wanted, packed_filters)(outputs, inputs);
  }
}

// Through ReLU and phase shift to `shifted` (N, outputs[0] / 4, 2H, 2W), from there through a ReLU to `out` (N,
// outputs[1], 2H, 2W). `filters`: those of both, one behind the other.
void transition_up_forward(const std::vector<SourceFields>& sources, Address rows, const std::vector<int64_t>& segments,
                           const Sizes& shape, const std::string& isa, Address filters,
                           const std::array<int64_t, 2>& outputs, Address shifted, Address out, int threads) {
  const Inputs inputs(sources, rows, segments, shape);
  const Isa packed_for = isa_of(isa);
  const auto [lanes, channels, height, width] = shape;
  expect(outputs[0] % 4 == 0, "outputs before the phase shift", "a multiple of 4", outputs[0]);
  for (int64_t count : outputs) expect_range("outputs", count, 0, kMostSide);
  const int64_t between = outputs[0] / 4, pixels = 4 * height * width;
  expect_address("filters", filters,
                 count_of("filters", {outputs[0], channels, 9}) + count_of("filters", {outputs[1], between, 9}));
  expect_address("the phase-shifted maps", shifted, count_of("maps", {lanes, between, pixels}));
  expect_address("out", out, count_of("maps", {lanes, outputs[1], pixels}));
  expect_threads(threads);
  ConvolutionForward first{inputs.x,
                           nullptr,
                           nullptr,
                           reinterpret_cast<const float*>(filters),
                           outputs[0],
                           Epilogue::relu_phase_shift,
                           reinterpret_cast<float*>(shifted),
                           between * pixels,
                           threads};
  const Inputs maps({{static_cast<int64_t>(shifted), between, between * pixels, pixels, 0}}, 0, {lanes},
                    {lanes, between, 2 * height, 2 * width});
  ConvolutionForward second{maps.x,
                            nullptr,
                            nullptr,
                            first.filters + IFAN_PICK_FOR(packed_for, packed_filters)(outputs[0], channels),
                            outputs[1],
                            Epilogue::relu,
                            reinterpret_cast<float*>(out),
                            outputs[1] * pixels,
                            threads};
  const auto convolve = IFAN_PICK_FOR(packed_for, convolution_forward);
  py::gil_scoped_release release;
  if (!convolve(first)) throw std::bad_alloc();
  if (!convolve(second)) throw std::bad_alloc();
}

void convolution_backward(const std::vector<SourceFields>& sources, Address rows, const std::vector<int64_t>& segments,
                          const Sizes& shape, const std::vector<TargetFields>& targets, const std::string& isa,
                          Address filters, int64_t outputs, Address gradient, int64_t gradient_lane_stride,
                          Address shares, int64_t parts, Address weight_gradient, int threads) {
  const Inputs inputs(sources, rows, segments, shape, targets);
  const int64_t count = count_of("filters", {outputs, shape[1], 9});
  expect_targets(inputs);
  expect_range("outputs", outputs, 0, kMostSide);
  expect_range("parts", parts, 1, std::max<int64_t>(shape[0], 1));
  expect_strides("strides of the gradient", std::array{gradient_lane_stride, shape[2] * shape[3]},
                 std::array{shape[0], outputs});
  expect_address("the gradient", gradient, count_of("gradient", {shape[0], outputs, shape[2], shape[3]}));
  expect_address("filters", filters, count);
  expect_address("shares", shares, count_of("shares", {parts, count}));
  expect_address("the weight's gradient", weight_gradient, count);
  expect_threads(threads);
  ConvolutionBackward call{};
  call.x = inputs.x;
  call.filters = reinterpret_cast<const float*>(filters);
  call.outputs = outputs;
  call.gradient = reinterpret_cast<const float*>(gradient);
  call.gradient_lane_stride = gradient_lane_stride;
  call.shares = reinterpret_cast<float*>(shares);
  call.parts = parts;
  call.weight_gradient = reinterpret_cast<float*>(weight_gradient);
  call.threads = threads;
  const Isa packed_for = isa_of(isa);
  py::gil_scoped_release release;
  if (!IFAN_PICK_FOR(packed_for, convolution_backward)(call)) throw std::bad_alloc();
}

// Scale and shift of (x - mean) / sqrt(var + eps) weight + bias, (2, tasks, channels).
void normalisation(const Norm& norm, int64_t tasks, int64_t channels, float eps, Address affine) {
  expect_norm(norm, tasks, channels);
  expect_address("scale and shift", affine, count_of("scale and shift", {2, tasks, channels}));
  float* scale = reinterpret_cast<float*>(affine);
  scale_and_shift(norm, tasks, channels, eps, scale, scale + tasks * channels);
}

// See add_up_normalisation; float `sums`.
void normalisation_backward(Address sums, const std::vector<int64_t>& segments, int64_t channels, Address scale,
                            Rows var, float eps, const Norm& gradients) {
  const int64_t tasks = static_cast<int64_t>(segments.size());
  int64_t lanes = 0;
  for (int64_t count : segments) lanes += count_of("segments", {count, 1});
  expect_address("sums", sums, count_of("sums", {2, lanes, channels}));
  expect_address("scale", scale, count_of("scale", {tasks, channels}));
  expect_rows("var", var, tasks, channels);
  expect_norm(gradients, tasks, channels);
  add_up_normalisation(reinterpret_cast<const float*>(sums), segments, channels, reinterpret_cast<const float*>(scale),
                       var, eps, gradients);
}

py::dict features() {
  std::vector<std::string> compiled, usable;
  for (Isa isa : compiled_isas()) {
    compiled.push_back(name(isa));
    if (supported(isa)) usable.push_back(name(isa));
  }
  py::dict result;
  result["processor"] = processor();
  result["isa"] = name(current_isa());
  result["compiled"] = compiled;
  result["supported"] = usable;
  result["bf16"] = has_bf16();
  result["tiles"] = uses_tiles();
  return result;
}

void use_isa(const std::string& wanted) { set_isa(isa_of(wanted)); }

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "CPU kernels of ifan, compiled once an instruction set; see ifan.ops.";
  module.def("features", &features,
             "Processor name, the instruction set in use, those compiled and those this processor has.");
  module.def("isa", [] { return name(current_isa()); }, "The instruction set in use.");
  module.def("use_tiles", &use_tiles,
             "Whether bfloat16 is multiplied by AMX where the processor has it (tests and benchmarks).");
  module.def("use_isa", &use_isa, "Run the kernels of this instruction set from now on (tests and benchmarks).");
  module.def("channel_moments_forward", &channel_moments_forward);
  module.def("channel_moments_backward", &channel_moments_backward);
  module.def("integrate_forward", &integrate_forward);
  module.def("integrate_backward", &integrate_backward);
  module.def("packed_filters", &packed_filters, "Floats that pack_filters writes for an instruction set.");
  module.def("pack_filters", &pack_filters,
             "Weights as the convolutions of that instruction set read them; they must be given the same one.");
  module.def("normalisation", &normalisation, "Scale and shift of a normalisation by task and channel.");
  module.def("normalisation_backward", &normalisation_backward,
             "Gradients of a normalisation's values from sums by lane and channel.");
  module.def("transition_up_forward", &transition_up_forward);
  module.def("convolution_backward", &convolution_backward);
  bind_dense_block(module);
  bind_plan(module);
  bind_predictions(module);
}
