#include "hybrid_loss.h"

#include <math.h>
#include <stdlib.h>

#include <atomic>

#include "cross_entropy.h"
#include "runtime/scratch.h"
#include "runtime/thread_pool.h"
#include "upsampling.h"

namespace ifan {
namespace IFAN_ISA {
namespace {

constexpr int64_t kChunk = 2048;  // pixels of labels as large as the logits that are taken at once
constexpr int64_t kStrip = 16;    // rows of logits whose labels one piece of work takes
constexpr int64_t kStagger = 16;  // floats between rows of 2^n floats, which would share their cache lines' places

struct Parsing {
  const ParsingTask& task;
  CrossEntropy loss;
  Axis x;
  const Tap* rows;                  // of each row of labels
  int64_t pieces;                   // of an image
  double* losses;                   // of each piece
  float* edges;                     // gradient of the row of logits behind each strip: (classes, columns, three parts)
  std::atomic<bool> failed{false};  // out of memory
};

// Labels as large as the logits; index: (image, chunk of pixels). Pixels that do not fill a vector are copied.
void chunks(void* context, int64_t begin, int64_t end) {
  Parsing& parsing = *static_cast<Parsing*>(context);
  const ParsingTask& task = parsing.task;
  const int64_t plane = task.height * task.width;
  float* exponentials = scratch(exponential_floats(task.classes) + task.classes * kWidth + kChunk);
  if (!exponentials) {
    parsing.failed = true;
    return;
  }
  float* last = exponentials + exponential_floats(task.classes);
  int32_t* labels = reinterpret_cast<int32_t*>(last + task.classes * kWidth);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t image = index / parsing.pieces, first = index % parsing.pieces * kChunk,
                  n = min(kChunk, plane - first);
    const int64_t at = image * task.classes * plane + first, whole = n - n % kWidth, rest = n - whole;
    for (int64_t i = 0; i < n; ++i) labels[i] = task.labels[image * plane + first + i];
    for (int64_t i = n; i < whole_vectors(n); ++i) labels[i] = -1;
    parsing.losses[index] =
        cross_entropy(parsing.loss, {task.logits + at, task.gradient + at, plane}, labels, whole, exponentials);
    if (!rest) continue;
    for (int64_t k = 0; k < task.classes; ++k)
      store(last + k * kWidth, load_first(task.logits + at + k * plane + whole, rest));
    parsing.losses[index] += cross_entropy(parsing.loss, {last, last, kWidth}, labels + whole, kWidth, exponentials);
    for (int64_t k = 0; k < task.classes; ++k)
      store_first(task.gradient + at + k * plane + whole, load(last + k * kWidth), rest);
  }
}

// The buffers of a strip.
struct Strip {
  int64_t pixels, stride, parts;
  float *row, *z, *upper, *lower, *spare, *exponentials;
  int32_t* labels;

