// ifan._cpu.Plan: kernel calls recorded once, with the addresses of one arena, and run together without Python between
// them.
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "bindings.h"
#include "cpu/convolution_bf16.h"
#include "cpu/direct_bf16.h"
#include "cpu/encode_predictions.h"
#include "cpu/feedback.h"
#include "cpu/integrate.h"
#include "cpu/mobile_block.h"
#include "cpu/runtime/thread_pool.h"
#include "cpu/small_maps.h"
#include "cpu/tiles_bf16.h"

namespace py = pybind11;

namespace ifan {
namespace {

using Fields = std::vector<SourceFields>;
using Segments = std::vector<int64_t>;

const float* read(Address address) { return reinterpret_cast<const float*>(address); }
float* written(Address address) { return reinterpret_cast<float*>(address); }

// (plane, row, top, left, half, split), around pictures of `size` x `size` that have to lie inside.
Border border_of(const std::array<int64_t, 6>& b, int64_t size) {
  const auto [plane, row, top, left, half, split] = b;
  for (int64_t value : {row, top, left, half, size}) expect_range("border and size", value, 0, kMostSide);
  const int64_t along = left + size - 1, last = (top + size - 1) * row + (split ? half + along / 2 : along);
  expect_range("plane of a border", plane, size ? last + 1 : 0, kMostValues);
  return {plane, row, top, left, half, split != 0};
}

// Something is to be read or written at each of these addresses.
void expect_addresses(const char* what, std::initializer_list<Address> addresses, int64_t count) {
  for (Address address : addresses) expect_address(what, address, count);
}

// Packing `count` weights.
void expect_packing(Address weight, Address filters, int64_t count) {
  expect_addresses("weight and filters", {weight, filters}, count);
}

// Runs the kernels of the instruction set it was recorded under, whose packed weights no other can read, whatever is in
// use by then.
class RecordedPlan {
 public:
  explicit RecordedPlan(bool bf16) : bf16_(bf16) {}

  const char* isa() const { return name(isa_); }

  void convolution(const Fields& sources, Address rows, const Segments& segments, const Sizes& shape, Address scale,
                   Address shift, Address filters, int64_t outputs, const std::string& epilogue, Address out,
                   int64_t out_lane_stride) {
    const auto inputs = std::make_shared<Inputs>(sources, rows, segments, shape);
    expect_filters(*inputs, outputs, 9, filters, out, out_lane_stride);
    expect(!scale == !shift, "scale and shift", "both or neither", shift ? 1 : 0);
    expect(epilogue != "relu_phase_shift" || outputs % 4 == 0, "outputs before the phase shift", "a multiple of 4",
           outputs);
    ConvolutionForward call{inputs->x,     read(scale),     read(shift),
                            read(filters), outputs,         epilogue_of(epilogue),
                            written(out),  out_lane_stride, 1};
#if defined(__x86_64__)
    if (bf16_ && tiles_) return record("convolution_tiles", call, avx512bf16::tile_convolution_forward, inputs);
#endif
    if (IFAN_PICK(fits_small_maps)(shape[2], shape[3]))
      record("small_convolution", call, IFAN_PICK(small_convolution_forward), inputs);
#if defined(__x86_64__)
    else if (bf16_)
      record("convolution_bf16", call, avx512bf16::convolution_forward, inputs);
#endif
    else
      record("convolution", call, IFAN_PICK(convolution_forward), inputs);
  }

  void integrate(const Fields& sources, Address rows, const Segments& segments, const Sizes& shape, int pool,
                 Address scale, Address shift, Address out) {
    const auto inputs = std::make_shared<Inputs>(sources, rows, segments, shape);
    expect_range("pool", pool, 1, 2);
    expect(shape[2] % pool == 0 && shape[3] % pool == 0, "pool", "1 where H or W is odd", pool);
    expect_addresses("scale and shift", {scale, shift}, shape[1]);
    expect_address("out", out, count_of("shape", {shape[0], shape[1], shape[2], shape[3]}));
    IntegrateCall call{};
    call.x = inputs->x, call.pool = pool, call.scale = read(scale), call.shift = read(shift), call.out = written(out);
    record("integrate", call, IFAN_PICK(integrate_forward), inputs);
  }

