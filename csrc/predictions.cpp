// ifan._cpu: the kernels on predictions, encode_predictions and hybrid_loss.
#include <new>

#include "bindings.h"
#include "cpu/encode_predictions.h"
#include "cpu/hybrid_loss.h"

namespace py = pybind11;

namespace ifan {
namespace {

const float* read(Address address) { return reinterpret_cast<const float*>(address); }
float* written(Address address) { return reinterpret_cast<float*>(address); }

PointLoss point_loss_of(const std::string& name) {
  if (name == "wing") return PointLoss::wing;
  if (name == "smooth_l1") return PointLoss::smooth_l1;
  if (name == "l2") return PointLoss::l2;
  throw std::invalid_argument("point_loss must be wing, smooth_l1 or l2; got " + name + ". Choose one of them.");
}

// Arguments of both directions of encode_predictions; shape: (N, classes, S, S). Returns the values of all planes.
int64_t expect_planes(const std::vector<int64_t>& sizes, const Sizes& shape, int64_t points_count, int threads) {
  expect(shape[2] == shape[3], "W of the parsing logits", "its H", shape[3]);
  expect_range("S", shape[2], 0, kMostSide);
  count_of("parsing logits", {shape[0], shape[1], shape[2], shape[3]});
  expect_range("points", points_count, 0, kMostSide);
  expect_threads(threads);
  return count_of("planes", {shape[0], shape[1] + points_count + sum_of_sizes(sizes), shape[2], shape[3]});
}

void encode_forward(Address parsing, Address points, Address logits, const std::vector<int64_t>& sizes,
                    const Sizes& shape, int64_t points_count, int64_t radius, Address out, int threads) {
  const int64_t values = expect_planes(sizes, shape, points_count, threads);
  expect_range("radius", radius, 0, kMostRadius);
  expect_address("parsing logits", parsing, shape[0] * shape[1] * shape[2]);
  expect_address("points", points, shape[0] * points_count);
  expect_address("class logits", logits, shape[0] * static_cast<int64_t>(sizes.size()));
  expect_address("planes", out, values);
  std::vector<const float*> heads;
  int64_t constant = 0;
  for (int64_t size : sizes) heads.push_back(read(logits) + constant), constant += size;
  const std::vector<int64_t> strides(sizes.size(), constant);
  const EncodePlanes call{read(parsing), read(points),   heads.data(),
                          sizes.data(),  strides.data(), shape[0],
                          shape[1],      points_count,   static_cast<int64_t>(sizes.size()),
                          shape[2],      radius,         written(out),
                          threads};
  py::gil_scoped_release release;
  IFAN_PICK(encode_planes)(call);
}

void encode_backward(Address gradient, Address parsing, Address logits, const std::vector<int64_t>& sizes,
                     const Sizes& shape, int64_t points_count, Address parsing_gradient, Address logits_gradient,
                     int threads) {
  expect_address("gradient", gradient, expect_planes(sizes, shape, points_count, threads));
  for (Address address : {parsing, parsing_gradient})
    expect_address("parsing logits", address, shape[0] * shape[1] * shape[2]);
  for (Address address : {logits, logits_gradient})
    expect_address("class logits", address, shape[0] * static_cast<int64_t>(sizes.size()));
  const EncodeBackward call{read(gradient),
                            read(parsing),
                            read(logits),
                            sizes.data(),
                            shape[0],
                            shape[1],
                            points_count,
                            static_cast<int64_t>(sizes.size()),
                            shape[2],
                            written(parsing_gradient),
                            written(logits_gradient),
                            threads};
  py::gil_scoped_release release;
  IFAN_PICK(encode_backward)(call);
}

// hybrid_loss for calls of one kind: shapes and settings are given once, addresses every time. `settings`: parsing
// smoothing, class smoothing, wing width and curvature.
class HybridLossKernel {
 public:
  HybridLossKernel(const Sizes& logits, const std::array<int64_t, 2>& labels, const std::array<int64_t, 2>& points,
                   int64_t rows, const std::vector<int64_t>& sizes, const std::array<double, 4>& settings,
                   const std::string& point_loss)
      : sizes_(sizes) {
    expect_kind(logits, labels, points, rows, settings);
    ParsingTask& parsing = kind_.parsing;
    parsing.images = logits[0], parsing.classes = logits[1], parsing.height = logits[2], parsing.width = logits[3];
    parsing.label_height = labels[0], parsing.label_width = labels[1],
    parsing.smoothing = static_cast<float>(settings[0]);
    kind_.points.rows = points[0], kind_.points.count = points[1], kind_.points.kind = point_loss_of(point_loss);
    kind_.points.width = settings[2], kind_.points.curvature = settings[3];
    kind_.classes.rows = rows, kind_.classes.tasks = static_cast<int64_t>(sizes.size()),
    kind_.classes.smoothing = settings[1];
  }

