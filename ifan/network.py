"""The iFAN network: one encoder shared by all tasks, whose predictions feed back into it.

Li, Xiao, Zhao, Zhao, Li, Feng, Yan, Sim: "Integrated Face Analytics Networks through Cross-Dataset Hybrid Training", ACM MM
2017, arXiv 1711.06055; the graph is that of the released three-task code. Exact rewrites: the image's and the planes' shares
of the stem are added (the image's is computed once for all iterations, first-iteration planes once for all samples),
transitions down pool before their 1x1 convolution, and raw readers of doubled skip channels read them once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from ifan import ops
from ifan.config import NetworkConfig, TaskConfig, from_dict
from ifan.features import Features, Lanes, Moments, MomentsReduce, lane_moments
from ifan.graph import encoder_widths, graph

EPSILON = 1e-3
MOMENTUM = 0.01
BGR_MEAN = (103.939, 116.779, 123.68)

__all__ = ["IFAN", "Lanes", "Predictions", "released"]


@dataclass(frozen=True)
class Predictions:
    """What one iteration says, a row a lane; ``rows`` maps a task's name to the samples of its rows, ``(n,)`` int64.

    ``parsing_logits`` (n, K, S, S); ``points`` (n, 2, P), x's then y's in crop sides from the centre, [-0.5, 0.5] inside;
    ``class_logits`` maps a classification's name to (n, C). Tasks without lanes have zero rows.
    """

    parsing_logits: Tensor
    points: Tensor
    class_logits: dict[str, Tensor]
    rows: dict[str, Tensor]

    def dense_class_logits(self, batch: int) -> Tensor:
        """``(batch, sum of C)`` with a row a sample: the logits where a sample has a lane of that task, zeros elsewhere."""
        if not self.class_logits:
            return self.points.new_zeros(batch, 0)
        parts = []
        for name, logits in self.class_logits.items():
            parts.append(logits.new_zeros(batch, logits.shape[1]).index_copy(0, self.rows[name], logits))
        return torch.cat(parts, 1)


class IFAN(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="ifan",
    license="apache-2.0",
    tags=["face-parsing", "facial-landmarks", "emotion"],
):
    """The network of a `NetworkConfig` (or of the mapping that a saved model's ``config.json`` holds).

    ``moments_reduce`` joins normalisation statistics over processes while training (`ifan.features.MomentsReduce`).
    """

    def __init__(self, network: NetworkConfig | dict[str, Any] | None = None) -> None:
        super().__init__()
        config = network if isinstance(network, NetworkConfig) else from_dict(NetworkConfig, network or {}, "network")
        self.config = config
        self.moments_reduce: MomentsReduce | None = None
        self.class_sizes = tuple(t.width for t in config.classifications)
        g, tasks = graph(config), len(config.tasks)
        past_tap = [i for i, t in enumerate(config.tasks) if t.kind != "landmarks"]

        self.encoders = nn.ModuleList(ReEncoder(t) for t in config.tasks)
        self.stem = _convolution(3 + g.planes, config.stem_channels, 7)
        self.down_blocks = nn.ModuleList(DenseBlock(d.dense_inputs, config.growth, tasks) for d in g.down)
        widths = [tasks] * (config.blocks - 1) + [len(past_tap)]
        kept = list(zip(g.down, widths, strict=True)) if past_tap else list(zip(g.down, widths, strict=True))[:-1]
        self.down = nn.ModuleList(TransitionDown(d.joined, d.width_out, n) for d, n in kept)
        self.middle = DenseBlock(g.middle_inputs, config.growth, len(past_tap)) if past_tap else None
        self.past_tap = past_tap
        if config.parsing:
            self.up = nn.ModuleList(TransitionUp(u.transition_in, config.up_channels) for u in g.up)
            self.up_blocks = nn.ModuleList(DenseBlock(u.dense_inputs, config.growth, 1) for u in g.up)
            self.parsing_head = _convolution(g.head_in, config.parsing.width, 1, glorot=True)
        if config.landmarks:
            self.landmark_head = DenseHead(g.landmark_inputs, 2 * config.landmarks.width, config)
        self.class_heads = nn.ModuleDict(
            {t.name: DenseHead(g.class_inputs, t.width, config) for t in config.classifications}
        )
        self._means(config)

    def _means(self, config: NetworkConfig) -> None:
        size, kinds = config.size, (config.parsing, config.landmarks)
        classes, points = (kind.width if kind else 0 for kind in kinds)
        self.register_buffer("mean_parsing", torch.full((classes, size, size), 1 / max(classes, 1)))
        self.register_buffer("mean_points", torch.zeros(2, points))
        uniform = [torch.full((n,), 1 / n) for n in self.class_sizes]
        self.register_buffer("mean_classes", torch.cat([*uniform, torch.zeros(0)]))

    def set_means(self, parsing: Tensor, points: Tensor, classes: Tensor) -> None:
        """Set what the first iteration is fed: training means of the labels.

        ``parsing`` (K, S, S) probabilities, ``points`` (2, P), ``classes`` (sum of C,) probabilities. Raises ``ValueError``
        for other shapes.
        """
        for name, value in (("mean_parsing", parsing), ("mean_points", points), ("mean_classes", classes)):
            buffer: Tensor = getattr(self, name)
            if value.shape != buffer.shape:
                raise ValueError(f"{name}: expected shape {tuple(buffer.shape)}; got {tuple(value.shape)}")
            buffer.copy_(value)

    def dense_head_parameters(self) -> list[tuple[nn.Parameter, int]]:
        """The weights of the dense heads with their number of inputs, 928 to 31,424 raw sums: they need a learning rate
        divided by it."""
        heads = [*([self.landmark_head] if self.config.landmarks else []), *self.class_heads.values()]
        return [(head.weight, head.in_features) for head in heads]

    def forward(self, images: Tensor, lanes: Lanes | None = None, iterations: int | None = None) -> list[Predictions]:
        """Predict, feed the predictions back, predict again.

        Args:
            images: ``(B, 3, S, S)`` RGB, uint8 or float, 0 to 255.
            lanes: what the last iteration computes; all tasks for all samples if ``None``. Earlier iterations always
                compute everything, with running statistics and, unless the configuration says otherwise, no gradient.
            iterations: number of passes; the configuration's if ``None``.

        Returns:
            One `Predictions` an iteration. Only the last has the given lanes, batch statistics and dropout in training.
        """
        passes = self.config.iterations if iterations is None else iterations
        self._check(images, passes)
        batch, everything = images.shape[0], Lanes.all_tasks(images.shape[0], self.config, images.device)
        image_share = F.conv2d(self.preprocess(images), self.stem.weight[:, :3], padding=3)
        planes, out = self.first_planes(), []
        for _ in range(passes - 1):
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.feedback_gradient):
                predictions = self.iterate(image_share, planes, everything, training=False)
                planes = self.encode(predictions, batch)
            out.append(predictions)
        return [*out, self.iterate(image_share, planes, lanes or everything, self.training)]

    def preprocess(self, images: Tensor) -> Tensor:
        """RGB 0 to 255 to BGR minus the means of the release, times ``image_scale``, in the network's dtype."""
        dtype = self.stem.weight.dtype
        mean = torch.tensor(BGR_MEAN, dtype=dtype, device=images.device).view(1, 3, 1, 1)
        return (images.to(dtype).flip(1) - mean) * self.config.image_scale

    def first_planes(self) -> Tensor:
        """The training means drawn as planes, ``(1, K + P + sum of C, S, S)``."""
        tiny = torch.finfo(self.mean_parsing.dtype).tiny
        parsing, classes = self.mean_parsing.clamp_min(tiny).log(), self.mean_classes.clamp_min(tiny).log()
        return self._draw(parsing[None], self.mean_points[None], classes[None])

    def encode(self, predictions: Predictions, batch: int) -> Tensor:
        """Draw predictions of all tasks for all samples as planes, ``(B, K + P + sum of C, S, S)``."""
        parsing, points, config = predictions.parsing_logits, predictions.points, self.config
        if config.parsing is None:
            parsing = parsing.new_zeros(batch, 0, config.size, config.size)
        if config.landmarks is None:
            points = points.new_zeros(batch, 2, 0)
        return self._draw(parsing, points, predictions.dense_class_logits(batch))

    def _draw(self, parsing_logits: Tensor, points: Tensor, class_logits: Tensor) -> Tensor:
        radius = self.config.point_radius
        return ops.encode_predictions(parsing_logits, points, class_logits, list(self.class_sizes), radius)

    def iterate(self, image_share: Tensor, planes: Tensor, lanes: Lanes, training: bool = False) -> Predictions:
        """One pass from planes to predictions.

        ``image_share`` (B, stem, S, S): the image's part of the stem; ``planes`` (B or 1, planes, S, S), one row standing
        for all samples; ``training``: normalise with the moments of these lanes, update running statistics, drop out.
        """
        stem = image_share + F.conv2d(planes, self.stem.weight[:, 3:], padding=3)
        groups = planes.split([t.width for t in self.config.tasks], 1)
        encoded = [encoder(group) for encoder, group in zip(self.encoders, groups, strict=True)]
        joined: list[list[Tensor]] = [list(groups), [], *([e[i] for e in encoded] for i in range(3))]
        reading = Reading(lanes, training, self.moments_reduce)
        maps = [[reading.shared(m, stem.shape[0]) for m in level] for level in joined]
        x, skips = reading.shared(stem, stem.shape[0]), list[Features]()
        for i, block in enumerate(self.down_blocks):
            skips.append(x + block(x, reading) + x)
            tap = sum(maps[i], skips[-1])
            if i < len(self.down_blocks) - 1:
                x = self.down[i](tap, reading)
        points = self._landmarks(tap, reading)
        classes, parsing = self._past_tap(tap, skips, maps, reading)
        rows = {t.name: r for t, r in zip(self.config.tasks, lanes.split(), strict=True)}
        return Predictions(parsing, points, classes, rows)

    def _landmarks(self, tap: Features, reading: "Reading") -> Tensor:
        task = self.config.landmarks
        if task is None:
            return tap.sources[0].new_zeros(0, 2, 0)
        points: Tensor = self.landmark_head(tap.keep([self.config.tasks.index(task)]), reading)
        return points.unflatten(1, (2, task.width))

    def _past_tap(
        self, tap: Features, skips: list[Features], maps: list[list[Features]], reading: "Reading"
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Class logits by task and parsing logits: what lies beyond the landmark tap."""
        config = self.config
        classes = config.parsing.width if config.parsing else 0
        nothing = tap.sources[0].new_zeros(0, classes, config.size, config.size)
        if self.middle is None:
            return {}, nothing
        tap = tap.keep(self.past_tap)
        if sum(tap.lanes.global_segments) == 0:
            return {t.name: nothing.new_zeros(0, t.width) for t in config.classifications}, nothing
        reading = reading.on(tap.lanes)
        x = self.down[-1](tap, reading)
        x = x + self.middle(x, reading)
        offset = 1 if config.parsing else 0
        names = [t.name for t in config.classifications]
        logits = {n: self.class_heads[n](x.keep([i + offset]), reading) for i, n in enumerate(names)}
        if config.parsing is None or (x.lanes.global_segments[0] == 0):
            return logits, nothing
        return logits, self._parse(x.keep([0]), [s.keep([0]) for s in skips], maps, reading)

    def _parse(
        self, x: Features, skips: list[Features], maps: list[list[Features]], reading: "Reading"
    ) -> Tensor:
        reading = reading.on(x.lanes)
        for i, (up, block) in enumerate(zip(self.up, self.up_blocks, strict=True)):
            level = len(skips) - i
            if 2 <= level <= 4:
                x = sum((m.keep([0]) for m in maps[level]), x)
            x = up(x, reading) + skips[level - 1]
            x = x + block(x, reading)
        x, weight = sum((m.keep([0]) for m in maps[0]), x).unique(self.parsing_head.weight)
        return F.conv2d(x.concatenated(), weight)

    def _check(self, images: Tensor, passes: int) -> None:
        size = self.config.size
        if images.dim() != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(f"images: expected (B, 3, {size}, {size}); got {tuple(images.shape)}. Crop to that size.")
        if passes < 1:
            raise ValueError(f"iterations: expected at least 1; got {passes}")


@dataclass(frozen=True)
class Reading:
    """How a pass reads its features: whose lanes, and with the batch's statistics (training) or the running ones."""

    lanes: Lanes
    training: bool
    reduce: MomentsReduce | None

    def on(self, lanes: Lanes) -> "Reading":
        return Reading(lanes, self.training, self.reduce)

    def shared(self, x: Tensor, batch: int) -> Features:
        """A tensor that all tasks read: a row a sample, or one row for all.

        Running statistics let the ops look rows up as they read. Batch statistics are those of the lanes, so in training
        the rows are laid out by lane.
        """
        if not self.training:
            return Features.of(self.lanes, x.expand(batch, -1, -1, -1), per_sample=True)
        x = x.expand(self.lanes.rows.shape[0], -1, -1, -1) if x.shape[0] == 1 else x[self.lanes.rows]
        return self.fresh(x)

    def fresh(self, x: Tensor) -> Features:
        """A new tensor with a row a lane, and its moments where they will be needed."""
        return Features.of(self.lanes, x, lane_moments(x, self.lanes, self.reduce) if self.training else None)


class TaskNorm(nn.Module):
    """Batch normalisation with parameters and running statistics of its own for each task, ``(T, C)`` each.

    Epsilon 1e-3 inside the root; running statistics move by 1 % a step towards the batch's mean and biased variance.
    """

    def __init__(self, tasks: int, channels: int, affine: bool = True) -> None:
        super().__init__()
        if affine:
            self.weight = nn.Parameter(torch.ones(tasks, channels))
            self.bias = nn.Parameter(torch.zeros(tasks, channels))
        self.register_buffer("running_mean", torch.zeros(tasks, channels))
        self.register_buffer("running_var", torch.ones(tasks, channels))

    def statistics(self, x: Features) -> Moments:
        """The batch's moments in training (and then the running ones follow), else the running ones."""
        if None in x.moments:
            return self.running_mean, self.running_var
        moments = x.mean_and_variance()
        self.follow(*moments, x.lanes.global_segments)
        return moments

    @torch.no_grad()
    def follow(self, mean: Tensor, var: Tensor, segments: Sequence[int]) -> None:
        """Move the running statistics of the tasks that have lanes in any process."""
        step = mean.new_tensor([[MOMENTUM if n else 0.0] for n in segments])
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), step.to(self.running_mean.dtype))
        self.running_var.lerp_(var.to(self.running_var.dtype), step.to(self.running_var.dtype))


