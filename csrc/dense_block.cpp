// The layers of a dense block, one kernel after the other in one call: Python code between them would find its memory
// pushed out of the caches each time.
#include <cstdlib>
#include <memory>
#include <new>

#include "bindings.h"
#include "cpu/channel_moments.h"
#include "normalisation.h"

namespace py = pybind11;

namespace ifan {
namespace {

// What both directions know of a block. Every layer grows as many channels, which follow those of the sources and lie
// in one tensor.
struct DenseBlock {
  const Inputs& sources;
  const std::vector<Norm>&
      norms;   // of the layers; their means and vars hold the sources' channels alone where `batch`, else all
  bool batch;  // batch statistics: those of the grown channels are computed here
  float eps;
  Isa isa;
  Address grown;  // (N, channels grown, H, W)
  int64_t growth;
  int threads;

  int64_t layers() const { return static_cast<int64_t>(norms.size()); }
  int64_t tasks() const { return sources.x.tasks; }
  int64_t inputs() const { return sources.x.channels; }
  int64_t channels(int64_t layer) const { return inputs() + growth * layer; }
  int64_t pixels() const { return sources.x.height * sources.x.width; }
  int64_t lane_stride() const { return growth * layers() * pixels(); }
  float* from(Address maps, int64_t layer) const { return reinterpret_cast<float*>(maps) + growth * layer * pixels(); }
  Source grown_before(int64_t layer) const { return {from(grown, 0), growth * layer, lane_stride(), pixels(), false}; }

  // Fields of the moments' kernels for the channels of a layer.
  template <typename Call>
  Call moments(int64_t layer) const {
    Call call{};
    call.x = from(grown, layer);
    call.dtype = Dtype::float32;
    const int64_t shape[4] = {sources.x.lanes, growth, sources.x.height, sources.x.width};
    const int64_t strides[4] = {lane_stride(), pixels(), sources.x.width, 1};
    std::copy_n(shape, 4, call.shape);
    std::copy_n(strides, 4, call.strides);
    call.segments = sources.segments.data();
    call.tasks = tasks();
    call.threads = threads;
    return call;
  }
};

// Arguments of both directions: norms that fit the layers, and sizes whose products fit. `maps`: (N, channels grown,
// H, W).
void expect_block(const DenseBlock& block, std::initializer_list<Address> maps, Address filters) {
  const Concatenation& x = block.sources.x;
  expect_range("layers", block.layers(), 1, kMostSide);
  expect_range("growth", block.growth, 0, kMostSide);
  const int64_t grown = count_of("channels", {block.growth, block.layers()}),
                widest = block.channels(block.layers() - 1);
  expect_range("channels", block.inputs() + grown, 0, kMostSide);
  count_of("weights", {grown, block.inputs() + grown, 9});
  for (Address address : maps) expect_address("maps", address, count_of("maps", {x.lanes, grown, x.height, x.width}));
  expect_address("filters", filters, grown * widest);
  for (int64_t layer = 0; layer < block.layers(); ++layer)
    for (int i = 0; i < 4; ++i)
      expect_rows("values of a normalisation", block.norms[layer][i], x.tasks,
                  i > 1 && block.batch ? block.inputs() : block.channels(layer));
  expect_threads(block.threads);
}

// (tasks, channels), contiguous.
struct Values {
  int64_t channels;
  std::vector<float> data;

