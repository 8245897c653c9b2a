// ifan._cpu: the CPU kernels for Python. No torch headers: tensors come as addresses, sizes and element strides, so that one
// build serves every torch version. The global interpreter lock is released while a kernel runs.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/channel_moments.h"
#include "cpu/integrate.h"
#include "cpu/runtime/isa.h"

namespace py = pybind11;
using namespace ifan;

namespace {

using Address = uintptr_t;
using Sizes = std::array<int64_t, 4>;

#if defined(__x86_64__)
#define IFAN_PICK(kernel) \
  (current_isa() == Isa::avx512 ? avx512::kernel : current_isa() == Isa::avx2 ? avx2::kernel : baseline::kernel)
#else
#define IFAN_PICK(kernel) baseline::kernel
#endif

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
                              Address var_gradient, Address gradient, const Sizes& gradient_strides, int threads) {
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
  call.threads = threads;
  py::gil_scoped_release release;
  if (!IFAN_PICK(channel_moments_backward)(call)) throw std::bad_alloc();
}

// (address, channels, lane stride, channel stride, a row a sample, address of the gradient or 0)
using SourceFields = std::array<int64_t, 6>;

struct IntegrateArguments {
  std::vector<IntegrateSource> sources;
  IntegrateCall call{};

  IntegrateArguments(const std::vector<SourceFields>& fields, Address rows, const std::vector<int64_t>& segments,
                     const std::array<int64_t, 4>& shape, int pool, Address scale, Address shift, int threads) {
    for (const SourceFields& f : fields)
      sources.push_back({reinterpret_cast<const float*>(f[0]), f[1], f[2], f[3], f[4] != 0, reinterpret_cast<float*>(f[5])});
    call.sources = sources.data();
    call.count = static_cast<int64_t>(sources.size());
    call.lanes = shape[0], call.channels = shape[1], call.height = shape[2], call.width = shape[3];
    call.rows = reinterpret_cast<const int64_t*>(rows);
    call.segments = segments.data();
    call.tasks = static_cast<int64_t>(segments.size());
    call.pool = pool;
    call.scale = reinterpret_cast<const float*>(scale);
    call.shift = reinterpret_cast<const float*>(shift);
    call.threads = threads;
  }
};

void integrate_forward(const std::vector<SourceFields>& sources, Address rows, const std::vector<int64_t>& segments,
                       const std::array<int64_t, 4>& shape, int pool, Address scale, Address shift, Address out, int threads) {
  IntegrateArguments arguments(sources, rows, segments, shape, pool, scale, shift, threads);
  arguments.call.out = reinterpret_cast<float*>(out);
  py::gil_scoped_release release;
  if (!IFAN_PICK(integrate_forward)(arguments.call)) throw std::bad_alloc();
}

void integrate_backward(const std::vector<SourceFields>& sources, Address rows, const std::vector<int64_t>& segments,
                        const std::array<int64_t, 4>& shape, int pool, Address scale, Address shift, Address mean,
                        Address gradient, Address sums, int threads) {
  IntegrateArguments arguments(sources, rows, segments, shape, pool, scale, shift, threads);
  arguments.call.mean = reinterpret_cast<const float*>(mean);
  arguments.call.gradient = reinterpret_cast<const float*>(gradient);
  arguments.call.sums = reinterpret_cast<float*>(sums);
  py::gil_scoped_release release;
  if (!IFAN_PICK(integrate_backward)(arguments.call)) throw std::bad_alloc();
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
  return result;
}

void use_isa(const std::string& wanted) {
  for (Isa isa : compiled_isas())
    if (wanted == name(isa)) {
      if (!supported(isa)) throw std::invalid_argument("this processor has no " + wanted + "; choose one of features()['supported']");
      return set_isa(isa);
    }
  throw std::invalid_argument("expected one of features()['compiled']; got " + wanted + ". Choose one of them.");
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "CPU kernels of ifan, compiled once an instruction set; see ifan.ops.";
  module.def("features", &features, "Processor name, the instruction set in use, those compiled and those this processor has.");
  module.def("use_isa", &use_isa, "Run the kernels of this instruction set from now on (tests and benchmarks).");
  module.def("channel_moments_forward", &channel_moments_forward);
  module.def("channel_moments_backward", &channel_moments_backward);
  module.def("integrate_forward", &integrate_forward);
  module.def("integrate_backward", &integrate_backward);
}
