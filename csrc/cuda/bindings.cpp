// ifan._cuda: the CUDA kernels for Python. No torch headers: tensors come as addresses, sizes and element strides, the
// stream as an integer. Compiled without IFAN_EMULATED by nvcc's host compiler, with it for the emulation on the CPU.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#ifdef IFAN_EMULATED
#include "cuda_types.h"
#else
#include <cuda_runtime_api.h>
#define IFAN_EMULATED 0
#define IFAN_MODULE _cuda
#endif

#include "dense_block.h"
#include "hybrid_loss.h"
#include "integrate.h"

namespace py = pybind11;
using namespace ifan::cuda;

namespace {

using Address = uintptr_t;
using Sizes = std::vector<int64_t>;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

Dtype dtype_of(const std::string& name) {
  if (name == "float32") return Dtype::float32;
  if (name == "float16") return Dtype::float16;
  if (name == "bfloat16") return Dtype::bfloat16;
  throw std::invalid_argument("dtype must be float32, float16 or bfloat16; got " + name + ". Convert the tensor.");
}

// Lengths one after another to their ends.
Segments segments_of(const Sizes& lengths) {
  if (lengths.empty() || lengths.size() > size_t(kMaxTasks))
    throw std::invalid_argument("expected 1 to " + std::to_string(kMaxTasks) + " tasks; got " +
                                std::to_string(lengths.size()) + ". Use backend='reference'.");
  Segments found = {static_cast<int>(lengths.size()), {}};
  int64_t end = 0;
  for (size_t i = 0; i < lengths.size(); ++i) found.ends[i] = static_cast<int>(end += lengths[i]);
  return found;
}

template <size_t N>
void copy(const Sizes& from, int64_t (&to)[N]) {
  if (from.size() != N)
    throw std::invalid_argument("expected " + std::to_string(N) + " sizes; got " + std::to_string(from.size()));
  std::copy(from.begin(), from.end(), to);
}

// Runs without the interpreter lock; raises what CUDA reports.
template <class Run>
void checked(Run run) {
  int error;
  {
    py::gil_scoped_release release;
    error = run();
  }
  if (error)
    throw std::runtime_error("CUDA error " + std::to_string(error) + ": " +
                             cudaGetErrorString(static_cast<cudaError_t>(error)));
}

// (address, shape, strides, address of rows or 0)
using SourceFields = std::tuple<Address, Sizes, Sizes, Address>;
// addresses of weight, bias, mean and var, then eps
using NormFields = std::tuple<Address, Address, Address, Address, float>;

template <class Call>
void set_norm(Call& call, const NormFields& norm) {
  call.weight = pointer<float>(std::get<0>(norm));
  call.bias = pointer<float>(std::get<1>(norm));
  call.mean = pointer<float>(std::get<2>(norm));
  call.var = pointer<float>(std::get<3>(norm));
  call.eps = std::get<4>(norm);
}

template <int (*RUN)(const Integrate&, Dtype, int, uintptr_t)>
void integrate(const SourceFields& source, const std::string& dtype, const Sizes& segments, int64_t first,
               int64_t total, const NormFields& norm, int pool, Address y, Address x_gradient, Address sums,
               Address stream) {
  Integrate call = {};
  const auto& [x, shape, strides, rows] = source;
  int64_t sizes[4];
  copy(shape, sizes);
  copy(strides, call.stride);
  call.x = pointer<void>(x);
  call.source_rows = sizes[0], call.channels = sizes[1], call.height = sizes[2], call.width = sizes[3];
  call.rows = pointer<int64_t>(rows);
  call.segments = segments_of(segments);
  call.lanes = call.segments.ends[call.segments.count - 1];
  call.first = first, call.total = total;
  set_norm(call, norm);
  call.y = pointer<void>(y);
  call.x_gradient = pointer<void>(x_gradient);
  call.sums = pointer<float>(sums);
  const Dtype type = dtype_of(dtype);
  checked([&] { return RUN(call, type, pool, stream); });
}

void norm_gradients_of(Address sums, int64_t tiles, int64_t total, const Sizes& segments, const NormFields& norm,
                       Address gradients, Address stream) {
  NormGradients call = {pointer<float>(sums),
                        pointer<float>(std::get<0>(norm)),
                        pointer<float>(std::get<3>(norm)),
                        pointer<float>(gradients),
                        tiles,
                        total,
                        std::get<4>(norm),
                        segments_of(segments)};
  checked([&] { return norm_gradients(call, stream); });
}

void cross_entropy_of(Address logits, const std::string& dtype, const Sizes& shape, const Sizes& strides,
                      Address labels, bool byte_labels, const Sizes& fine, const Sizes& label_strides,
                      Address class_weights, float smoothing, int ignored, Address gradient,
                      const Sizes& gradient_strides, Address powers, Address sums, Address stream) {
  CrossEntropy call = {};
  int64_t sizes[4], fine_sizes[2];
  copy(shape, sizes);
  copy(fine, fine_sizes);
  copy(strides, call.stride);
  copy(label_strides, call.label_stride);
  copy(gradient_strides, call.gradient_stride);
  call.logits = pointer<void>(logits);
  call.batch = sizes[0], call.classes = sizes[1], call.height = sizes[2], call.width = sizes[3];
  call.labels = pointer<void>(labels);
  call.fine_height = fine_sizes[0], call.fine_width = fine_sizes[1];
  call.class_weights = pointer<float>(class_weights);
  call.smoothing = smoothing, call.ignored = ignored;
  call.gradient = pointer<void>(gradient);
  call.powers = pointer<float>(powers);
  call.sums = pointer<float>(sums);
  const Dtype type = dtype_of(dtype);
  checked([&] { return cross_entropy(call, type, byte_labels, stream); });
}

void points_of(Address points, const std::string& dtype, const Sizes& strides, int64_t batch, int64_t count,
               Address targets, const Sizes& target_strides, Address weights, const Sizes& weight_strides, int kind,
               float width, float curvature, float offset, Address gradient, Address sums, Address stream) {
  Points call = {};
  call.points = pointer<void>(points), call.targets = pointer<float>(targets), call.weights = pointer<float>(weights);
  call.gradient = pointer<void>(gradient), call.sums = pointer<float>(sums);
  call.batch = batch, call.count = count;
  copy(strides, call.stride);
  copy(target_strides, call.target_stride);
  copy(weight_strides, call.weight_stride);
  call.kind = kind, call.width = width, call.curvature = curvature, call.offset = offset;
  const Dtype type = dtype_of(dtype);
  checked([&] { return points_loss(call, type, stream); });
}

void finish_of(Address sums, const Sizes& blocks, Address task_weights, Address denominators, Address total,
               Address losses, Address counts, Address divisors, Address stream) {
  const FinishLoss call = {pointer<float>(sums),     pointer<float>(task_weights), pointer<float>(denominators),
                           pointer<float>(total),    pointer<float>(losses),       pointer<float>(counts),
                           pointer<float>(divisors), segments_of(blocks)};
  checked([&] { return finish_loss(call, stream); });
}

void scale_of(Address made, Address gradient, const std::string& dtype, int64_t elements, const Sizes& columns,
              int first_task, Address of_total, Address of_losses, Address task_weights, Address divisors,
              Address stream) {
  const ScaleGradient call = {pointer<void>(made),
                              pointer<void>(gradient),
                              elements,
                              pointer<float>(of_total),
                              pointer<float>(of_losses),
                              pointer<float>(task_weights),
                              pointer<float>(divisors),
                              first_task,
                              segments_of(columns)};
  const Dtype type = dtype_of(dtype);
  checked([&] { return scale_gradient(call, type, stream); });
}

void dense_layer_of(const std::vector<SourceFields>& sources, const std::string& dtype, const Sizes& segments,
                    const NormFields& norm, Address filters, int64_t outputs, Address y, const Sizes& y_strides,
                    Address stream) {
  if (sources.empty() || sources.size() > size_t(kMaxSources))
    throw std::invalid_argument("expected 1 to " + std::to_string(kMaxSources) + " sources; got " +
                                std::to_string(sources.size()) + ". Use backend='reference'.");
  DenseLayer call = {};
  for (const auto& [x, shape, strides, rows] : sources) {
    LayerSource& source = call.sources[call.count++];
    int64_t sizes[4];
    copy(shape, sizes);
    copy(strides, source.stride);
    source.x = pointer<void>(x), source.channels = sizes[1], source.rows = pointer<int64_t>(rows);
    call.channels += sizes[1], call.height = sizes[2], call.width = sizes[3];
  }
  call.segments = segments_of(segments);
  call.lanes = call.segments.ends[call.segments.count - 1];
  call.outputs = outputs;
  set_norm(call, norm);
  call.filters = pointer<void>(filters);
  call.y = pointer<void>(y);
  copy(y_strides, call.y_stride);
  const Dtype type = dtype_of(dtype);
  checked([&] { return dense_layer(call, type, stream); });
}

// Versions as CUDA numbers them, 13000 for 13.0; driver 0 where there is none. Neither call touches a GPU.
py::dict versions() {
  int runtime = 0, driver = 0;
#if !IFAN_EMULATED
  cudaRuntimeGetVersion(&runtime);
  cudaDriverGetVersion(&driver);
#endif
  py::dict found;
  found["runtime"] = runtime, found["driver"] = driver;
  return found;
}

}  // namespace

PYBIND11_MODULE(IFAN_MODULE, m) {
  m.attr("emulated") = bool(IFAN_EMULATED);
  m.attr("max_tasks") = kMaxTasks;
  m.attr("max_sources") = kMaxSources;
  m.def("versions", &versions);
  m.def("integrate_tiles", &integrate_tiles);
  m.def("integrate_forward", &integrate<integrate_forward>);
  m.def("integrate_backward", &integrate<integrate_backward>);
  m.def("norm_gradients", &norm_gradients_of);
  m.def("loss_blocks", &loss_blocks);
  m.def("cross_entropy", &cross_entropy_of);
  m.def("points", &points_of);
  m.def("finish_loss", &finish_of);
  m.def("scale_gradient", &scale_of);
  m.def("dense_layer", &dense_layer_of);
}
