"""The feedback loop as a graph of plain PyTorch operations, for ONNX and OpenVINO.

Everything that is exact and that a graph can express is in it: each task runs only what it needs, stem and re-encoders
run once for all tasks, the image's share of the stem once for all iterations, transitions down pool before their 1x1
convolution, and skip channels that stand twice in a concatenation are read once where they are read raw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ifan import reference
from ifan.config import EPSILON, NetworkConfig, TaskConfig
from ifan.layers import DenseBlock, DenseHead, HeatMapHead, TaskNorm, TransitionDown, TransitionUp, centres
from ifan.network import IFAN, fold_training_extras
from ifan.wiring import LEVELS, MIDDLE, Widths, encoder_widths, joined_maps, wire

OUTPUTS = {"parsing": "parsing_logits", "landmarks": "points"}
"""Names of what a task predicts by its kind; a classification's is its own name and ``_logits``."""

T = TypeVar("T")


@dataclass(frozen=True)
class _Maps(Generic[T]):
    """Tensors, or what stands for them, that are concatenated where they are read; of one task alone."""

    sources: tuple[T, ...]

    def __add__(self, other: _Maps[T]) -> _Maps[T]:
        return _Maps(self.sources + other.sources)

    def keep(self, tasks: Sequence[int]) -> _Maps[T]:
        """Itself: there is one task."""
        return self


class FeedbackGraph(nn.Module):
    """``images (N, 3, I, I)`` uint8 RGB -> the last iteration's ``outputs``, a row a sample; inference only.

    The weights are copied from ``network`` (in any mode, which stays as it is). ``outputs`` names what is returned, in
    order: ``parsing_logits`` (N, K, S, S) and ``points`` (N, 2, P) in crop sides from the centre where the network has
    these tasks, and ``<name>_logits`` (N, C) for each classification. ``iterations``: the network's if ``None``.
    """

    def __init__(self, network: IFAN, iterations: int | None = None) -> None:
        super().__init__()
        self.config = config = network.config
        self.iterations = config.iterations_per_crop if iterations is None else iterations
        if self.iterations < 1:
            raise ValueError(f"iterations: expected at least 1; got {self.iterations}")
        plain = fold_training_extras(network).eval()
        self.plain, self.raw = plain, _RawReaders(config)
        self.outputs = tuple(OUTPUTS.get(t.kind, f"{t.name}_logits") for t in config.tasks)
        blocks = [*plain.down_blocks, *([plain.middle] if plain.middle else ())]
        blocks += list(plain.up_blocks) if config.parsing else []
        self.blocks = nn.ModuleList(_Block(cast(DenseBlock, block)) for block in blocks)
        self.down = nn.ModuleList(_Down(cast(TransitionDown, d)) for d in plain.down)
        if config.parsing:
            ups = [cast(TransitionUp, up) for up in plain.up]
            self.up = nn.ModuleList(_Up(self.raw.merged(f"up {i}", up.a.weight), up) for i, up in enumerate(ups))
            self.register_buffer("parsing", self.raw.merged(config.parsing.name, plain.parsing_head.weight))
        self.heat_maps = nn.ModuleList(_Block(level) for level in _levels(plain))
        self.heads = nn.ModuleDict({name: _heads(head) for name, head in plain.dense_head_of().items()})
        self.register_buffer("first", plain.first_planes().detach())
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor, begun: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
        """All iterations; with ``begun``, predictions in the order of ``outputs``, one iteration that begins with
        these."""
        share = self.image_share(images)
        if begun:
            return self.iterate(share, self.draw(begun))
        found = self.iterate(share, cast(Tensor, self.first), later=False)
        for _ in range(self.iterations - 1):
            found = self.iterate(share, self.draw(found))
        return found

    def image_share(self, images: Tensor) -> Tensor:
        """The image's part of the stem, the same in every iteration: ``(N, stem, S, S)``."""
        return F.conv2d(self.plain.preprocess(images), self.plain.stem_filters()[0], padding=3)

    def draw(self, found: Sequence[Tensor]) -> Tensor:
        """One iteration's ``outputs`` as the planes of the next."""
        named, config = dict(zip(self.outputs, found, strict=True)), self.config
        batch, size = found[0].shape[0], config.size
        classes = [named[f"{t.name}_logits"] for t in config.classifications]
        empty = found[0].new_zeros(batch, 0)
        return reference.encode_predictions(
            named["parsing_logits"] if config.parsing else empty[:, :, None, None].expand(-1, -1, size, size),
            named["points"][:, :, : config.landmarks.planes] if config.landmarks else empty[:, None].expand(-1, 2, -1),
            torch.cat(classes, 1) if classes else empty,
            self.plain.class_sizes,
            config.point_radius,
        )

    def iterate(self, image_share: Tensor, planes: Tensor, later: bool = True) -> tuple[Tensor, ...]:
        """One pass from planes (a row a sample, or one for all) to ``outputs``; ``later``: not the first iteration."""
        batch, groups = image_share.shape[0], planes.split([t.planes for t in self.config.tasks], 1)
        stem = image_share + F.conv2d(planes, self.plain.stem_filters()[1], padding=3)
        encoded = [encoder(group) for encoder, group in zip(self.plain.encoders, groups, strict=True)]
        maps = [[_Maps((m.expand(batch, -1, -1, -1),)) for m in level] for level in joined_maps(groups, encoded)]
        found: dict[str, Tensor] = {}
        for task in self.config.tasks:
            found.update(wire(_Layers(self, task, later), _Maps((stem,)), maps, [task]))
        return tuple(found[task.name] for task in self.config.tasks)


