// What the files that bind the kernels to Python share.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/convolution.h"
#include "cpu/runtime/isa.h"
#include "cpu/sources.h"

// A kernel for an instruction set: that in use, or the one that what it reads was packed for.
#if defined(__x86_64__)
#define IFAN_PICK_FOR(isa, kernel)                      \
  ((isa) == ifan::Isa::avx512 ? ifan::avx512::kernel : \
   (isa) == ifan::Isa::avx2   ? ifan::avx2::kernel   : \
                                ifan::baseline::kernel)
#else
#define IFAN_PICK_FOR(isa, kernel) ((void)(isa), ifan::baseline::kernel)
#endif
#define IFAN_PICK(kernel) IFAN_PICK_FOR(ifan::current_isa(), kernel)

namespace ifan {

using Address = uintptr_t;
using Sizes = std::array<int64_t, 4>;

// (address, channels, lane stride, channel stride, a row a sample)
using SourceFields = std::array<int64_t, 5>;

// (address, lane stride, whether to add)
using TargetFields = std::array<int64_t, 3>;

// The concatenation that a kernel reads; keeps alive what it points to.
struct Inputs {
  std::vector<Source> sources;
  std::vector<int64_t> segments;
  std::vector<Target> targets;
  Concatenation x;

  Inputs(const std::vector<SourceFields>& fields, Address rows, const std::vector<int64_t>& lanes, const Sizes& shape,
         const std::vector<TargetFields>& gradients = {})
      : segments(lanes) {
    for (const SourceFields& f : fields)
      sources.push_back({reinterpret_cast<const float*>(f[0]), f[1], f[2], f[3], f[4] != 0});
    for (const TargetFields& f : gradients) targets.push_back({reinterpret_cast<float*>(f[0]), f[1], f[2] != 0});
    x = {sources.data(), static_cast<int64_t>(sources.size()), shape[0], shape[1], shape[2], shape[3],
         reinterpret_cast<const int64_t*>(rows), segments.data(), static_cast<int64_t>(segments.size()), targets.data()};
  }
};

// The instruction set of this name, which must be compiled and run here.
inline Isa isa_of(const std::string& wanted) {
  for (Isa isa : compiled_isas())
    if (wanted == name(isa)) {
      if (!supported(isa)) throw std::invalid_argument("this processor has no " + wanted + "; choose one of features()['supported']");
      return isa;
    }
  throw std::invalid_argument("expected one of features()['compiled']; got " + wanted + ". Choose one of them.");
}

inline Epilogue epilogue_of(const std::string& name) {
  if (name == "none") return Epilogue::none;
  if (name == "relu") return Epilogue::relu;
  if (name == "relu_phase_shift") return Epilogue::relu_phase_shift;
  throw std::invalid_argument("epilogue must be none, relu or relu_phase_shift; got " + name + ". Choose one of them.");
}

void bind_dense_block(pybind11::module_& module);
void bind_plan(pybind11::module_& module);
void bind_predictions(pybind11::module_& module);

}  // namespace ifan