  static int64_t floats(const Parsing& p) {
    const int64_t pixels = p.x.pixels();
    return p.x.row() + p.task.classes * (pixels + kStagger + 6 * p.x.columns) + 3 * p.x.columns +
           exponential_floats(p.task.classes) + pixels;
  }
  Strip(const Parsing& p, float* memory)
      : pixels(p.x.pixels()),
        stride(pixels + kStagger),
        parts(3 * p.x.columns),
        row(memory),
        z(row + p.x.row()),
        upper(z + p.task.classes * stride),
        lower(upper + p.task.classes * parts),
        spare(lower + p.task.classes * parts),
        exponentials(spare + parts),
        labels(reinterpret_cast<int32_t*>(exponentials + exponential_floats(p.task.classes))) {
    for (int64_t i = 0; i < p.x.row(); ++i) row[i] = 0;
    for (int64_t i = 0; i < pixels; ++i) labels[i] = -1;
    for (int64_t i = 0; i < p.task.classes * stride; ++i) z[i] = 0;
  }
};

// One row of labels, `y`, between two rows of logits; its loss.
double label_row(const Parsing& parsing, const Strip& s, int64_t image, int64_t y) {
  const ParsingTask& task = parsing.task;
  const Tap& between = parsing.rows[y];
  const int64_t plane = task.height * task.width, above = between.first,
                step = above + 1 < task.height ? task.width : 0;
  for (int64_t k = 0; k < task.classes; ++k) {
    const float* logits = task.logits + (image * task.classes + k) * plane + above * task.width;
    parsing.x.blend_rows(logits, logits + step, between, s.row);
    parsing.x.interpolate(s.row, s.z + k * s.stride);
  }
  parsing.x.by_phase(task.labels + (image * task.label_height + y) * task.label_width, s.labels);
  const double loss = cross_entropy(parsing.loss, {s.z, s.z, s.stride}, s.labels, s.pixels, s.exponentials);
  for (int64_t k = 0; k < task.classes; ++k)
    parsing.x.gather(s.z + k * s.stride, between, s.upper + k * s.parts, s.lower + k * s.parts, s.spare);
  return loss;
}

// Labels of another size than the logits; index: (image, strip of logits).
void strips(void* context, int64_t begin, int64_t end) {
  Parsing& parsing = *static_cast<Parsing*>(context);
  const ParsingTask& task = parsing.task;
  float* memory = scratch(Strip::floats(parsing));
  if (!memory) {
    parsing.failed = true;
    return;
  }
  Strip s(parsing, memory);
  const int64_t plane = task.height * task.width, values = task.classes * s.parts;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t image = index / parsing.pieces, first = index % parsing.pieces * kStrip;
    double loss = 0;
    int64_t y = 0;
    while (y < task.label_height && parsing.rows[y].first < first) ++y;
    for (int64_t i = 0; i < values; ++i) s.upper[i] = s.lower[i] = 0;
    for (int64_t j = first; j < min(first + kStrip, task.height); ++j) {
      for (; y < task.label_height && parsing.rows[y].first == j; ++y) loss += label_row(parsing, s, image, y);
      for (int64_t k = 0; k < task.classes; ++k)
        parsing.x.add_parts(s.upper + k * s.parts, task.gradient + (image * task.classes + k) * plane + j * task.width);
      float* done = s.upper;
      s.upper = s.lower, s.lower = done;
      for (int64_t i = 0; i < values; ++i) s.lower[i] = 0;
    }
    for (int64_t i = 0; i < values; ++i) parsing.edges[index * values + i] = s.upper[i];
    parsing.losses[index] = loss;
  }
}

// A strip's share in the first row of the next strip.
void join_strips(const Parsing& parsing, float* row) {
  const ParsingTask& task = parsing.task;
  const int64_t plane = task.height * task.width, parts = 3 * parsing.x.columns;
  for (int64_t index = 0; index < task.images * parsing.pieces; ++index) {
    const int64_t image = index / parsing.pieces, piece = index % parsing.pieces;
    if (piece + 1 == parsing.pieces) continue;
    for (int64_t k = 0; k < task.classes; ++k) {
      parsing.x.add_parts(parsing.edges + (index * task.classes + k) * parts, row);
      float* out = task.gradient + (image * task.classes + k) * plane + (piece + 1) * kStrip * task.width;
      for (int64_t i = 0; i < task.width; ++i) out[i] += row[i];
    }
  }
}

// How many labels are below `classes`, at most 255. Few are counted at once, in a byte, so that a vector compares many.
int64_t below(const uint8_t* labels, int64_t n, int64_t classes) {
  constexpr int64_t few = 128;
  const uint8_t end = static_cast<uint8_t>(classes);
  int64_t found = 0;
  for (; n >= few; n -= few, labels += few) {
    uint8_t some = 0;
    for (int64_t i = 0; i < few; ++i) some = static_cast<uint8_t>(some + (labels[i] < end));
    found += some;
  }
  for (int64_t i = 0; i < n; ++i) found += labels[i] < end;
  return found;
}

// The sum of the labels' weights; false if a label is of no class and not 255, which does not count.
bool weight_of(const ParsingTask& task, double* weight) {
  const int64_t n = task.images * task.label_height * task.label_width, classes = min(task.classes, kIgnored);
  const int64_t counted = below(task.labels, n, classes);
  *weight = task.class_weights ? 0 : static_cast<double>(counted);
  for (int64_t k = 0, before = 0, upto; task.class_weights && k < classes; ++k, before = upto)
    upto = below(task.labels, n, k + 1),
    *weight += static_cast<double>(upto - before) * static_cast<double>(task.class_weights[k]);
  return below(task.labels, n, kIgnored) == counted;
}

Outcome parsing_loss(const ParsingTask& task, int threads, float scale, double* loss) {
  const bool same = task.height == task.label_height && task.width == task.label_width;
  const int64_t pieces = same ? (task.height * task.width + kChunk - 1) / kChunk : (task.height + kStrip - 1) / kStrip;
  const int64_t count = task.images * pieces, columns = whole_vectors(task.width);
  Tap* taps = static_cast<Tap*>(malloc((task.label_width + task.label_height + 1) * sizeof(Tap)));
  double* partial = static_cast<double*>(malloc((count + 1) * sizeof(double)));
  float* floats = static_cast<float*>(
      malloc((task.classes + task.width + (same ? 0 : count * task.classes * 3 * columns)) * sizeof(float)));
  bool made = taps && partial && floats;
  if (made && count && task.width) {
    for (int64_t k = 0; k < task.classes; ++k)
      floats[k] = k == kIgnored ? 0 : task.class_weights ? task.class_weights[k] : 1;
    for (int64_t y = 0; y < task.label_height; ++y)
      taps[task.label_width + y] = tap_of(y, task.height, task.label_height);
    const bool weighted = task.class_weights || task.classes > kMostUnweighted;
    Parsing parsing{task,
                    {task.classes, weighted ? floats : nullptr, task.smoothing, scale},
                    Axis::of(task.width, task.label_width, taps),
                    taps + task.label_width,
                    pieces,
                    partial,
                    floats + task.classes + task.width};
    parallel_for(count, same ? neighbours(count, task.classes * kChunk, threads) : 1, threads, same ? chunks : strips,
                 &parsing);
    made = !parsing.failed;
    if (made && !same) join_strips(parsing, floats + task.classes);
    for (int64_t i = 0; made && i < count; ++i) *loss += partial[i];
  }
  free(taps);
  free(partial);
  free(floats);
  return made ? Outcome::done : Outcome::out_of_memory;
}

double weight_of(const PointsTask& task) {
  double sum = 0;
  for (int64_t i = 0; i < task.rows * task.count; ++i)
    sum += task.weight[i] > 0 ? static_cast<double>(task.weight[i]) : 0;
  return sum;
}

double points_loss(const PointsTask& task, double scale) {
  const double width = task.width, curvature = task.curvature, offset = width - width * log1p(width / curvature);
  double sum = 0;
  for (int64_t index = 0; index < task.rows * 2 * task.count; ++index) {
    const int64_t row = index / (2 * task.count), point = index % task.count;
    const double weight = task.weight[row * task.count + point];
    task.gradient[index] = 0;
    if (!(weight > 0)) continue;  // its target may be NaN
    const double signed_distance = static_cast<double>(task.points[index]) - static_cast<double>(task.target[index]);
    const double d = fabs(signed_distance), sign = signed_distance > 0 ? 1 : signed_distance < 0 ? -1 : signed_distance;
    double loss = d * d, slope = 2 * d;
    if (task.kind == PointLoss::smooth_l1) {
      loss = d < width ? d * d / (2 * width) : d - width / 2;
      slope = d < width ? d / width : 1;
    } else if (task.kind == PointLoss::wing) {
      loss = d < width ? width * log1p(d / curvature) : d - offset;
      slope = d < width ? width / (curvature + d) : 1;
    }
    sum += weight * loss;
    task.gradient[index] = static_cast<float>(weight * scale * slope * sign);
  }
  return sum;
}

double class_loss(const float* z, int64_t size, int64_t label, double smoothing, double scale, float* gradient) {
  double most = -HUGE_VAL, sum = 0, total = 0;
  for (int64_t k = 0; k < size; ++k) most = z[k] > most ? static_cast<double>(z[k]) : most;
  for (int64_t k = 0; k < size; ++k) sum += exp(z[k] - most), total += z[k] - most;
  const double each = smoothing / static_cast<double>(size), spread = smoothing > 0 ? each * total : 0;
  for (int64_t k = 0; k < size; ++k)
    gradient[k] =
        label < 0 ? 0 : static_cast<float>(scale * (exp(z[k] - most) / sum - each - (k == label ? 1 - smoothing : 0)));
  return label < 0 ? 0 : log(sum) - (1 - smoothing) * (z[label] - most) - spread;
}

}  // namespace