class DenseBlock(nn.Module):
    """Layers of normalise - ReLU - 3x3 to ``growth`` channels, each reading all before it; returns the grown channels."""

    def __init__(self, inputs: Sequence[int], growth: int, tasks: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(TaskNorm(tasks, c) for c in inputs)
        self.convolutions = nn.ModuleList(_convolution(c, growth, 3) for c in inputs)

    def forward(self, x: Features, reading: Reading) -> Features:
        if reading.training:
            return self._layer_by_layer(x, reading)
        grown, _, _ = ops.dense_block(
            x.sources,
            [c.weight for c in self.convolutions],
            [n.weight for n in self.norms],
            [n.bias for n in self.norms],
            [n.running_mean for n in self.norms],
            [n.running_var for n in self.norms],
            x.segments,
            x.lanes.rows,
            x.per_sample,
            EPSILON,
        )
        return Features.of(x.lanes, grown)

    def _layer_by_layer(self, x: Features, reading: Reading) -> Features:
        """Training: a layer's moments, of all processes, must be known before the next can begin."""
        grown = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            grown = grown + reading.fresh(convolution(integrate(grown, norm)))
        return grown.tail(len(x.sources))


class TransitionDown(nn.Module):
    """Normalise - ReLU - average 2x2 - 1x1 convolution; the release pools last, which is the same and dearer."""

    def __init__(self, c_in: int, c_out: int, tasks: int) -> None:
        super().__init__()
        self.norm, self.convolution = TaskNorm(tasks, c_in), _convolution(c_in, c_out, 1)

    def forward(self, x: Features, reading: Reading) -> Features:
        return reading.fresh(self.convolution(integrate(x, self.norm, pool=2)))


class TransitionUp(nn.Module):
    """3x3 to ``channels`` - ReLU - phase shift to twice the side - 3x3 to ``channels`` - ReLU, over raw features."""

    def __init__(self, c_in: int, channels: int) -> None:
        super().__init__()
        self.a = _convolution(c_in, channels, 3, glorot=True)
        self.b = _convolution(channels // 4, channels, 3, glorot=True)

    def forward(self, x: Features, reading: Reading) -> Features:
        x, weight = x.unique(self.a.weight)
        y = ops.transition_up(x.sources, weight, self.b.weight, x.lanes.rows, x.per_sample)
        return reading.fresh(y)


class ReEncoder(nn.Module):
    """Planes of one task to maps at 1/4, 1/8 and 1/16 of their side: (convolution, ReLU, max pool 2) three times."""

    def __init__(self, task: TaskConfig) -> None:
        super().__init__()
        first, other = (1, 1) if task.kind == "classification" else (5, 3)
        widths = (task.width, *encoder_widths(task))
        self.padding = (1, 2, 1, 2) if first == 5 else (0, 0, 0, 0)  # "same" at stride 2 pads one before, two after
        self.convolutions = nn.ModuleList(
            _convolution(widths[i], widths[i + 1], first if i == 0 else other) for i in range(3)
        )

    def forward(self, planes: Tensor) -> list[Tensor]:
        first, *others = self.convolutions
        x = F.max_pool2d(F.relu(F.conv2d(F.pad(planes, self.padding), first.weight, stride=2)), 2)
        maps = [x]
        for convolution in others:
            x = F.max_pool2d(F.relu(convolution(x)), 2)
            maps.append(x)
        return maps


class DenseHead(nn.Linear):
    """Dropout and a dense layer over all inputs in the release's order: row, column, channel.

    ``normalise_heads``: each input first gets mean 0 and variance 1 over the lanes (no parameters), which `released` folds
    away. Normalising a whole channel would not do: its mean still differs from pixel to pixel, and these thousands of
    constants add up to one bias that every step of Adam throws about.
    """

    def __init__(self, inputs: int, outputs: int, config: NetworkConfig) -> None:
        super().__init__(inputs, outputs)
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)
        self.dropout = config.dropout
        self.norm = TaskNorm(1, inputs, affine=False) if config.normalise_heads else None

    def forward(self, x: Features, reading: Reading) -> Tensor:  # type: ignore[override]
        flat = x.concatenated().permute(0, 2, 3, 1).flatten(1)
        if self.norm is not None:
            mean, var = self.norm.statistics(reading.on(x.lanes).fresh(flat[:, :, None, None]))
            flat = (flat - mean) * (var + EPSILON).rsqrt()
        return super().forward(F.dropout(flat, self.dropout, reading.training))

    def fold(self, head: "DenseHead") -> None:
        """Make this head, which does not normalise, compute what ``head`` does."""
        weight, bias = head.weight.double(), head.bias.double()
        if head.norm is not None:
            weight = weight * (head.norm.running_var.double() + EPSILON).rsqrt()
            bias = bias - (weight * head.norm.running_mean.double()).sum(1)
        self.weight.copy_(weight)
        self.bias.copy_(bias)


@torch.no_grad()
def released(model: IFAN) -> IFAN:
    """The same function in the released graph: ``image_scale`` 1 and no normalised heads, folded into the weights."""
    folded = IFAN(replace(model.config, image_scale=1.0, normalise_heads=False)).to(model.stem.weight.dtype)
    state = model.state_dict()
    folded.load_state_dict({name: state[name] for name in folded.state_dict()})
    folded.stem.weight[:, :3] *= model.config.image_scale
    heads = [*([(folded.landmark_head, model.landmark_head)] if model.config.landmarks else [])]
    heads += [(folded.class_heads[name], head) for name, head in model.class_heads.items()]
    for ours, theirs in heads:
        ours.fold(theirs)
    return folded.train(model.training)


def integrate(x: Features, norm: TaskNorm, pool: int = 1) -> Tensor:
    """Concatenation, task-wise normalisation, ReLU and pooling of ``x``: ``(N, C, H / pool, W / pool)``."""
    mean, var = norm.statistics(x)
    return ops.integrate(
        x.sources, norm.weight, norm.bias, mean, var, x.segments, x.lanes.rows, x.per_sample, pool, EPSILON
    )


def _convolution(c_in: int, c_out: int, k: int, glorot: bool = False) -> nn.Conv2d:
    convolution = nn.Conv2d(c_in, c_out, k, padding=k // 2, bias=False)
    if glorot:
        nn.init.xavier_uniform_(convolution.weight)
    else:
        nn.init.kaiming_uniform_(convolution.weight, nonlinearity="relu")
    return convolution