class _Layers:
    """The layers of a graph on the path of one task, in the first or a later iteration, as `ifan.wiring.Net`."""

    def __init__(self, graph: FeedbackGraph, task: TaskConfig, later: bool) -> None:
        self.config, self.graph, self.later = graph.config, graph, later
        names = [t.name for t in self.config.tasks]  # torch.compile cannot compare tasks
        past_tap = [t.name for t in self.config.tasks if t.kind != "landmarks"]
        self.row = names.index(task.name)
        self.row_past_tap = past_tap.index(task.name) if task.name in past_tap else 0

    def dense(self, block: int, x: _Maps[Tensor]) -> _Maps[Tensor]:
        """See `ifan.wiring.Net`; a tensor a layer."""
        row = self.row if block < MIDDLE else self.row_past_tap if block == MIDDLE else 0
        return _Maps(self.graph.blocks[block](x.sources, row, self.later))

    def down(self, level: int, x: _Maps[Tensor]) -> _Maps[Tensor]:
        """See `ifan.wiring.Net`."""
        row = self.row if level < LEVELS - 1 else self.row_past_tap
        return _Maps((self.graph.down[level](x.sources, row, self.later),))

    def up(self, step: int, x: _Maps[Tensor]) -> _Maps[Tensor]:
        """See `ifan.wiring.Net`."""
        return _Maps((self.graph.up[step](self.graph.raw.distinct(f"up {step}", x.sources)),))

    def head(self, task: TaskConfig, read: list[_Maps[Tensor]]) -> Tensor:
        """See `ifan.wiring.Net`."""
        if task.kind == "parsing":
            once = self.graph.raw.distinct(task.name, read[0].sources)
            return F.conv2d(torch.cat(once, 1), cast(Tensor, self.graph.parsing))
        if task.kind == "landmarks" and len(self.graph.heat_maps):
            levels = zip(self.graph.heat_maps, read, strict=True)
            return centres([block(x.sources, 0, self.later)[0] for block, x in levels])
        layer = cast(nn.ModuleList, self.graph.heads[task.name])[-1 if self.later else 0]
        found: Tensor = layer(torch.cat(read[0].sources, 1).permute(0, 2, 3, 1).flatten(1))
        return found.unflatten(1, (2, task.width)) if task.kind == "landmarks" else found

    def present(self, x: _Maps[Tensor]) -> bool:
        """See `ifan.wiring.Net`."""
        return True


class _Source:
    """A tensor that is not there: its channels, and an identity."""

    def __init__(self, channels: int) -> None:
        self.channels = channels


