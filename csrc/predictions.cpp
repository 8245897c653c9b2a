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

void encode_forward(Address parsing, Address points, Address logits, const std::vector<int64_t>& sizes, const Sizes& shape,
                    int64_t points_count, int64_t radius, Address out, int threads) {
  std::vector<const float*> heads;
  int64_t constant = 0;
  for (int64_t size : sizes) heads.push_back(read(logits) + constant), constant += size;
  const std::vector<int64_t> strides(sizes.size(), constant);
  const EncodePlanes call{read(parsing), read(points), heads.data(), sizes.data(), strides.data(), shape[0], shape[1],
                          points_count, static_cast<int64_t>(sizes.size()), shape[2], radius, written(out), threads};
  py::gil_scoped_release release;
  IFAN_PICK(encode_planes)(call);
}

void encode_backward(Address gradient, Address parsing, Address logits, const std::vector<int64_t>& sizes, const Sizes& shape,
                     int64_t points_count, Address parsing_gradient, Address logits_gradient, int threads) {
  const EncodeBackward call{read(gradient), read(parsing), read(logits), sizes.data(), shape[0], shape[1], points_count,
                            static_cast<int64_t>(sizes.size()), shape[2], written(parsing_gradient), written(logits_gradient),
                            threads};
  py::gil_scoped_release release;
  IFAN_PICK(encode_backward)(call);
}

// hybrid_loss for calls of one kind: shapes and settings are told once, addresses every time. `settings`: parsing smoothing, class
// smoothing, wing width and curvature.
class HybridLossKernel {
 public:
  HybridLossKernel(const Sizes& logits, const std::array<int64_t, 2>& labels, const std::array<int64_t, 2>& points, int64_t rows,
                   const std::vector<int64_t>& sizes, const std::array<double, 4>& settings, const std::string& point_loss)
      : sizes_(sizes) {
    ParsingTask& parsing = kind_.parsing;
    parsing.images = logits[0], parsing.classes = logits[1], parsing.height = logits[2], parsing.width = logits[3];
    parsing.label_height = labels[0], parsing.label_width = labels[1], parsing.smoothing = static_cast<float>(settings[0]);
    kind_.points.rows = points[0], kind_.points.count = points[1], kind_.points.kind = point_loss_of(point_loss);
    kind_.points.width = settings[2], kind_.points.curvature = settings[3];
    kind_.classes.rows = rows, kind_.classes.tasks = static_cast<int64_t>(sizes.size()), kind_.classes.smoothing = settings[1];
  }

  // Those not needed are 0. False: a label is out of range.
  bool forward(Address logits, Address labels, Address class_weights, Address points, Address points_target, Address points_weight,
               Address class_logits, Address class_targets, Address task_weights, Address denominators, Address logits_made,
               Address points_made, Address classes_made, Address total, Address losses, Address counts, Address weights_kept, int threads) const {
    HybridLoss call = kind_;
    call.parsing.logits = read(logits), call.parsing.labels = reinterpret_cast<const uint8_t*>(labels);
    call.parsing.class_weights = read(class_weights), call.parsing.gradient = written(logits_made);
    call.points.points = read(points), call.points.target = read(points_target), call.points.weight = read(points_weight);
    call.points.gradient = written(points_made);
    call.classes.logits = read(class_logits), call.classes.targets = reinterpret_cast<const int64_t*>(class_targets);
    call.classes.sizes = sizes_.data(), call.classes.gradient = written(classes_made);
    call.task_weights = read(task_weights), call.denominators = read(denominators);
    call.total = written(total), call.losses = written(losses), call.counts = written(counts), call.weights_kept = written(weights_kept);
    call.threads = threads;
    py::gil_scoped_release release;
    const Outcome outcome = IFAN_PICK(hybrid_loss)(call);
    if (outcome == Outcome::out_of_memory) throw std::bad_alloc();
    return outcome == Outcome::done;
  }

  // What forward made and kept, and where the gradients go, which may be the same places. Those not needed are 0.
  void backward(Address total, Address of_losses, Address weights, Address logits_made, Address points_made, Address classes_made,
                Address logits, Address points, Address classes, Address losses, Address task_weights, int threads) const {
    const ParsingTask& parsing = kind_.parsing;
    HybridLossBackward call{};
    call.total = read(total), call.of_losses = read(of_losses), call.weights = read(weights);
    call.parsing = {parsing.classes > 0, read(logits_made), written(logits),
                    parsing.images * parsing.classes * parsing.height * parsing.width};
    call.points = {kind_.points.count > 0, read(points_made), written(points), 2 * kind_.points.rows * kind_.points.count};
    call.classes_made = read(classes_made), call.classes_gradient = written(classes);
    call.sizes = sizes_.data(), call.rows = kind_.classes.rows, call.class_tasks = kind_.classes.tasks;
    call.losses = read(losses), call.weights_gradient = written(task_weights);
    call.threads = threads;
    py::gil_scoped_release release;
    IFAN_PICK(hybrid_loss_backward)(call);
  }

 private:
  std::vector<int64_t> sizes_;
  HybridLoss kind_{};
};

}  // namespace

void bind_predictions(py::module_& module) {
  module.def("encode_forward", &encode_forward);
  module.def("encode_backward", &encode_backward);
  py::class_<HybridLossKernel>(module, "HybridLoss")
      .def(py::init<const Sizes&, const std::array<int64_t, 2>&, const std::array<int64_t, 2>&, int64_t, const std::vector<int64_t>&,
                    const std::array<double, 4>&, const std::string&>())
      .def("forward", &HybridLossKernel::forward)
      .def("backward", &HybridLossKernel::backward);
}

}  // namespace ifan