  void direct(const Fields& sources, Address rows, const Segments& segments, const Sizes& shape,
              const std::vector<int64_t>& offsets, int64_t row_step, Address filters, int64_t outputs, Address initial,
              Address out, int64_t out_lane_stride, bool relu, bool bf16) {
    const auto inputs = std::make_shared<Inputs>(sources, rows, segments, shape);
    const auto taps = std::make_shared<std::vector<int64_t>>(offsets);
    expect_filters(*inputs, outputs, static_cast<int64_t>(offsets.size()), filters, out, out_lane_stride);
    expect_reach(*inputs, offsets, row_step);
    DirectConvolution call{inputs->x,
                           taps->data(),
                           static_cast<int64_t>(taps->size()),
                           row_step,
                           read(filters),
                           outputs,
                           read(initial),
                           written(out),
                           out_lane_stride,
                           relu,
                           1};
#if defined(__x86_64__)
    if (bf16 && tiles_)
      record("direct_tiles", call, avx512bf16::tile_direct_convolution, inputs, taps);
    else if (bf16)
      record("direct_bf16", call, avx512bf16::direct_convolution, inputs, taps);
    else
#endif
      record("direct", call, IFAN_PICK(direct_convolution), inputs, taps);
  }

  void head(const Fields& sources, Address rows, const Segments& segments, const Sizes& shape, Address weight,
            Address bias, int64_t outputs, Address out) {
    const auto inputs = std::make_shared<Inputs>(sources, rows, segments, shape);
    const int64_t count = count_of("outputs and inputs", {outputs, shape[1], shape[2], shape[3]});
    expect_address("weight", weight, count);
    expect_addresses("bias and out", {bias, out}, count_of("outputs", {shape[0], outputs}));
    DenseHead call{inputs->x, read(weight), read(bias), outputs, written(out), 1};
    record("head", call, IFAN_PICK(dense_head), inputs);
  }

  void heat_maps(const std::vector<Address>& maps, int64_t lanes, int64_t points, int64_t size, Address out) {
    const auto levels = std::make_shared<std::vector<const float*>>();
    const int64_t count = count_of("heat maps", {lanes, points, size, size});
    expect_range("levels", static_cast<int64_t>(maps.size()), 1, 16);
    expect_range("size", size, 16, kMostSide);
    expect(size % 16 == 0 && size % (int64_t{1} << (maps.size() - 1)) == 0, "size",
           "a multiple of 16, halved by each level", size);
    for (Address address : maps) expect_address("heat maps", address, count);
    expect_address("out", out, count);
    for (Address address : maps) levels->push_back(read(address));
    HeatMaps call{levels->data(), static_cast<int64_t>(levels->size()), lanes, points, size, written(out), 1};
    record("heat_maps", call, IFAN_PICK(heat_maps), levels);
  }

  void image(Address images, int64_t lanes, int64_t size, int64_t fold, const std::array<float, 3>& mean, float scale,
             Address out, const std::array<int64_t, 6>& border) {
    expect_range("fold", fold, 1, kMostSide);
    const int64_t planes = count_of("images", {3, lanes, fold, fold});
    expect_addresses("images and out", {images, out}, count_of("images", {planes, size, size}));
    count_of("border", {planes, border[0]});
    PrepareImage call{reinterpret_cast<const uint8_t*>(images),
                      lanes,
                      size,
                      fold,
                      {mean[0], mean[1], mean[2]},
                      scale,
                      written(out),
                      border_of(border, size),
                      1};
    record("image", call, IFAN_PICK(prepare_image));
  }

