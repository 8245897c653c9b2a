#include "hybrid_loss.h"
#include "runtime/thread_pool.h"

namespace ifan {
namespace IFAN_ISA {
namespace {

constexpr int64_t kPiece = 32768;  // values that are worth waking a thread for

struct Scaling {
  const float* made;
  float* gradient;
  float factor;
};

void scale(void* context, int64_t begin, int64_t end) {
  const Scaling& s = *static_cast<const Scaling*>(context);
  for (int64_t i = begin; i < end; ++i) s.gradient[i] = s.made[i] * s.factor;
}

}  // namespace

void hybrid_loss_backward(const HybridLossBackward& call) {
  const int64_t tasks = call.parsing.present + call.points.present + call.class_tasks;
  int64_t task = 0, width = 0;
  const auto factor = [&] {
    const float arriving =
        (call.total ? *call.total * call.weights[task] : 0) + (call.of_losses ? call.of_losses[task] : 0);
    ++task;
    return arriving;
  };
  if (call.parsing.present) {
    Scaling scaling{call.parsing.made, call.parsing.gradient, factor()};
    const bool made = scaling.factor == 1 && scaling.gradient == scaling.made;  // as where a step adds up its losses
    if (!made) parallel_for(call.parsing.count, kPiece, call.threads, scale, &scaling);
  }
  if (call.points.present) {
    Scaling scaling{call.points.made, call.points.gradient, factor()};
    scale(&scaling, 0, call.points.count);
  }
  for (int64_t t = 0; t < call.class_tasks; ++t) width += call.sizes[t];
  for (int64_t t = 0, first = 0; t < call.class_tasks; first += call.sizes[t++]) {
    const float f = factor();
    for (int64_t row = 0; row < call.rows; ++row)
      for (int64_t k = row * width + first; k < row * width + first + call.sizes[t]; ++k)
        call.classes_gradient[k] = call.classes_made[k] * f;
  }
  for (int64_t t = 0; call.weights_gradient && t < tasks; ++t)
    call.weights_gradient[t] = call.total ? *call.total * call.losses[t] : 0;
}

}  // namespace IFAN_ISA
}  // namespace ifan