Outcome hybrid_loss(const HybridLoss& call) {
  const ClassTasks& classes = call.classes;
  int64_t task = 0, width = 0;
  double total = 0;
  const auto divisor = [&](double weight) {
    return call.denominators ? call.denominators[task] : static_cast<float>(weight);
  };
  const auto scale = [&](double weight) { return divisor(weight) > 0 ? 1 / static_cast<double>(divisor(weight)) : 0; };
  const auto finish = [&](double loss, double weight) {
    call.weights_kept[task] = call.task_weights[task];
    call.counts[task] = static_cast<float>(weight);
    call.losses[task] = divisor(weight) > 0 ? static_cast<float>(loss / static_cast<double>(divisor(weight))) : 0;
    total += static_cast<double>(call.task_weights[task]) * static_cast<double>(call.losses[task]);
    ++task;
  };
  if (call.parsing.classes) {
    double weight = 0, loss = 0;
    if (!weight_of(call.parsing, &weight)) return Outcome::wrong_label;
    const Outcome outcome = parsing_loss(call.parsing, call.threads, static_cast<float>(scale(weight)), &loss);
    if (outcome != Outcome::done) return outcome;
    finish(loss, weight);
  }
  if (call.points.count) {
    const double weight = weight_of(call.points);
    finish(points_loss(call.points, scale(weight)), weight);
  }
  for (int64_t t = 0; t < classes.tasks; ++t) width += classes.sizes[t];
  for (int64_t t = 0, first = 0; t < classes.tasks; first += classes.sizes[t++]) {
    double loss = 0, weight = 0;
    for (int64_t row = 0; row < classes.rows; ++row) {
      const int64_t label = classes.targets[row * classes.tasks + t];
      if (label < -1 || label >= classes.sizes[t]) return Outcome::wrong_label;
      weight += label >= 0;
    }
    for (int64_t row = 0; row < classes.rows; ++row)
      loss +=
          class_loss(classes.logits + row * width + first, classes.sizes[t], classes.targets[row * classes.tasks + t],
                     classes.smoothing, scale(weight), classes.gradient + row * width + first);
    finish(loss, weight);
  }
  *call.total = static_cast<float>(total);
  return Outcome::done;
}

}  // namespace IFAN_ISA
}  // namespace ifan