  void border(Address x, int64_t lanes, int64_t lane_stride, int64_t planes, int64_t size, Address out,
              const std::array<int64_t, 6>& border) {
    expect_range("size", size, 0, kMostSide);
    expect_strides("strides of the planes", std::array{lane_stride, size * size}, std::array{lanes, planes});
    expect_addresses("planes", {x, out}, count_of("planes", {lanes, planes, size, size}));
    count_of("border", {lanes, planes, border[0]});
    AddBorder call{read(x), lanes, lane_stride, planes, size, written(out), border_of(border, size), 1};
    record("border", call, IFAN_PICK(add_border));
  }

  void encode(Address parsing, Address points, const std::vector<Address>& logits, const std::vector<int64_t>& sizes,
              int64_t lanes, int64_t classes, int64_t points_count, int64_t size, int64_t radius, Address out) {
    const auto widths = std::make_shared<std::vector<int64_t>>(sizes);
    const int64_t constant = sum_of_sizes(sizes);
    count_of("planes", {lanes, classes + points_count + constant, size, size});
    expect_address("parsing", parsing, count_of("parsing", {lanes, classes, size, size}));
    expect_address("points", points, count_of("points", {lanes, points_count}));
    expect(logits.size() == sizes.size(), "logits", "one a classification", static_cast<int64_t>(logits.size()));
    for (Address address : logits) expect_address("logits", address, lanes);
    expect_address("out", out, lanes * size * (classes + points_count + constant));
    expect_range("size", size, 0, kMostSide);
    expect_range("radius", radius, 0, kMostRadius);
    const auto heads = std::make_shared<std::vector<const float*>>();
    for (Address address : logits) heads->push_back(read(address));
    EncodePlanes call{read(parsing),
                      read(points),
                      heads->data(),
                      widths->data(),
                      widths->data(),
                      lanes,
                      classes,
                      points_count,
                      static_cast<int64_t>(sizes.size()),
                      size,
                      radius,
                      written(out),
                      1};
    record("encode", call, IFAN_PICK(encode_planes), widths, heads);
  }

  void stem_shares(Address share, int64_t lanes, int64_t outputs, int64_t size, Address classes, int64_t classes_count,
                   int64_t lane_stride, Address by_border, Address points, int64_t points_count, int64_t radius,
                   Address filters, Address out) {
    const int64_t count = count_of("stem", {lanes, outputs, size, size});
    expect_range("size", size, 7, kMostSide);
    expect_range("radius", radius, points_count ? 1 : 0, kMostRadius);
    expect_strides("strides of the constant planes", std::array{lane_stride, size * size},
                   std::array{lanes, classes_count});
    expect_addresses("share and out", {share, out}, count);
    expect_addresses("constant planes", {classes, by_border},
                     count_of("constant planes", {lanes, classes_count, outputs, 49}));
    expect_addresses("points", {points, filters}, count_of("points", {lanes, points_count, outputs, 49}));
    StemShares call{read(share),     lanes,        outputs,      size,   read(classes), classes_count, lane_stride,
                    read(by_border), read(points), points_count, radius, read(filters), written(out),  1};
    record("stem_shares", call, IFAN_PICK(stem_shares));
  }

  void class_maps(Address planes, int64_t lanes, int64_t lane_stride, int64_t plane_stride, int64_t width,
                  const std::array<Address, 3>& weights, const std::array<Address, 3>& maps,
                  const std::array<int64_t, 3>& sizes) {
    expect_strides("strides of the planes", std::array{lane_stride, plane_stride}, std::array{lanes, width});
    expect_address("planes", planes, count_of("planes", {lanes, width}));
    for (int i = 0; i < 3; ++i) {
      expect_address("weight", weights[i], count_of("weight", {width, width}));
      expect_address("map", maps[i], count_of("map", {lanes, width, sizes[i], sizes[i]}));
    }
    ClassMaps call{};
    call.planes = read(planes), call.lanes = lanes, call.lane_stride = lane_stride, call.plane_stride = plane_stride;
    call.width = width, call.threads = 1;
    for (int i = 0; i < 3; ++i)
      call.weights[i] = read(weights[i]), call.maps[i] = written(maps[i]), call.sizes[i] = sizes[i];
    record("class_maps", call, IFAN_PICK(class_maps));
  }