  // Those not needed are 0. False: a label is out of range.
  bool forward(Address logits, Address labels, Address class_weights, Address points, Address points_target,
               Address points_weight, Address class_logits, Address class_targets, Address task_weights,
               Address denominators, Address logits_made, Address points_made, Address classes_made, Address total,
               Address losses, Address counts, Address weights_kept, int threads) const {
    HybridLoss call = kind_;
    call.parsing.logits = read(logits), call.parsing.labels = reinterpret_cast<const uint8_t*>(labels);
    call.parsing.class_weights = read(class_weights), call.parsing.gradient = written(logits_made);
    call.points.points = read(points), call.points.target = read(points_target),
    call.points.weight = read(points_weight);
    call.points.gradient = written(points_made);
    call.classes.logits = read(class_logits), call.classes.targets = reinterpret_cast<const int64_t*>(class_targets);
    call.classes.sizes = sizes_.data(), call.classes.gradient = written(classes_made);
    call.task_weights = read(task_weights), call.denominators = read(denominators);
    call.total = written(total), call.losses = written(losses), call.counts = written(counts),
    call.weights_kept = written(weights_kept);
    call.threads = threads;
    expect_forward(call);
    py::gil_scoped_release release;
    const Outcome outcome = IFAN_PICK(hybrid_loss)(call);
    if (outcome == Outcome::out_of_memory) throw std::bad_alloc();
    return outcome == Outcome::done;
  }

  // What forward made and kept, and where the gradients go, which may be the same places. Those not needed are 0.
  void backward(Address total, Address of_losses, Address weights, Address logits_made, Address points_made,
                Address classes_made, Address logits, Address points, Address classes, Address losses,
                Address task_weights, int threads) const {
    const ParsingTask& parsing = kind_.parsing;
    HybridLossBackward call{};
    call.total = read(total), call.of_losses = read(of_losses), call.weights = read(weights);
    call.parsing = {parsing.classes > 0, read(logits_made), written(logits),
                    parsing.images * parsing.classes * parsing.height * parsing.width};
    call.points = {kind_.points.count > 0, read(points_made), written(points),
                   2 * kind_.points.rows * kind_.points.count};
    call.classes_made = read(classes_made), call.classes_gradient = written(classes);
    call.sizes = sizes_.data(), call.rows = kind_.classes.rows, call.class_tasks = kind_.classes.tasks;
    call.losses = read(losses), call.weights_gradient = written(task_weights);
    call.threads = threads;
    expect_backward(call);
    py::gil_scoped_release release;
    IFAN_PICK(hybrid_loss_backward)(call);
  }

 private:
  void expect_kind(const Sizes& logits, const std::array<int64_t, 2>& labels, const std::array<int64_t, 2>& points,
                   int64_t rows, const std::array<double, 4>& settings) {
    for (int64_t side : {logits[1], logits[2], logits[3], labels[0], labels[1], points[1]})
      expect_range("classes and sides", side, 0, kMostSide);
    parsing_values_ = count_of("parsing logits", {logits[0], logits[1], logits[2], logits[3]});
    labels_ = count_of("labels", {logits[0], labels[0], labels[1]});
    count_of("a row of labels", {logits[1], labels[1]});
    points_ = count_of("points", {points[0], points[1]});
    class_tasks_ = count_of("classifications", {rows, static_cast<int64_t>(sizes_.size())});
    class_values_ = count_of("class logits", {rows, sum_of_sizes(sizes_)});
    tasks_ = (logits[1] > 0) + (points[1] > 0) + static_cast<int64_t>(sizes_.size());
    for (int i = 0; i < 2; ++i)
      if (!(settings[i] >= 0 && settings[i] < 1)) refuse("smoothing", "in [0, 1)", std::to_string(settings[i]));
    for (int i = 2; i < 4; ++i)
      if (!(settings[i] > 0)) refuse("wing width and curvature", "positive", std::to_string(settings[i]));
  }

  void expect_forward(const HybridLoss& call) const {
    expect_memory("parsing logits", {call.parsing.logits, call.parsing.gradient}, parsing_values_);
    expect_memory("parsing labels", {call.parsing.labels}, call.parsing.classes ? labels_ : 0);
    expect_memory("points", {call.points.points, call.points.target, call.points.weight, call.points.gradient},
                  points_);
    expect_memory("class logits", {call.classes.logits, call.classes.gradient}, class_values_);
    expect_memory("class targets", {call.classes.targets}, class_tasks_);
    expect_memory("values a task", {call.task_weights, call.total, call.losses, call.counts, call.weights_kept},
                  tasks_);
    expect_threads(call.threads);
  }

  void expect_backward(const HybridLossBackward& call) const {
    expect_memory("parsing logits", {call.parsing.made, call.parsing.gradient}, parsing_values_);
    expect_memory("points", {call.points.made, call.points.gradient}, points_);
    expect_memory("class logits", {call.classes_made, call.classes_gradient}, class_values_);
    expect_memory("task weights", {call.weights}, tasks_);
    expect_memory("losses", {call.losses}, call.weights_gradient ? tasks_ : 0);
    expect_threads(call.threads);
  }

  static void expect_memory(const char* what, std::initializer_list<const void*> pieces, int64_t count) {
    for (const void* memory : pieces) expect_address(what, reinterpret_cast<Address>(memory), count);
  }

  std::vector<int64_t> sizes_;
  int64_t parsing_values_ = 0, labels_ = 0, points_ = 0, class_tasks_ = 0, class_values_ = 0, tasks_ = 0;
  HybridLoss kind_{};
};

}  // namespace

void bind_predictions(py::module_& module) {
  module.def("encode_forward", &encode_forward);
  module.def("encode_backward", &encode_backward);
  py::class_<HybridLossKernel>(module, "HybridLoss")
      .def(py::init<const Sizes&, const std::array<int64_t, 2>&, const std::array<int64_t, 2>&, int64_t,
                    const std::vector<int64_t>&, const std::array<double, 4>&, const std::string&>())
      .def("forward", &HybridLossKernel::forward)
      .def("backward", &HybridLossKernel::backward);
}

}  // namespace ifan
