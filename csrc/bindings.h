// What the files that bind the kernels to Python share.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "bounds.h"
#include "cpu/convolution.h"
#include "cpu/runtime/isa.h"
#include "cpu/sources.h"

// A kernel for an instruction set: that in use, or the one that what it reads was packed for.
#if defined(__x86_64__)
#define IFAN_PICK_FOR(isa, kernel)                   \
  ((isa) == ifan::Isa::avx512 ? ifan::avx512::kernel \
   : (isa) == ifan::Isa::avx2 ? ifan::avx2::kernel   \
                              : ifan::baseline::kernel)
#else
#define IFAN_PICK_FOR(isa, kernel) ((void)(isa), ifan::baseline::kernel)
#endif
#define IFAN_PICK(kernel) IFAN_PICK_FOR(ifan::current_isa(), kernel)

namespace ifan {

using Address = uintptr_t;
using Sizes = std::array<int64_t, 4>;

// (address, channels, lane stride, channel stride, rows): so many rows, of which each lane reads the one that `rows`
// names; 0: a row a lane.
using SourceFields = std::array<int64_t, 5>;

// (address, lane stride, whether to add)
using TargetFields = std::array<int64_t, 3>;

// The concatenation that a kernel reads; keeps alive what it points to. Throws unless sources, rows, segments and shape
// fit one another.
struct Inputs {
  std::vector<Source> sources;
  std::vector<int64_t> segments;
  std::vector<Target> targets;
  Concatenation x;

  Inputs(const std::vector<SourceFields>& fields, Address rows, const std::vector<int64_t>& lanes, const Sizes& shape,
         const std::vector<TargetFields>& gradients = {})
      : segments(lanes) {
    const int64_t pixels = count_of("H, W", {shape[2], shape[3]});
    count_of("shape", {shape[0], shape[1], shape[2], shape[3]});
    for (int64_t side : {shape[1], shape[2], shape[3]}) expect_range("channels, H and W", side, 0, kMostSide);
    expect_segments(segments, shape[0]);
    int64_t channels = 0, fewest = 0;
    for (const SourceFields& f : fields) {
      expect_range("rows of a source", f[4], 0, kMostValues);
      expect_range("channels of a source", f[1], 0, shape[1] - channels);
      expect_strides("strides of a source", std::array{f[2], f[3], int64_t{1}},
                     std::array{f[4] ? f[4] : shape[0], f[1], pixels});
      expect_address("a source", f[0], count_of("a source", {shape[0], f[1], pixels}));
      sources.push_back({reinterpret_cast<const float*>(f[0]), f[1], f[2], f[3], f[4] != 0});
      channels += f[1];
      if (f[4]) fewest = fewest ? std::min(fewest, f[4]) : f[4];
    }
    expect(channels == shape[1], "channels of the sources", "those of the shape in all", channels);
    if (fewest) expect_rows(rows, shape[0], fewest);
    expect(gradients.empty() || gradients.size() == fields.size(), "gradients", "one a source",
           static_cast<int64_t>(gradients.size()));
    for (size_t i = 0; i < gradients.size(); ++i) {
      const TargetFields& f = gradients[i];
      expect_strides("strides of a gradient", std::array{f[1], pixels}, std::array{shape[0], fields[i][1]});
      expect_address("a gradient", f[0], count_of("a gradient", {shape[0], fields[i][1], pixels}));
      targets.push_back({reinterpret_cast<float*>(f[0]), f[1], f[2] != 0});
    }
    x = {sources.data(),
         static_cast<int64_t>(sources.size()),
         shape[0],
         shape[1],
         shape[2],
         shape[3],
         reinterpret_cast<const int64_t*>(rows),
         segments.data(),
         static_cast<int64_t>(segments.size()),
         targets.data()};
  }

 private:
  // Lanes read no row that is not there. `fewest`: rows of the source that has least of them.
  static void expect_rows(Address rows, int64_t lanes, int64_t fewest) {
    expect_address("rows", rows, lanes);
    for (int64_t lane = 0; lane < lanes; ++lane)
      expect_range("rows", reinterpret_cast<const int64_t*>(rows)[lane], 0, fewest - 1);
  }
};

// The instruction set of this name, which must be compiled and run here.
inline Isa isa_of(const std::string& wanted) {
  for (Isa isa : compiled_isas())
    if (wanted == name(isa)) {
      if (!supported(isa))
        throw std::invalid_argument("this processor has no " + wanted + "; choose one of features()['supported']");
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