  void max_pool(Address x, int64_t planes, int64_t height, int64_t width, Address out) {
    expect_addresses("planes", {x, out}, count_of("planes", {4, planes, height, width}));
    record("max_pool", MaxPool{read(x), planes, height, width, written(out), 1}, IFAN_PICK(max_pool));
  }

  void add_shared(Address x, Address y, int64_t lanes, int64_t values, Address out) {
    expect_addresses("maps", {x, y, out}, count_of("maps", {lanes, values}));
    record("add_shared", AddShared{read(x), read(y), lanes, values, written(out), 1}, IFAN_PICK(add_shared));
  }

  // first: (filters, bias, outputs, kernel, stride); depthwise: (weight, bias, stride); last: (filters, bias, outputs,
  // relu, subpixels).
  void mobile_block(Address x, const std::array<int64_t, 3>& shape, const std::array<int64_t, 5>& first,
                    const std::array<int64_t, 3>& depthwise, const std::array<int64_t, 5>& last, Address add,
                    Address out) {
    const auto [inputs, height, width] = shape;
    const int64_t expanded = first[0] ? first[2] : inputs, outputs = last[2];
    const int64_t step = (first[0] ? first[4] : 1) * (depthwise[0] ? depthwise[2] : 1);
    expect_range("inputs", inputs, 1, kMostSide);
    expect_range("expanded", expanded, 1, kMostSide);
    expect_range("outputs", outputs, 1, kMostSide);
    if (first[0]) {
      expect(first[3] == 3 || (first[3] == 1 && first[4] == 1), "first kernel", "3, or 1 of stride 1", first[3]);
      expect_range("first stride", first[4], 1, 2);
    }
    if (depthwise[0]) expect_range("depthwise stride", depthwise[2], 1, 2);
    expect_range("height", height, step, kMostSide);
    expect_range("width", width, step, kMostSide);
    expect(height % step == 0 && width % step == 0, "strides", "divisors of height and width", step);
    expect(!last[4] || outputs % 4 == 0, "outputs as subpixels", "a multiple of 4", outputs);
    expect_addresses("x and out", {x, out}, count_of("pixels", {inputs, outputs, height, width}));
    expect_addresses("weights", {static_cast<Address>(last[0]), static_cast<Address>(last[1])}, outputs);
    if (first[0]) expect_address("first bias", first[1], expanded);
    if (depthwise[0]) expect_address("depthwise bias", depthwise[1], expanded);
    MobileBlock call{read(x),
                     inputs,
                     height,
                     width,
                     read(first[0]),
                     read(first[1]),
                     expanded,
                     first[3],
                     first[4],
                     read(depthwise[0]),
                     read(depthwise[1]),
                     depthwise[2],
                     read(last[0]),
                     read(last[1]),
                     last[2],
                     last[3] != 0,
                     last[4] != 0,
                     read(add),
                     written(out),
                     1};
    record("mobile_block", call, IFAN_PICK(mobile_block));
  }

  size_t steps() const { return steps_.size(); }

  // False: out of memory.
  bool run(int threads) const {
    for (const Step& step : steps_)
      if (!step.call(threads)) return false;
    return true;
  }