class _RawReaders:
    """Sources of the layers that read raw maps: `wire` walked along with sources that are not there.

    A skip holds its block's input twice. A convolution that reads the raw maps needs it once, by the sum of both
    weights.
    """

    def __init__(self, config: NetworkConfig) -> None:
        self.config, self.widths = config, Widths(config)
        self.read: dict[str, tuple[_Source, ...]] = {}
        encoded = [[_one(width) for width in encoder_widths(task)] for task in config.tasks]
        if config.parsing:
            planes = [_one(task.planes) for task in config.tasks]
            wire(self, _one(config.stem_channels), joined_maps(planes, encoded), [config.parsing])

    def distinct(self, reader: str, sources: Sequence[T]) -> list[T]:
        """Those of a reader's ``sources`` that are left without the copies."""
        return [sources[i] for i in dict.fromkeys(self._firsts(reader))]

    def merged(self, reader: str, weight: Tensor) -> Tensor:
        """The ``weight`` of a reader (O, C, k, k) over its `distinct` sources, the copies' columns added."""
        columns: dict[int, Tensor] = {}
        parts = weight.detach().split([source.channels for source in self.read[reader]], 1)
        for first, part in zip(self._firsts(reader), parts, strict=True):
            columns[first] = columns[first] + part if first in columns else part
        return torch.cat(list(columns.values()), 1)

    def _firsts(self, reader: str) -> list[int]:
        sources = self.read[reader]
        return [sources.index(source) for source in sources]

    def dense(self, block: int, x: _Maps[_Source]) -> _Maps[_Source]:
        """See `ifan.wiring.Net`; a source a layer."""
        return _Maps(tuple(_Source(self.config.growth) for _ in range(self.config.block_layers)))

    def down(self, level: int, x: _Maps[_Source]) -> _Maps[_Source]:
        """See `ifan.wiring.Net`."""
        return _one(self.widths.down_width(level))

    def up(self, step: int, x: _Maps[_Source]) -> _Maps[_Source]:
        """See `ifan.wiring.Net`."""
        self.read[f"up {step}"] = x.sources
        return _one(self.config.up_channels)

    def head(self, task: TaskConfig, read: list[_Maps[_Source]]) -> None:
        """See `ifan.wiring.Net`."""
        self.read[task.name] = read[0].sources

    def present(self, x: _Maps[_Source]) -> bool:
        """See `ifan.wiring.Net`."""
        return True


def _one(channels: int) -> _Maps[_Source]:
    return _Maps((_Source(channels),))


class _Norms(nn.Module):
    """A `TaskNorm` and its ReLU, as one ordinary batch normalisation a path: what runtimes know how to fuse."""

    def __init__(self, norm: TaskNorm) -> None:
        super().__init__()
        names = ("weight", "bias", "running_mean", "running_var")
        self.paths = nn.ModuleList()
        for later in (False, True) if norm.separate else (False,):
            for values in zip(*norm.affine(later), *norm.running(later), strict=True):
                one = nn.BatchNorm2d(len(values[0]), EPSILON)
                one.load_state_dict(dict(zip(names, values, strict=True)), strict=False)
                self.paths.append(one)
        self.later = norm.tasks if norm.separate else 0

    def forward(self, x: Tensor, row: int, later: bool) -> Tensor:
        return F.relu(self.paths[row + later * self.later](x))


class _Block(nn.Module):
    """The grown channels of a dense block, a tensor a layer."""

    def __init__(self, block: DenseBlock) -> None:
        super().__init__()
        self.norms = nn.ModuleList(_Norms(cast(TaskNorm, n)) for n in block.norms)
        self.convolutions = block.convolutions

    def forward(self, sources: tuple[Tensor, ...], row: int, later: bool) -> tuple[Tensor, ...]:
        read = sources
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            read = (*read, convolution(norm(torch.cat(read, 1), row, later)))
        return read[len(sources) :]


class _Down(nn.Module):
    def __init__(self, transition: TransitionDown) -> None:
        super().__init__()
        self.norm, self.convolution = _Norms(transition.norm), transition.convolution

    def forward(self, sources: tuple[Tensor, ...], row: int, later: bool) -> Tensor:
        return cast(Tensor, self.convolution(F.avg_pool2d(self.norm(torch.cat(sources, 1), row, later), 2)))


class _Up(nn.Module):
    """The release's phase shift is `pixel_shuffle` after channels 4c + 1 and 4c + 2 change places."""

    def __init__(self, weight: Tensor, transition: TransitionUp) -> None:
        super().__init__()
        cells = weight.detach().unflatten(0, (-1, 2, 2)).transpose(1, 2).flatten(0, 2)
        self.register_buffer("a", cells.contiguous())
        self.b = transition.b

    def forward(self, sources: list[Tensor]) -> Tensor:
        x = F.relu(F.conv2d(torch.cat(sources, 1), cast(Tensor, self.a), padding=1))
        return F.relu(self.b(F.pixel_shuffle(x, 2)))


def _levels(plain: IFAN) -> list[DenseBlock]:
    """The layers that draw heat maps, from the finest; none with a dense landmark head."""
    head = plain.landmark_head if plain.config.landmarks else None
    return [cast(DenseBlock, level) for level in head.levels] if isinstance(head, HeatMapHead) else []


def _heads(head: DenseHead) -> nn.ModuleList:
    """A dense head as a plain layer, or as two, of the first and of later iterations, where it normalises."""
    paths = nn.ModuleList()
    for later in (False, True) if head.norm else (False,):
        one = nn.Linear(head.in_features, head.out_features)
        weight, bias = head.folded(later)
        one.load_state_dict({"weight": weight, "bias": bias})
        paths.append(one)
    return paths
