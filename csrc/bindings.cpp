// ifan._cpu: the CPU kernels for Python. No torch headers: tensors come as addresses, sizes and element strides, so that one
// build serves every torch version. The global interpreter lock is released while a kernel runs.
#include "bindings.h"

#include <algorithm>
#include <cstring>
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

void channel_moments_forward(Address x, const std::string& dtype, const Sizes& shape, const Sizes& strides,
                             const std::vector<int64_t>& segments, Address mean, Address var, int threads) {
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
                              Address var_gradient, Address gradient, const Sizes& gradient_strides, Address before, int threads) {
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

void integrate_forward(const std::vector<SourceFields>& sources, Address rows, const std::vector<int64_t>& segments,
                       const Sizes& shape, int pool, Address scale, Address shift, Address out, int threads) {
  const Inputs inputs(sources, rows, segments, shape);
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
                        const Sizes& shape, const std::vector<TargetFields>& targets, int pool, Address scale, Address shift,
                        Address mean, Address gradient, Address sums, int threads) {
  const Inputs inputs(sources, rows, segments, shape, targets);
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
  return IFAN_PICK_FOR(isa_of(isa), packed_filters)(outputs, inputs);
}

// Several weights, one behind the other.
void pack_filters(const std::vector<WeightFields>& weights, bool transposed, Address filters, const std::string& isa, int threads) {
  const Isa wanted = isa_of(isa);
  float* to = reinterpret_cast<float*>(filters);
  py::gil_scoped_release release;
  for (const auto& [weight, outputs, inputs, stride] : weights) {
    IFAN_PICK_FOR(wanted, pack_filters)({reinterpret_cast<const float*>(weight), outputs, inputs, transposed, to, threads, stride});
    to += IFAN_PICK_FOR(wanted, packed_filters)(outputs, inputs);
  }
}

// Through ReLU and phase shift to `shifted` (N, outputs[0] / 4, 2H, 2W), from there through a ReLU to `out` (N, outputs[1], 2H, 2W).
// `filters`: those of both, one behind the other.
void transition_up_forward(const std::vector<SourceFields>& sources, Address rows, const std::vector<int64_t>& segments,
                           const Sizes& shape, const std::string& isa, Address filters, const std::array<int64_t, 2>& outputs,
                           Address shifted, Address out, int threads) {
  const Inputs inputs(sources, rows, segments, shape);
  const Isa packed_for = isa_of(isa);
  const auto [lanes, channels, height, width] = shape;
  const int64_t between = outputs[0] / 4, pixels = 4 * height * width;
  ConvolutionForward first{inputs.x, nullptr, nullptr, reinterpret_cast<const float*>(filters), outputs[0], Epilogue::relu_phase_shift,
                           reinterpret_cast<float*>(shifted), between * pixels, threads};
  const Inputs maps({{static_cast<int64_t>(shifted), between, between * pixels, pixels, 0}}, 0, {lanes},
                    {lanes, between, 2 * height, 2 * width});
  ConvolutionForward second{maps.x, nullptr, nullptr, first.filters + IFAN_PICK_FOR(packed_for, packed_filters)(outputs[0], channels),
                            outputs[1], Epilogue::relu, reinterpret_cast<float*>(out), outputs[1] * pixels, threads};
  const auto convolve = IFAN_PICK_FOR(packed_for, convolution_forward);
  py::gil_scoped_release release;
  if (!convolve(first)) throw std::bad_alloc();
  if (!convolve(second)) throw std::bad_alloc();
}

void convolution_backward(const std::vector<SourceFields>& sources, Address rows, const std::vector<int64_t>& segments,
                          const Sizes& shape, const std::vector<TargetFields>& targets, const std::string& isa, Address filters,
                          int64_t outputs, Address gradient, int64_t gradient_lane_stride, Address shares, int64_t parts,
                          Address weight_gradient, int threads) {
  const Inputs inputs(sources, rows, segments, shape, targets);
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
  float* scale = reinterpret_cast<float*>(affine);
  scale_and_shift(norm, tasks, channels, eps, scale, scale + tasks * channels);
}

// See add_up_normalisation; float `sums`.
void normalisation_backward(Address sums, const std::vector<int64_t>& segments, int64_t channels, Address scale, Rows var, float eps,
                            const Norm& gradients) {
  add_up_normalisation(reinterpret_cast<const float*>(sums), segments, channels, reinterpret_cast<const float*>(scale), var, eps, gradients);
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
  module.def("features", &features, "Processor name, the instruction set in use, those compiled and those this processor has.");
  module.def("isa", [] { return name(current_isa()); }, "The instruction set in use.");
  module.def("use_tiles", &use_tiles, "Whether bfloat16 is multiplied by AMX where the processor has it (tests and benchmarks).");
  module.def("use_isa", &use_isa, "Run the kernels of this instruction set from now on (tests and benchmarks).");
  module.def("channel_moments_forward", &channel_moments_forward);
  module.def("channel_moments_backward", &channel_moments_backward);
  module.def("integrate_forward", &integrate_forward);
  module.def("integrate_backward", &integrate_backward);
  module.def("packed_filters", &packed_filters, "Floats that pack_filters writes for an instruction set.");
  module.def("pack_filters", &pack_filters, "Weights as the convolutions of that instruction set read them; they are told which it was.");
  module.def("normalisation", &normalisation, "Scale and shift of a normalisation by task and channel.");
  module.def("normalisation_backward", &normalisation_backward, "Gradients of a normalisation's values from sums by lane and channel.");
  module.def("transition_up_forward", &transition_up_forward);
  module.def("convolution_backward", &convolution_backward);
  bind_dense_block(module);
  bind_plan(module);
  bind_predictions(module);
}
