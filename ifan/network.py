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
from ifan.concat import Concat, Lanes, MomentsReduce
from ifan.config import Kind, NetworkConfig, TaskConfig, from_dict
from ifan.hub import HubModel
from ifan.layers import (
    DenseBlock,
    DenseHead,
    ForwardContext,
    HeatMapHead,
    ReEncoder,
    TransitionDown,
    TransitionUp,
    convolution,
)
from ifan.profiling import ranged, span
from ifan.wiring import BGR_MEAN, LEVELS, MIDDLE, Widths, joined_maps, wire

__all__ = ["IFAN", "Lanes", "Predictions", "fold_training_extras"]


@dataclass(frozen=True)
class Predictions:
    """Predictions of an iteration, a row a lane; ``rows``: samples ``(n,)`` int64 of the rows by a task's name.

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


class IFAN(nn.Module, HubModel):
    """The network of a `NetworkConfig` (or of the mapping that a saved model's ``config.json`` holds).

    ``moments_reduce`` joins normalisation statistics over processes while training (`ifan.concat.MomentsReduce`).
    """

    mean_parsing: Tensor
    mean_points: Tensor
    mean_classes: Tensor

    def __init__(self, network: NetworkConfig | dict[str, Any] | None = None) -> None:
        super().__init__()
        config = network if isinstance(network, NetworkConfig) else from_dict(NetworkConfig, network or {}, "network")
        self.config = config
        self.moments_reduce: MomentsReduce | None = None
        self.feedback = 1.0
        """Share of the predictions in the planes that are fed back; the rest is the label means."""
        self.class_sizes = tuple(t.width for t in config.classifications)
        widths, tasks = Widths(config), len(config.tasks)
        past_tap = sum(t.kind != "landmarks" for t in config.tasks)

        def block(index: int, tasks: int) -> DenseBlock:
            return DenseBlock(widths.dense_inputs(index), tasks, config)

        self.encoders = nn.ModuleList(ReEncoder(t) for t in config.tasks)
        self.stem = convolution(config.image_channels + widths.planes, config.stem_channels, 7)
        self.down_blocks = nn.ModuleList(block(level, tasks) for level in range(LEVELS))
        self.down = nn.ModuleList(
            TransitionDown(x.channels, widths.down_width(level), past_tap if level == LEVELS - 1 else tasks, config)
            for level, x in widths.down_in.items()
        )
        self.middle = block(MIDDLE, past_tap) if past_tap else None
        if config.parsing:
            self.up = nn.ModuleList(TransitionUp(x.channels, config.up_channels) for x in widths.up_in.values())
            self.up_blocks = nn.ModuleList(block(MIDDLE + 1 + step, 1) for step in widths.up_in)
            self.parsing_head = convolution(
                widths.heads[config.parsing.name][0].channels, config.parsing.width, 1, glorot=True
            )
        if config.landmarks:
            read = widths.heads[config.landmarks.name]
            self.landmark_head: DenseHead | HeatMapHead = (
                HeatMapHead([x.channels for x in read], config.landmarks.width, config)
                if config.landmark_head == "heat_maps"
                else DenseHead(read[0].values, 2 * config.landmarks.width, config)
            )
        self.class_heads = nn.ModuleDict(
            {t.name: DenseHead(widths.heads[t.name][0].values, t.width, config) for t in config.classifications}
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
        passes = self.config.iterations_per_crop if iterations is None else iterations
        self._check(images, passes)
        batch, everything = images.shape[0], Lanes.all_tasks(images.shape[0], self.config, images.device)
        lanes = lanes or everything
        read = lanes  # rows of the images as they came
        if self.training and passes == 1 and lanes.rows.shape[0] <= batch and not lanes.in_order:
            images, planes, lanes = _in_order_of(lanes, images, planes)
        with span("stem of the image"):
            image_share = F.conv2d(self.preprocess(images), self.stem_filters()[0], padding=3)
        out: list[Predictions] = []
        first, fed = planes is None, self.first_planes() if planes is None else planes.to(self.stem.weight.dtype)
        for i in range(passes):
            given, later = every or i == passes - 1, i > 0 or not first
            if given:
                found = self.iterate(image_share, fed, lanes, self.training, later)
                out.append(replace(found, rows=dict(zip(found.rows, read.split(), strict=True))))
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
        return planes if self.feedback == 1 else self.first_planes().lerp(planes, self.feedback)

    def _draw(self, parsing_logits: Tensor, points: Tensor, class_logits: Tensor) -> Tensor:
        radius, landmarks = self.config.point_radius, self.config.landmarks
        points = points[:, :, : landmarks.planes] if landmarks else points
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
        groups = planes.split([t.planes for t in self.config.tasks], 1)
        with span("re-encoders"):
            encoded = [encoder(group) for encoder, group in zip(self.encoders, groups, strict=True)]
        context = ForwardContext(lanes, training, self.moments_reduce, later)
        levels = joined_maps(groups, encoded)
        maps = [[context.shared(m, stem.shape[0]) for m in level] for level in levels]
        found = wire(_Layers(self, context), context.shared(stem, stem.shape[0]), maps, self.config.tasks)
        rows = {t.name: r for t, r in zip(self.config.tasks, lanes.split(), strict=True)}
        return self._predictions(found, rows, stem)

    def _predictions(self, found: dict[str, Tensor], rows: dict[str, Tensor], like: Tensor) -> Predictions:
        """``found`` by task's name; tasks that are missing there have no rows."""
        config = self.config

        def of(task: TaskConfig | None, *shape: int) -> Tensor:
            value = found.get(task.name) if task else None
            return like.new_zeros(0, *shape) if value is None else value

        parsing, points = config.parsing, config.landmarks
        return Predictions(
            of(parsing, parsing.width if parsing else 0, config.size, config.size),
            of(points, 2, points.width if points else 0),
            {t.name: of(t, t.width) for t in config.classifications},
            rows,
        )

    def _check(self, images: Tensor, passes: int) -> None:
        size = self.config.image_size
        if images.dim() != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(f"images: expected (B, 3, {size}, {size}); got {tuple(images.shape)}. Crop to that size.")
        floats = images.device.type == "cpu" and images.is_floating_point() and not torch.compiler.is_compiling()
        if floats and images.numel() and 0 < float(images.detach().amax()) <= 1:
            raise ValueError("images: expected RGB values 0 to 255; got floats of at most 1. Multiply them by 255.")
        if passes < 1:
            raise ValueError(f"iterations: expected at least 1; got {passes}")


def _in_order_of(lanes: Lanes, images: Tensor, planes: Tensor | None) -> tuple[Tensor, Tensor | None, Lanes]:
    """Images and planes with a row a lane, and lanes that read them in order.

    Pixels are then laid out by lane, not the stem's many channels, and no gradient has to find its way back.
    """
    rows = lanes.rows
    ordered = replace(lanes, rows=torch.arange(rows.shape[0], device=rows.device), in_order=True)
    return images.index_select(0, rows), None if planes is None else planes.index_select(0, rows), ordered


class _Layers:
    """The layers of a network for one pass, as `ifan.wiring.Net`."""

    def __init__(self, network: IFAN, context: ForwardContext) -> None:
        self.config, self.network, self.context = network.config, network, context
        self.blocks = [*network.down_blocks, network.middle, *(network.up_blocks if network.config.parsing else ())]

    def dense(self, block: int, x: Concat) -> Concat:
        """See `ifan.wiring.Net`."""
        name = f"block {block + 1}" if block < MIDDLE else f"block up {2 * LEVELS + 1 - block}"
        with span("middle block" if block == MIDDLE else name):
            return cast(Concat, cast(DenseBlock, self.blocks[block])(x, self.context.on(x.lanes)))

    def down(self, level: int, x: Concat) -> Concat:
        """See `ifan.wiring.Net`."""
        with span(f"transition down {level + 1}"):
            return cast(Concat, self.network.down[level](x, self.context.on(x.lanes)))

    def up(self, step: int, x: Concat) -> Concat:
        """See `ifan.wiring.Net`."""
        with span(f"transition up {LEVELS - step}"):
            return cast(Concat, self.network.up[step](x, self.context.on(x.lanes)))

    def head(self, task: TaskConfig, read: list[Concat]) -> Tensor:
        """See `ifan.wiring.Net`."""
        context = self.context.on(read[0].lanes)
        with span(f"head {task.name}"):
            if task.kind == "parsing":
                x, weight = read[0].unique(self.network.parsing_head.weight)
                return x.pointwise(weight)
            if task.kind == "classification":
                return cast(Tensor, self.network.class_heads[task.name](read[0], context))
            head = self.network.landmark_head
            if isinstance(head, HeatMapHead):
                return cast(Tensor, head(read, context))
            return cast(Tensor, head(read[0], context)).unflatten(1, (2, task.width))

    def present(self, x: Concat) -> bool:
        """See `ifan.wiring.Net`."""
        return sum(x.lanes.global_segments) > 0


def fold_training_extras(model: IFAN) -> IFAN:
    """The same function in the released graph, in the model's dtype, on the CPU; see `ifan.weights.folding`.

    A model on the meta device stays there.
    """
    from ifan.weights import SavedModel, network_of
    from ifan.weights.folding import folded, folded_config

    if model.stem.weight.is_meta:  # there are no values to fold
        with torch.device("meta"):
            return IFAN(folded_config(model.config)).train(model.training)
    tensors = {name: value.detach().cpu().numpy() for name, value in model.state_dict().items()}
    return network_of(folded(SavedModel(model.config, tensors))).train(model.training)