  // Runs once; name and seconds of each step.
  std::vector<std::pair<std::string, double>> profile(int threads) const {
    expect_threads(threads);
    py::gil_scoped_release release;
    std::vector<std::pair<std::string, double>> found;
    for (const Step& step : steps_) {
      const auto began = std::chrono::steady_clock::now();
      if (!step.call(threads)) throw std::bad_alloc();
      found.emplace_back(step.name, std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
    }
    return found;
  }

 private:
  // What all convolutions write and multiply with.
  static void expect_filters(const Inputs& inputs, int64_t outputs, int64_t taps, Address filters, Address out,
                             int64_t out_lane_stride) {
    const Concatenation& x = inputs.x;
    expect_range("outputs", outputs, 0, kMostSide);
    expect_address("filters", filters, count_of("filters", {outputs, x.channels, taps}));
    expect_address("out", out, count_of("out", {4, x.lanes, outputs, x.height, x.width}));
    expect_strides("strides of out", std::array{out_lane_stride}, std::array{x.lanes});
  }

  // No tap of any pixel lies outside its plane.
  static void expect_reach(const Inputs& inputs, const std::vector<int64_t>& offsets, int64_t row_step) {
    const Concatenation& x = inputs.x;
    expect_range("row_step", row_step, 0, kMostSide);
    for (const Source& source : inputs.sources)
      for (int64_t offset : offsets)
        expect_range("offsets of the taps", offset, 0, source.channel_stride - (x.height - 1) * row_step - x.width);
  }

  struct Step {
    const char* name;
    std::function<bool(int)> call;
  };

  // The kernel is chosen now, for that instruction set which the weights are packed for; `kept` lives as long as the
  // step.
  template <typename Call, typename... Kept>
  void record(const char* step, Call call, bool (*kernel)(const Call&), Kept... kept) {
    if (current_isa() != isa_)
      throw std::runtime_error(std::string("Plan: expected the instruction set it was begun under, ") + isa() +
                               ", in use; got " + name(current_isa()) + ". Record a plan anew after use_isa().");
    steps_.push_back({step, [call, kernel, held = std::make_tuple(kept...)](int threads) {
                        Call now = call;
                        now.threads = threads;
                        return kernel(now);
                      }});
  }

  const bool bf16_, tiles_ = uses_tiles();
  const Isa isa_ = current_isa();
  std::vector<Step> steps_;
};

// A thread a plan: nothing waits between the steps.
void run_plans(const std::vector<const RecordedPlan*>& plans, int threads) {
  expect_threads(threads);
  for (const RecordedPlan* plan : plans)
    if (!plan) refuse("plans", "a list of Plan", "None");
  struct Context {
    const std::vector<const RecordedPlan*>& plans;
    int threads;
    std::atomic<bool> failed{false};
  } context{plans, plans.size() > 1 ? 1 : threads};
  const auto run = [](void* argument, int64_t begin, int64_t end) {
    Context& c = *static_cast<Context*>(argument);
    for (int64_t i = begin; i < end; ++i)
      if (!c.plans[i]->run(c.threads)) c.failed = true;
  };
  py::gil_scoped_release release;
  parallel_for(static_cast<int64_t>(plans.size()), 1, threads, run, &context);
  if (context.failed) throw std::bad_alloc();
}

int64_t packed_taps(int64_t outputs, int64_t products) {
  count_of("filters", {outputs, products});
  return IFAN_PICK(packed_taps)(outputs, products);
}

void pack_taps(Address weight, int64_t outputs, int64_t products, Address filters) {
  expect_packing(weight, filters, count_of("filters", {outputs, products}));
  IFAN_PICK(pack_taps)({read(weight), outputs, products, written(filters)});
}

bool fits_small_maps(int64_t height, int64_t width) {
  count_of("H, W", {height, width});
  return IFAN_PICK(fits_small_maps)(height, width);
}

int64_t packed_small_filters(int64_t outputs, int64_t inputs) {
  count_of("filters", {outputs, inputs});
  return IFAN_PICK(packed_small_filters)(outputs, inputs);
}

void pack_small_filters(Address weight, int64_t outputs, int64_t inputs, Address filters) {
  expect_packing(weight, filters, count_of("filters", {outputs, inputs, 9}));
  IFAN_PICK(pack_small_filters)({read(weight), outputs, inputs, false, written(filters)});
}

#if defined(__x86_64__)
// A kernel of bfloat16: by tile registers or by vectors.
#define IFAN_PICK_BF16(tiles, vectors) (uses_tiles() ? avx512bf16::tiles : avx512bf16::vectors)

int64_t packed_filters_bf16(int64_t outputs, int64_t inputs) {
  count_of("filters", {outputs, inputs});
  return IFAN_PICK_BF16(packed_tile_filters, packed_filters)(outputs, inputs);
}

void pack_filters_bf16(Address weight, int64_t outputs, int64_t inputs, Address filters) {
  expect_packing(weight, filters, count_of("filters", {outputs, inputs, 9}));
  IFAN_PICK_BF16(pack_tile_filters, pack_filters)({read(weight), outputs, inputs, false, written(filters)});
}

int64_t packed_taps_bf16(int64_t outputs, int64_t channels, int64_t taps) {
  count_of("filters", {outputs, channels, taps});
  return IFAN_PICK_BF16(packed_tile_taps, packed_taps)(outputs, channels, taps);
}

void pack_taps_bf16(Address weight, int64_t outputs, int64_t channels, int64_t taps, Address filters) {
  expect_packing(weight, filters, count_of("filters", {outputs, channels, taps}));
  IFAN_PICK_BF16(pack_tile_taps, pack_taps)({read(weight), outputs, channels * taps, written(filters)}, taps);
}
#endif

}  // namespace

void bind_plan(py::module_& module) {
  module.def("packed_taps", &packed_taps, "Floats that pack_taps writes for the instruction set in use.");
  module.def("pack_taps", &pack_taps);
  module.def("run_plans", &run_plans, "Run one plan on all threads, or several on a thread each.");
  module.def("fits_small_maps", &fits_small_maps,
             "Whether Plan.convolution reads filters of pack_small_filters for this shape.");
  module.def("packed_small_filters", &packed_small_filters, "Floats that pack_small_filters writes.");
  module.def("pack_small_filters", &pack_small_filters);
#if defined(__x86_64__)
  module.def("packed_filters_bf16", &packed_filters_bf16, "Floats that pack_filters_bf16 writes.");
  module.def("pack_filters_bf16", &pack_filters_bf16,
             "Where features()['bf16']: filters of a convolution of Plan(bf16=True).");
  module.def("packed_taps_bf16", &packed_taps_bf16, "Floats that pack_taps_bf16 writes.");
  module.def("pack_taps_bf16", &pack_taps_bf16, "Where features()['bf16']: filters of Plan.direct with bf16=True.");
#endif
  py::class_<RecordedPlan>(module, "Plan", "Kernel calls recorded once and run together; see ifan.engine.")
      .def(py::init<bool>(), py::arg("bf16") = false)
      .def_property_readonly("isa", &RecordedPlan::isa, "The instruction set that it was recorded under and runs.")
      .def("convolution", &RecordedPlan::convolution)
      .def("integrate", &RecordedPlan::integrate)
      .def("direct", &RecordedPlan::direct, py::arg("sources"), py::arg("rows"), py::arg("segments"), py::arg("shape"),
           py::arg("offsets"), py::arg("row_step"), py::arg("filters"), py::arg("outputs"), py::arg("initial"),
           py::arg("out"), py::arg("out_lane_stride"), py::arg("relu"), py::arg("bf16") = false)
      .def("head", &RecordedPlan::head)
      .def("heat_maps", &RecordedPlan::heat_maps)
      .def("image", &RecordedPlan::image)
      .def("border", &RecordedPlan::border)
      .def("encode", &RecordedPlan::encode)
      .def("stem_shares", &RecordedPlan::stem_shares)
      .def("class_maps", &RecordedPlan::class_maps)
      .def("max_pool", &RecordedPlan::max_pool)
      .def("add_shared", &RecordedPlan::add_shared)
      .def("mobile_block", &RecordedPlan::mobile_block)
      .def("profile", &RecordedPlan::profile)
      .def("__len__", &RecordedPlan::steps);
}

}  // namespace ifan
