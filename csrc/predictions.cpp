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

// Addresses in the order logits, targets, weights, gradient; `settings`: parsing smoothing, class smoothing, wing width and
// curvature; `of_tasks`: task weights, denominators; `results`: total, losses, counts, divisors. False: a label is out of range.
bool hybrid_loss(const std::array<Address, 4>& parsing, const Sizes& logits_shape, const std::array<int64_t, 2>& labels_shape,
                 const std::array<Address, 4>& points, const std::array<int64_t, 2>& points_shape,
                 const std::array<Address, 3>& classes, int64_t rows, const std::vector<int64_t>& sizes,
                 const std::array<double, 4>& settings, const std::string& point_loss, const std::array<Address, 2>& of_tasks,
                 const std::array<Address, 4>& results, int threads) {
  HybridLoss call{};
  call.parsing = {read(parsing[0]), reinterpret_cast<const uint8_t*>(parsing[1]), read(parsing[2]), logits_shape[0],
                  logits_shape[1], logits_shape[2], logits_shape[3], labels_shape[0], labels_shape[1],
                  static_cast<float>(settings[0]), written(parsing[3])};
  call.points = {read(points[0]), read(points[1]), read(points[2]), points_shape[0], points_shape[1],
                 point_loss_of(point_loss), settings[2], settings[3], written(points[3])};
  call.classes = {read(classes[0]), reinterpret_cast<const int64_t*>(classes[1]), sizes.data(), rows,
                  static_cast<int64_t>(sizes.size()), settings[1], written(classes[2])};
  call.task_weights = read(of_tasks[0]), call.denominators = read(of_tasks[1]);
  call.total = written(results[0]), call.losses = written(results[1]);
  call.counts = written(results[2]), call.divisors = written(results[3]);
  call.threads = threads;
  py::gil_scoped_release release;
  const Outcome outcome = IFAN_PICK(hybrid_loss)(call);
  if (outcome == Outcome::out_of_memory) throw std::bad_alloc();
  return outcome == Outcome::done;
}

// `of_tasks`: task weights, losses, divisors; of each prediction what forward made, its gradient and the number of values; rows
// of classifications.
void hybrid_loss_backward(const std::array<Address, 2>& upstream, const std::array<Address, 3>& of_tasks,
                          const std::array<int64_t, 3>& parsing, bool has_parsing, const std::array<int64_t, 3>& points,
                          bool has_points, const std::array<int64_t, 3>& classes, const std::vector<int64_t>& sizes,
                          Address weights_gradient, int threads) {
  HybridLossBackward call{};
  call.total = read(upstream[0]), call.of_losses = read(upstream[1]);
  call.task_weights = read(of_tasks[0]), call.losses = read(of_tasks[1]), call.divisors = read(of_tasks[2]);
  call.parsing = {has_parsing, read(parsing[0]), written(parsing[1]), parsing[2]};
  call.points = {has_points, read(points[0]), written(points[1]), points[2]};
  call.classes_made = read(classes[0]), call.classes_gradient = written(classes[1]), call.rows = classes[2];
  call.sizes = sizes.data(), call.class_tasks = static_cast<int64_t>(sizes.size());
  call.weights_gradient = written(weights_gradient);
  call.threads = threads;
  py::gil_scoped_release release;
  IFAN_PICK(hybrid_loss_backward)(call);
}

}  // namespace

void bind_predictions(py::module_& module) {
  module.def("encode_forward", &encode_forward);
  module.def("encode_backward", &encode_backward);
  module.def("hybrid_loss", &hybrid_loss);
  module.def("hybrid_loss_backward", &hybrid_loss_backward);
}

}  // namespace ifan