  Values(int64_t tasks, int64_t c) : channels(c), data(tasks * c) {}
  Rows rows(int64_t channel = 0) { return {reinterpret_cast<Address>(data.data() + channel), channels}; }
};

void copy_rows(Rows from, Rows to, int64_t tasks, int64_t channels) {
  for (int64_t t = 0; t < tasks; ++t) std::copy_n(row(from, t), channels, row(to, t));
}

void convolve(const DenseBlock& block, ConvolutionForward& call) {
  call.epilogue = Epilogue::none;
  call.out_lane_stride = block.lane_stride();
  call.threads = block.threads;
  if (call.x.channels && call.x.lanes && !IFAN_PICK_FOR(block.isa, convolution_forward)(call)) throw std::bad_alloc();
}

// Scales and shifts of one channel range in each of the layers [first, end): (layers, tasks, channels) each, behind
// each other.
std::vector<float> affine(const DenseBlock& block, int64_t first, int64_t end, int64_t channel, int64_t channels,
                          Rows mean, Rows var) {
  const int64_t size = block.tasks() * channels;
  std::vector<float> found(2 * (end - first) * size);
  for (int64_t layer = first; layer < end; ++layer) {
    const Norm& norm = block.norms[layer];
    const bool own = mean.first == 0;
    const Norm values{from_channel(norm[0], channel), from_channel(norm[1], channel),
                      own ? from_channel(norm[2], channel) : mean, own ? from_channel(norm[3], channel) : var};
    float* scale = found.data() + (layer - first) * size;
    scale_and_shift(values, block.tasks(), channels, block.eps, scale, scale + (end - first) * size);
  }
  return found;
}

// Grown channels to `grown` and, with batch statistics, their moments to `mean` and `var` (tasks, grown channels)
// contiguous. `filters`: those of all layers for the sources, which are read once for all, then those of each layer for
// the channels grown before it.
void dense_block_forward(const std::vector<SourceFields>& sources, Address rows, const std::vector<int64_t>& segments,
                         const Sizes& shape, const std::vector<Norm>& norms, float eps, const std::string& isa,
                         Address filters, Address grown, int64_t growth, Address mean, Address var, int threads) {
  const Inputs inputs(sources, rows, segments, shape);
  const DenseBlock block{inputs, norms, mean != 0, eps, isa_of(isa), grown, growth, threads};
  expect_block(block, {grown}, filters);
  expect(!mean == !var, "mean and var", "both or neither", var ? 1 : 0);
  const auto packed_filters = IFAN_PICK_FOR(block.isa, packed_filters);
  py::gil_scoped_release release;

  const std::vector<float> of_sources = affine(block, 0, block.layers(), 0, block.inputs(), {}, {});
  ConvolutionForward call{inputs.x, of_sources.data(), of_sources.data() + of_sources.size() / 2,
                          reinterpret_cast<const float*>(filters)};
  call.outputs = growth * block.layers();
  call.out = block.from(grown, 0);
  call.prologues = block.layers();
  if (!block.inputs()) std::fill_n(call.out, inputs.x.lanes * block.lane_stride(), 0.0f);
  convolve(block, call);

  const int64_t all = growth * block.layers();
  const Rows means{mean, all}, vars{var, all};
  const float* packed = call.filters + block.layers() * packed_filters(growth, block.inputs());
  for (int64_t layer = 0; layer < block.layers(); ++layer) {
    const int64_t before = growth * layer;
    if (layer) {
      const std::vector<float> values =
          affine(block, layer, layer + 1, block.inputs(), before, block.batch ? means : Rows{}, vars);
      const Source read = block.grown_before(layer);
      Concatenation x = inputs.x;
      x.sources = &read, x.count = 1, x.channels = before, x.rows = nullptr;
      ConvolutionForward later{x, values.data(), values.data() + values.size() / 2, packed};
      later.outputs = growth;
      later.out = block.from(grown, layer);
      later.add = true;
      convolve(block, later);
      packed += packed_filters(growth, before);
    }
    if (block.batch) {
      Values new_mean(block.tasks(), growth), new_var(block.tasks(), growth);
      auto moments = block.moments<MomentsForward>(layer);
      moments.mean = new_mean.data.data(), moments.var = new_var.data.data();
      if (!IFAN_PICK(channel_moments_forward)(moments)) throw std::bad_alloc();
      copy_rows(new_mean.rows(), from_channel(means, before), block.tasks(), growth);
      copy_rows(new_var.rows(), from_channel(vars, before), block.tasks(), growth);
    }
  }
}

// Where dense_block_backward writes the gradients of weights and norms, and those of the sources.
void expect_found(const DenseBlock& block, const Inputs& inputs, const std::vector<std::pair<Address, Norm>>& found) {
  expect(inputs.targets.size() == inputs.sources.size(), "gradients", "one a source",
         static_cast<int64_t>(inputs.targets.size()));
  expect(found.size() == block.norms.size(), "gradients of weights and norms", "one a layer",
         static_cast<int64_t>(found.size()));
  for (int64_t layer = 0; layer < block.layers(); ++layer) {
    const int64_t channels = block.channels(layer);
    expect_address("a weight's gradient", found[layer].first, block.growth * channels);
    for (int i = 0; i < (block.batch && layer ? 2 : 4); ++i)
      expect_rows("gradients of a normalisation", found[layer].second[i], block.tasks(),
                  i > 1 && block.batch ? block.inputs() : channels);
  }
}

// Gradients of all that `dense_block_forward` read. `filters`: those of each layer, transposed, behind each other.
// `moments`: mean and var of the grown channels (tasks, grown channels), 0 without batch statistics; `upstream`:
// gradients of the grown channels (N, grown channels, H, W) and of their moments; `to_grown`: as large, where these
// gradients come together: unwritten or, without batch statistics, a copy of the first. `targets`: those of the last
// layer, to which the others add. `found`: of each layer's weight, and of the values of its norm, (tasks, channels)
// each; those of the means and vars of the first layer's alone with batch statistics.
void dense_block_backward(const std::vector<SourceFields>& sources, Address rows, const std::vector<int64_t>& segments,
                          const Sizes& shape, const std::vector<TargetFields>& targets, const std::vector<Norm>& norms,
                          float eps, const std::string& isa, Address filters, Address grown, int64_t growth,
                          const std::array<Address, 2>& moments, const std::array<Address, 3>& upstream,
                          Address to_grown, const std::vector<std::pair<Address, Norm>>& found, int64_t parts,
                          int threads) {
  Inputs inputs(sources, rows, segments, shape, targets);
  const DenseBlock block{inputs, norms, moments[0] != 0, eps, isa_of(isa), grown, growth, threads};
  expect_block(block, {grown, upstream[0], to_grown}, filters);
  expect_found(block, inputs, found);
  expect_range("parts", parts, 1, std::max<int64_t>(shape[0], 1));
  if (block.batch)
    for (Address values : {moments[0], moments[1], upstream[1], upstream[2]})
      expect_address("moments of the grown channels", values,
                     count_of("moments", {block.tasks(), growth, block.layers()}));
  const auto packed_filters = IFAN_PICK_FOR(block.isa, packed_filters);
  py::gil_scoped_release release;

  const int64_t tasks = block.tasks(), layers = block.layers(), widest = block.channels(layers), all = growth * layers;
  // Batch statistics of all channels, and their gradients: those of grown channels begin with what the caller wants of
  // them.
  Values mean(tasks, widest), var(tasks, widest), to_mean(tasks, widest), to_var(tasks, widest);
  if (block.batch) {
    copy_rows(norms[0][2], mean.rows(), tasks, block.inputs());
    copy_rows(norms[0][3], var.rows(), tasks, block.inputs());
    copy_rows({moments[0], all}, mean.rows(block.inputs()), tasks, all);
    copy_rows({moments[1], all}, var.rows(block.inputs()), tasks, all);
    copy_rows({upstream[1], all}, to_mean.rows(block.inputs()), tasks, all);
    copy_rows({upstream[2], all}, to_var.rows(block.inputs()), tasks, all);
  }
  inputs.sources.push_back({});
  inputs.targets.push_back({});
  const std::unique_ptr<float, decltype(&free)> shares(
      static_cast<float*>(malloc(parts * growth * block.channels(layers - 1) * 9 * sizeof(float) + 64)), &free);
  if (!shares) throw std::bad_alloc();
  std::vector<double> sums(2 * inputs.x.lanes * block.channels(layers - 1));

  for (int64_t layer = layers - 1; layer >= 0; --layer) {
    const int64_t channels = block.channels(layer), before = growth * layer;
    const bool last = layer == layers - 1;
    if (block.batch) {
      Values at(tasks, growth), of_mean(tasks, growth), of_var(tasks, growth);
      copy_rows(mean.rows(channels), at.rows(), tasks, growth);
      copy_rows(to_mean.rows(channels), of_mean.rows(), tasks, growth);
      copy_rows(to_var.rows(channels), of_var.rows(), tasks, growth);
      auto call = block.moments<MomentsBackward>(layer);
      call.mean = at.data.data(), call.mean_gradient = of_mean.data.data(), call.var_gradient = of_var.data.data();
      call.gradient = block.from(to_grown, layer);
      std::copy_n(call.strides, 4, call.gradient_strides);
      call.before[0] = block.from(upstream[0], layer);
      call.before[1] = last ? nullptr : call.gradient;  // from the layers behind this one
      if (!IFAN_PICK(channel_moments_backward)(call)) throw std::bad_alloc();
    }
    // What the convolution reads contiguously, (tasks, channels).
    const Norm& norm = norms[layer];
    const Norm values{norm[0], norm[1], block.batch ? mean.rows() : norm[2], block.batch ? var.rows() : norm[3]};
    Values scale(tasks, channels), shift(tasks, channels), at(tasks, channels);
    scale_and_shift(values, tasks, channels, eps, scale.data.data(), shift.data.data());
    copy_rows(values[2], at.rows(), tasks, channels);

    inputs.sources.back() = block.grown_before(layer);
    inputs.targets.back() = {block.from(to_grown, 0), block.lane_stride(), !block.batch || !last};
    ConvolutionBackward call{};
    call.x = inputs.x;
    call.x.sources = inputs.sources.data(), call.x.targets = inputs.targets.data();
    call.x.count = static_cast<int64_t>(inputs.sources.size()) - (layer == 0), call.x.channels = channels;
    call.scale = scale.data.data(), call.shift = shift.data.data(), call.mean = at.data.data();
    call.filters = reinterpret_cast<const float*>(filters);
    for (int64_t i = 0; i < layer; ++i) call.filters += packed_filters(block.channels(i), growth);
    call.outputs = growth;
    call.gradient = block.from(to_grown, layer);
    call.gradient_lane_stride = block.lane_stride();
    call.shares = shares.get();
    call.parts = parts;
    call.weight_gradient = reinterpret_cast<float*>(found[layer].first);
    call.sums = sums.data();
    call.threads = threads;
    if (channels && !IFAN_PICK_FOR(block.isa, convolution_backward)(call)) throw std::bad_alloc();

    Norm of_norm = found[layer].second;
    if (block.batch) {
      of_norm[2] = to_mean.rows(), of_norm[3] = to_var.rows();
    } else {
      for (int i : {2, 3})
        for (int64_t t = 0; t < tasks; ++t) std::fill_n(row(of_norm[i], t), channels, 0.0f);
    }
    add_up_normalisation(sums.data(), inputs.segments, channels, scale.data.data(), values[3], eps, of_norm);
    for (Target& target : inputs.targets) target.add = true;
  }
  if (block.batch) {
    copy_rows(to_mean.rows(), found[0].second[2], tasks, block.inputs());
    copy_rows(to_var.rows(), found[0].second[3], tasks, block.inputs());
  }
}

}  // namespace

void bind_dense_block(py::module_& module) {
  module.def("dense_block_forward", &dense_block_forward);
  module.def("dense_block_backward", &dense_block_backward);
}

}  // namespace ifan
