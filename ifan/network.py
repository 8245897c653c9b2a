"""The iFAN network: one encoder shared by all tasks, whose predictions feed back into it.

Li, Xiao, Zhao, Zhao, Li, Feng, Yan, Sim: "Integrated Face Analytics Networks through Cross-Dataset Hybrid Training",
ACM MM 2017, arXiv 1711.06055; the graph is that of the released three-task code. Exact rewrites: the image's and the
planes' shares of the stem are added (the image's is computed once for all iterations, first-iteration planes once for
all samples), transitions down pool before their 1x1 convolution, and raw readers of doubled skip channels read them
once.
"""

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ifan import ops
from ifan.config import Kind, NetworkConfig, from_dict
from ifan.features import Features, Lanes, MomentsReduce
from ifan.graph import graph
from ifan.hub import PyTorchModelHubMixin
from ifan.layers import (
    DenseBlock,
    DenseHead,
    HeatMapHead,
    Reading,
    ReEncoder,
    TransitionDown,
    TransitionUp,
    convolution,
)
from ifan.ranges import ranged, span

BGR_MEAN = (103.939, 116.779, 123.68)

__all__ = ["IFAN", "Lanes", "Predictions", "released"]


@dataclass(frozen=True)
class Predictions:
    """What one iteration says, a row a lane; ``rows`` maps a task's name to the samples of its rows, ``(n,)`` int64.

    ``parsing_logits`` (n, K, S, S); ``points`` (n, 2, P), x's then y's in crop sides from the centre, [-0.5, 0.5]
    inside; ``class_logits`` maps a classification's name to (n, C). Tasks without lanes have zero rows.
    """

    parsing_logits: Tensor
    points: Tensor
    class_logits: dict[str, Tensor]
    rows: dict[str, Tensor]

    def dense_class_logits(self, batch: int) -> Tensor:
        """``(batch, sum of C)`` with a row a sample: the logits where a sample has a lane of that task, zeros
        elsewhere."""
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

    mean_parsing: Tensor
    mean_points: Tensor
    mean_classes: Tensor

    def __init__(self, network: NetworkConfig | dict[str, Any] | None = None) -> None:
        super().__init__()
        config = network if isinstance(network, NetworkConfig) else from_dict(NetworkConfig, network or {}, "network")
        self.config = config
        self.moments_reduce: MomentsReduce | None = None
        self.fed_back = 1.0
        """Share of the predictions in the planes that are fed back; the rest is the label means."""
        self.class_sizes = tuple(t.width for t in config.classifications)
        g, tasks = graph(config), len(config.tasks)
        past_tap = [i for i, t in enumerate(config.tasks) if t.kind != "landmarks"]

        self.encoders = nn.ModuleList(ReEncoder(t) for t in config.tasks)
        self.stem = convolution(config.image_channels + g.planes, config.stem_channels, 7)
        self.down_blocks = nn.ModuleList(DenseBlock(d.dense_inputs, tasks, config) for d in g.down)
        widths = [tasks] * (config.blocks - 1) + [len(past_tap)]
        down = [TransitionDown(d.joined, d.width_out, n, config) for d, n in zip(g.down, widths, strict=True) if n]
        self.down = nn.ModuleList(down)
        self.middle = DenseBlock(g.middle_inputs, len(past_tap), config) if past_tap else None
        self.at_tap, self.past_tap = [i for i in range(tasks) if i not in past_tap], past_tap
        if config.parsing:
            self.up = nn.ModuleList(TransitionUp(u.transition_in, config.up_channels) for u in g.up)
            self.up_blocks = nn.ModuleList(DenseBlock(u.dense_inputs, 1, config) for u in g.up)
            self.parsing_head = convolution(g.head_in, config.parsing.width, 1, glorot=True)
        if config.landmarks and config.landmark_head == "dense":
            self.landmark_head: DenseHead | HeatMapHead = DenseHead(
                g.landmark_inputs, 2 * config.landmarks.width, config
            )
        elif config.landmarks:
            self.landmark_head = HeatMapHead([d.joined for d in g.down], config.landmarks.width, config)
        self.class_heads = nn.ModuleDict(
            {t.name: DenseHead(g.class_inputs, t.width, config) for t in config.classifications}
        )
        self._means(config)

    def _means(self, config: NetworkConfig) -> None:
        size, kinds = config.size, (config.parsing, config.landmarks)
        classes, points = (kind.width if kind else 0 for kind in kinds)
        self.register_buffer("mean_parsing", torch.full((classes, size, size), 1 / max(classes, 1)))
        self.register_buffer("mean_points", torch.zeros(2, points))
        self.register_buffer("mean_classes", torch.tensor([1 / n for n in self.class_sizes for _ in range(n)]))

    def set_means(self, parsing: Tensor, points: Tensor, classes: Tensor) -> None:
        """Set what the first iteration is fed: training means of the labels.

        ``parsing`` (K, S, S) probabilities, ``points`` (2, P), ``classes`` (sum of C,) probabilities. Raises
        ``ValueError`` for other shapes.
        """
        for name, value in (("mean_parsing", parsing), ("mean_points", points), ("mean_classes", classes)):
            buffer: Tensor = getattr(self, name)
            if value.shape != buffer.shape:
                raise ValueError(f"{name}: expected shape {tuple(buffer.shape)}; got {tuple(value.shape)}")
            buffer.copy_(value)

    def dense_heads(self) -> list[tuple[Kind, nn.Parameter, int]]:
        """Kind of task, weight and number of inputs (928 to 31,424) of each dense head; an optimiser must know them."""
        heads = self.dense_head_of()
        return [
            (self.config.task(name).kind, cast(nn.Parameter, head.weight), head.in_features)
            for name, head in heads.items()
        ]

    def dense_head_of(self) -> dict[str, DenseHead]:
        """The dense heads by their task's name, in the configuration's order."""
        heads = dict(self.class_heads.items())
        if self.config.landmarks:
            heads = {self.config.landmarks.name: self.landmark_head, **heads}
        return {name: head for name, head in heads.items() if isinstance(head, DenseHead)}

    def forward(
        self,
        images: Tensor,
        lanes: Lanes | None = None,
        iterations: int | None = None,
        every: bool = False,
        planes: Tensor | None = None,
    ) -> list[Predictions]:
        """Predict, feed the predictions back, predict again.

        Args:
            images: ``(B, 3, I, I)`` RGB, uint8 or float, 0 to 255; I is the configuration's ``image_size``.
            lanes: what the last iteration computes; all tasks for all samples if ``None``. Earlier iterations always
                compute everything, with running statistics and, unless the configuration says otherwise, no gradient.
            iterations: number of passes; the configuration's if ``None``.
            every: each iteration computes the given lanes as the last one does; what the earlier ones feed back is
                computed beside that.
            planes: ``(B, planes, S, S)`` that all passes are later ones from, as `encode` draws predictions; ``None``:
                the label means.

        Returns:
            One `Predictions` an iteration. Only the last, or with ``every`` each, has the given lanes, batch statistics
            and dropout in training.
        """
        passes = self.config.iterations if iterations is None else iterations
        self._check(images, passes)
        batch, everything = images.shape[0], Lanes.all_tasks(images.shape[0], self.config, images.device)
        lanes = lanes or everything
        if self.training and passes == 1 and lanes.rows.shape[0] <= batch and not lanes.in_order:
            # Pixels are laid out by lane, not the stem's many channels; and no gradient has to find its way back.
            count = lanes.rows.shape[0]
            ordered = replace(lanes, rows=torch.arange(count, device=lanes.rows.device), in_order=True)
            begun = None if planes is None else planes.index_select(0, lanes.rows)
            found = self.forward(images.index_select(0, lanes.rows), ordered, 1, planes=begun)[0]
            return [replace(found, rows=dict(zip(found.rows, lanes.split(), strict=True)))]
        with span("stem of the image"):
            image_share = F.conv2d(self.preprocess(images), self.stem_filters()[0], padding=3)
        out: list[Predictions] = []
        first, fed = planes is None, self.first_planes() if planes is None else planes.to(self.stem.weight.dtype)
        for i in range(passes):
            given, later = every or i == passes - 1, i > 0 or not first
            if given:
                out.append(self.iterate(image_share, fed, lanes, self.training, later))
            if i < passes - 1:
                with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.feedback_gradient):
                    predictions = self.iterate(image_share, fed, everything, later=later)
                    fed = self.encode(predictions, batch)
                out += [] if given else [predictions]
        return out

    def stem_filters(self) -> tuple[Tensor, Tensor]:
        """The stem's weight by what it reads: the folded image, and the planes."""
        weight, channels = self.stem.weight, self.config.image_channels
        return weight[:, :channels], weight[:, channels:]

    def preprocess(self, images: Tensor) -> Tensor:
        """RGB 0 to 255 to BGR minus the means of the release, times ``image_scale``, in the network's dtype, and
        folded: ``(B, 3 F^2, S, S)`` where F is ``image_fold``."""
        dtype = self.stem.weight.dtype
        # Filled where it is needed: a copy from the host would wait for the GPU, and no CUDA graph may hold one.
        mean = torch.cat([torch.full((1, 1, 1, 1), m, dtype=dtype, device=images.device) for m in BGR_MEAN], 1)
        scaled, fold = (images.to(dtype).flip(1) - mean) * self.config.image_scale, self.config.image_fold
        return F.pixel_unshuffle(scaled, fold) if fold > 1 else scaled

    def first_planes(self) -> Tensor:
        """The training means drawn as planes, ``(1, K + P + sum of C, S, S)``, in the dtype of the stem's weight."""
        tiny = torch.finfo(self.mean_parsing.dtype).tiny
        parsing, classes = self.mean_parsing.clamp_min(tiny).log(), self.mean_classes.clamp_min(tiny).log()
        return self._draw(parsing[None], self.mean_points[None], classes[None]).to(self.stem.weight.dtype)

    @ranged("encode")
    def encode(self, predictions: Predictions, batch: int) -> Tensor:
        """Draw predictions of all tasks for all samples as planes, ``(B, K + P + sum of C, S, S)``."""
        parsing, points, config = predictions.parsing_logits, predictions.points, self.config
        if config.parsing is None:
            parsing = parsing.new_zeros(batch, 0, config.size, config.size)
        if config.landmarks is None:
            points = points.new_zeros(batch, 2, 0)
        planes = self._draw(parsing, points, predictions.dense_class_logits(batch))
        return planes if self.fed_back == 1 else self.first_planes().lerp(planes, self.fed_back)

    def _draw(self, parsing_logits: Tensor, points: Tensor, class_logits: Tensor) -> Tensor:
        radius = self.config.point_radius
        return ops.encode_predictions(parsing_logits, points, class_logits, list(self.class_sizes), radius)

    @ranged("iteration")
    def iterate(
        self, image_share: Tensor, planes: Tensor, lanes: Lanes, training: bool = False, later: bool = True
    ) -> Predictions:
        """One pass from planes to predictions.

        ``image_share`` (B, stem, S, S): the image's part of the stem; ``planes`` (B or 1, planes, S, S), one row
        standing for all samples; ``training``: normalise with the moments of these lanes, update running statistics,
        drop out; ``later``: the planes are predictions, not the means that the first iteration is fed.
        """
        with span("stem"):
            stem = image_share + F.conv2d(planes, self.stem_filters()[1], padding=3)
        groups = planes.split([t.width for t in self.config.tasks], 1)
        with span("re-encoders"):
            encoded = [encoder(group) for encoder, group in zip(self.encoders, groups, strict=True)]
        joined: list[list[Tensor]] = [list(groups), [], *([e[i] for e in encoded] for i in range(3))]
        reading = Reading(lanes, training, self.moments_reduce, later)
        maps = [[reading.shared(m, stem.shape[0]) for m in level] for level in joined]
        x = reading.shared(stem, stem.shape[0])
        skips: list[Features] = []
        taps: list[Features] = []
        for i, block in enumerate(self.down_blocks):
            with span(f"block {i + 1}"):
                skips.append(x + block(x, reading) + x)
            taps.append(tap := sum(maps[i], skips[-1]))
            if i < len(self.down_blocks) - 1:
                with span(f"transition down {i + 1}"):
                    x = self.down[i](tap, reading)
        points = self._landmarks(taps, reading)
        classes, parsing = self._past_tap(tap, skips, maps, reading)
        rows = {t.name: r for t, r in zip(self.config.tasks, lanes.split(), strict=True)}
        return Predictions(parsing, points, classes, rows)

    def _landmarks(self, taps: list[Features], reading: Reading) -> Tensor:
        task = self.config.landmarks
        if task is None:
            return taps[-1].sources[0].new_zeros(0, 2, 0)
        with span(f"head {task.name}"):
            if isinstance(self.landmark_head, HeatMapHead):
                return cast(Tensor, self.landmark_head([tap.keep(self.at_tap) for tap in taps], reading))
            points: Tensor = self.landmark_head(taps[-1].keep(self.at_tap), reading)
        return points.unflatten(1, (2, task.width))

    def _past_tap(
        self, tap: Features, skips: list[Features], maps: list[list[Features]], reading: Reading
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
        with span(f"transition down {len(self.down_blocks)}"):
            x = self.down[-1](tap, reading)
        with span("middle block"):
            x = x + self.middle(x, reading)
        logits = {}
        for i, t in enumerate(config.classifications, 1 if config.parsing else 0):
            with span(f"head {t.name}"):
                logits[t.name] = self.class_heads[t.name](x.keep([i]), reading)
        if config.parsing is None or x.lanes.global_segments[0] == 0:
            return logits, nothing
        return logits, self._parse(x.keep([0]), [s.keep([0]) for s in skips], maps, reading)

    def _parse(self, x: Features, skips: list[Features], maps: list[list[Features]], reading: Reading) -> Tensor:
        reading = reading.on(x.lanes)
        for i, (up, block) in enumerate(zip(self.up, self.up_blocks, strict=True)):
            level = len(skips) - i
            if 2 <= level <= 4:
                x = sum((m.keep([0]) for m in maps[level]), x)
            with span(f"transition up {level}"):
                x = up(x, reading) + skips[level - 1]
            with span(f"block up {level}"):
                x = x + block(x, reading)
        x, weight = sum((m.keep([0]) for m in maps[0]), x).unique(self.parsing_head.weight)
        with span("head parsing"):
            return x.pointwise(weight)

    def _check(self, images: Tensor, passes: int) -> None:
        size = self.config.image_size
        if images.dim() != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(f"images: expected (B, 3, {size}, {size}); got {tuple(images.shape)}. Crop to that size.")
        if passes < 1:
            raise ValueError(f"iterations: expected at least 1; got {passes}")


@torch.no_grad()
def released(model: IFAN) -> IFAN:
    """The same function in the released graph: ``image_scale`` 1, no normalised heads, a normalisation each task.

    What differs is folded into the weights. A normalisation that iterations do not share has no place in that graph:
    it stays, and with it the heads' normalisation, which then differs between iterations (`DenseHead.folded`). So does
    ``image_fold``.
    """
    separate = model.config.iteration_norm != "shared"
    heads = model.config.normalise_heads and separate
    config = replace(model.config, image_scale=1.0, normalise_heads=heads, task_norm=True)
    folded = IFAN(config).to(model.stem.weight.dtype)
    state = model.state_dict()
    folded.load_state_dict({name: state[name].expand_as(value) for name, value in folded.state_dict().items()})
    folded.stem_filters()[0].mul_(model.config.image_scale)
    for ours, theirs in zip(folded.dense_head_of().values(), model.dense_head_of().values(), strict=True):
        if ours.norm is None:
            weight, bias = theirs.folded(later=False)
            ours.weight.copy_(weight)
            ours.bias.copy_(bias)
    return folded.train(model.training)
