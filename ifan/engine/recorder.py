"""The feedback loop written down as native calls, and the memory they work in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ifan.config import NetworkConfig, TaskConfig
from ifan.engine.arena import Arena, PlanLanes, View, zeros
from ifan.engine.weights import PackedWeights
from ifan.layers import DenseBlock, DenseHead, TaskNorm, TransitionDown, TransitionUp
from ifan.network import BGR_MEAN, Predictions
from ifan.ops.native import cpu_module
from ifan.wiring import encoder_widths

PlanKey = tuple[int, bool, str]
"""Of plans that can stand in for each other: faces, whether they start from given planes, instruction set."""


def uninitialised(config: NetworkConfig, tasks: Sequence[int], lanes: int) -> Predictions:
    """Uninitialised predictions of these tasks for ``lanes`` samples."""
    wanted = [config.tasks[t] for t in tasks]
    rows = {t.name: torch.arange(lanes if t in wanted else 0) for t in config.tasks}

    def count(task: TaskConfig | None) -> int:
        return lanes if task in wanted else 0

    classes = config.parsing.width if config.parsing else 0
    points = config.landmarks.width if config.landmarks else 0
    return Predictions(
        torch.empty(count(config.parsing), classes, config.size, config.size),
        torch.empty(count(config.landmarks), 2, points),
        {t.name: torch.empty(count(t), t.width) for t in config.classifications},
        rows,
    )


class Plan:
    """The recorded calls for one number of faces, with the arena they work in."""

    def __init__(
        self, key: PlanKey, weights: PackedWeights, count: int, iterations: int, tasks: Sequence[int], from_planes: bool
    ) -> None:
        size, side = weights.config.size, weights.config.image_size
        self.key = key
        self.images = torch.empty(count, 3, side, side, dtype=torch.uint8)
        self.rows = torch.arange(count).repeat(len(weights.config.tasks))
        self.planes = torch.empty(count, sum(t.width for t in weights.config.tasks), size, size)
        arguments = (weights, count, self.images, self.rows, self.planes if from_planes else None)
        measured = _Recorder(Arena(64), *arguments)  # no memory yet: it is measured how much it takes
        measured.record(iterations, tasks)
        self.memory = zeros(measured.arena.size + 16)  # borders stay zero: nothing else is ever written there
        recorder = _Recorder(Arena(self.memory.data_ptr()), *arguments)
        self.out = recorder.record(iterations, tasks)
        self.plan, self.kept = recorder.plan, recorder.kept

    def fill(self, images: Tensor, planes: Tensor | None) -> None:
        """What the next run reads."""
        self.images.copy_(images)
        if planes is not None:
            self.planes.copy_(planes)

    def predictions(self) -> Predictions:
        """A copy of what the last run found."""
        out = self.out
        return Predictions(
            out.parsing_logits.clone(),
            out.points.clone(),
            {name: value.clone() for name, value in out.class_logits.items()},
            dict(out.rows),
        )


class _Recorder:
    """Writes the feedback loop down as kernel calls; reads like `ifan.network.IFAN.iterate`."""

    def __init__(
        self, arena: Arena, weights: PackedWeights, count: int, images: Tensor, rows: Tensor, planes: Tensor | None
    ) -> None:
        self.arena, self.weights, self.network, self.config = arena, weights, weights.network, weights.config
        self.count, self.images, self.given = count, images, planes
        self.plan = cpu_module().Plan(bf16=weights.bf16)
        self.kept: list[Predictions] = []
        self.later = planes is not None  # whether the iteration being recorded is fed with predictions
        self.bordered: dict[int | None, tuple[int, tuple[int, ...]]] = {}
        landmarks = self.config.landmarks
        past = [i for i, t in enumerate(self.config.tasks) if t is not landmarks]
        order = (*past, *(i for i, t in enumerate(self.config.tasks) if t is landmarks))
        self.lanes = PlanLanes(order, count, rows.data_ptr())

    def record(self, iterations: int, tasks: Sequence[int]) -> Predictions:
        """All iterations; the last one of ``tasks`` only. Returns where its predictions will be."""
        config, size = self.config, self.config.size
        share = self._image_share()
        planes = self.arena.maps(self.count, sum(t.width for t in config.tasks), size, per_sample=True)
        self._take_bordered()
        for i in range(iterations):
            last, self.later = i == iterations - 1, i > 0 or self.given is not None
            out = uninitialised(config, tasks if last else range(len(config.tasks)), self.count)
            self.kept.append(out)
            with self.arena.frame():
                stem = self.arena.maps(self.count, config.stem_channels, size, per_sample=True)
                if i == 0 and self.given is None:
                    maps = self._first(share, stem)
                else:
                    read = planes
                    if self.given is not None:
                        read = replace(planes, address=self.given.data_ptr())
                    maps = self._encoded(read, share, stem, None if self.given is not None else self.kept[-2].points)
                kept = [t for t in self.lanes.tasks if t in tasks] if last else self.lanes.tasks
                self._trunk(replace(self.lanes, tasks=tuple(kept)), stem, maps, out)
            if not last:
                self._draw(out, planes)
        return out

    def _take_bordered(self) -> None:
        """Memory of the pictures with a border. Outside all frames: nothing else is written there, so it stays zero."""
        size, tasks = self.config.size, self.config.tasks
        around, strided = _border(size, 3, 3), _border(size, 1, 2, split=True)
        planes = sum(t.width for t in tasks)
        self.bordered = {None: (self.arena.take(self.count * planes * around[0]), around)}
        for t, task in enumerate(tasks):
            if task.kind != "classification":
                self.bordered[t] = self.arena.take(self.count * task.width * strided[0]), strided

    def _image_share(self) -> View:
        """The image's share of the stem, once for all iterations."""
        config, network, size = self.config, self.network, self.config.size
        share = self.arena.maps(self.count, config.stem_channels, size, per_sample=True)
        border = _border(size, 3, 3)
        channels, fold, scale = config.image_channels, config.image_fold, config.image_scale
        padded = self.arena.take(self.count * channels * border[0])
        self.plan.image(self.images.data_ptr(), self.count, size, fold, BGR_MEAN, scale, padded, border)
        filters = self.weights.taps("stem.image", network.stem_filters()[0], self.weights.bf16)
        self._window(padded, channels, border, 7, filters, share, 0)
        return share

    def _first(self, share: View, stem: View) -> list[list[View]]:
        """The first iteration's stem and maps, from constants."""
        first, tasks = self.weights.first(), self.config.tasks
        values = stem.channels * stem.side**2
        self.plan.add_shared(share.address, first["stem"].data_ptr(), self.count, values, stem.address)

        def shared(x: Tensor) -> View:
            return View(x.data_ptr(), x.shape[1], x.shape[2], 0, per_sample=True)

        levels = [[shared(first[f"maps{t}.{i}"]) for t in range(len(tasks))] for i in range(3)]
        return [[shared(first["planes"])], [], *levels]

    def _encoded(self, planes: View, share: View, stem: View, points: Tensor | None) -> list[list[View]]:
        """Stem and maps of ``planes``; their discs are those of ``points (N, 2, P)``, or unknown."""
        self._stem(planes, share, stem, points)
        config = self.config
        levels: list[list[View]] = [[], [], []]
        first = 0
        for t, task in enumerate(config.tasks):
            group = planes.channels_from(first, task.width)
            first += task.width
            for level, maps in enumerate(self._re_encoded(t, task, group)):
                levels[level].append(maps)
        return [[planes], [], *levels]

    def _stem(self, planes: View, share: View, stem: View, points: Tensor | None) -> None:
        """The stem: constant planes by a table and known discs pixel by pixel, the others by convolution."""
        config, weight, size = self.config, self.network.stem_filters()[1], self.config.size
        discs = config.landmarks.width if config.landmarks and points is not None else 0
        classes = sum(t.width for t in config.classifications)
        dense = planes.channels - discs - classes
        constant, drawn = weight[:, planes.channels - classes :], weight[:, dense : dense + discs]
        table = self.weights.address("stem.classes", lambda: _by_border(constant))
        filters = self.weights.address("stem.discs", lambda: drawn.flatten(2).permute(1, 2, 0)) if discs else 0
        self.plan.stem_shares(
            share.address,
            self.count,
            config.stem_channels,
            size,
            planes.channels_from(dense + discs, classes).address,
            classes,
            planes.stride,
            table,
            points.data_ptr() if points is not None else 0,
            discs,
            config.point_radius,
            filters,
            stem.address,
        )
        if dense:
            padded, border = self.bordered[None]
            self.plan.border(planes.address, self.count, planes.stride, dense, size, padded, border)
            taps = self.weights.taps(("stem.planes", dense), weight[:, :dense], self.weights.bf16)
            self._window(padded, dense, border, 7, taps, stem, stem.address)

    def _re_encoded(self, t: int, task: TaskConfig, group: View) -> list[View]:
        size, arena, plan = self.config.size, self.arena, self.plan
        convolutions = [cast(nn.Conv2d, c).weight for c in cast(Any, self.network.encoders[t]).convolutions]
        widths, sides = encoder_widths(task), [size // 4, size // 8, size // 16]
        maps = [arena.maps(self.count, w, s, per_sample=True) for w, s in zip(widths, sides, strict=True)]
        if task.kind == "classification":  # constant planes give constant maps
            weights = [self.weights.address((t, i), lambda w=w: w.flatten(1)) for i, w in enumerate(convolutions)]  # type: ignore[misc]
            addresses = [m.address for m in maps]
            plan.class_maps(group.address, self.count, group.stride, size**2, task.width, weights, addresses, sides)
            return maps
        padded, border = self.bordered[t]
        plan.border(group.address, self.count, group.stride, group.channels, size, padded, border)
        whole = arena.maps(self.count, widths[0], size // 2)
        taps = self.weights.taps((t, 0), convolutions[0], False)
        self._window(padded, group.channels, border, 5, taps, whole, 0, 2, True)
        plan.max_pool(whole.address, self.count * widths[0], sides[0], sides[0], maps[0].address)
        for i in (1, 2):
            with arena.frame():
                whole = arena.maps(self.count, widths[i], sides[i - 1])
                everything = PlanLanes((t,), self.count, self.lanes.rows)
                self._convolve(everything, [maps[i - 1]], (t, i), convolutions[i], whole, "relu")
                plan.max_pool(whole.address, self.count * widths[i], sides[i], sides[i], maps[i].address)
        return maps

    def _trunk(self, lanes: PlanLanes, stem: View, maps: list[list[View]], out: Predictions) -> None:
        network, config = self.network, self.config
        x, skips = [stem], list[list[View]]()
        taps: list[list[View]] = []
        for i, block in enumerate(network.down_blocks):
            skips.append([*x, *self._block(lanes, cast(DenseBlock, block), x, lanes.tasks), *x])
            taps.append([*skips[-1], *maps[i]])
            if i < len(network.down_blocks) - 1:
                x = [self._down(lanes, cast(TransitionDown, network.down[i]), taps[-1], lanes.tasks)]
        if config.landmarks is not None:
            landmarks = config.tasks.index(config.landmarks)
            if landmarks in lanes.tasks:
                self._points(lanes.only(landmarks), taps, out.points)
                lanes = lanes.prefix(lanes.tasks[:-1])
        if not lanes.tasks or network.middle is None:
            return
        past_tap = [i for i, t in enumerate(config.tasks) if t.kind != "landmarks"]
        rows = [past_tap.index(t) for t in lanes.tasks]
        x = [self._down(lanes, cast(TransitionDown, network.down[-1]), taps[-1], rows)]
        x = [*x, *self._block(lanes, network.middle, x, rows)]
        for t in lanes.tasks:
            if config.tasks[t].kind == "classification":
                name = config.tasks[t].name
                self._head(lanes.only(t), cast(DenseHead, network.class_heads[name]), x, out.class_logits[name])
        if config.parsing is not None and lanes.tasks[0] == config.tasks.index(config.parsing):
            self._parse(lanes.prefix(lanes.tasks[:1]), x, skips, maps, out.parsing_logits)

    def _parse(
        self, lanes: PlanLanes, x: list[View], skips: list[list[View]], maps: list[list[View]], logits: Tensor
    ) -> None:
        network = self.network
        for i, (up, block) in enumerate(zip(network.up, network.up_blocks, strict=True)):
            level = len(skips) - i
            if 2 <= level <= 4:
                x = [*x, *maps[level]]
            x = [self._up(lanes, cast(TransitionUp, up), x), *skips[level - 1]]
            x = [*x, *self._block(lanes, cast(DenseBlock, block), x, [0])]
        sources, weight = _unique([*x, *maps[0]], network.parsing_head.weight)
        target = View(logits.data_ptr(), logits.shape[1], logits.shape[3], logits[0].numel())
        self._pointwise(lanes, sources, "parsing_head", weight, target)

    def _block(self, lanes: PlanLanes, block: DenseBlock, x: list[View], norm_rows: Sequence[int]) -> list[View]:
        """The grown channels, one view."""
        growth, layers = cast(nn.Conv2d, block.convolutions[0]).out_channels, len(block.norms)
        grown = self.arena.maps(lanes.total, growth * layers, x[0].side)
        for i, (norm, layer) in enumerate(zip(block.norms, block.convolutions, strict=True)):
            sources = [*x, grown.channels_from(0, growth * i)] if i else x
            target = grown.channels_from(growth * i, growth)
            scale = self.weights.norm(cast(TaskNorm, norm), norm_rows, self.later)
            self._convolve(lanes, sources, id(layer), cast(nn.Conv2d, layer).weight, target, "none", scale)
        return [grown]

    def _down(self, lanes: PlanLanes, down: TransitionDown, x: list[View], norm_rows: Sequence[int]) -> View:
        side, channels = x[0].side // 2, sum(v.channels for v in x)
        out = self.arena.maps(lanes.total, down.convolution.weight.shape[0], side)
        with self.arena.frame():
            pooled = self.arena.maps(lanes.total, channels, side)
            scale, shift = self.weights.norm(down.norm, norm_rows, self.later)
            self.plan.integrate(*lanes.read(x), 2, scale, shift, pooled.address)
            self._pointwise(lanes, [pooled], id(down), down.convolution.weight, out)
        return out

    def _up(self, lanes: PlanLanes, up: TransitionUp, x: list[View]) -> View:
        sources, weight = _unique(x, up.a.weight)
        outputs, side = up.b.weight.shape[0], 2 * x[0].side
        out = self.arena.maps(lanes.total, outputs, side)
        with self.arena.frame():
            shifted = self.arena.maps(lanes.total, weight.shape[0] // 4, side)
            self._convolve(lanes, sources, (id(up), "a"), weight, shifted, "relu_phase_shift")
            self._convolve(lanes, [shifted], (id(up), "b"), up.b.weight, out, "relu")
        return out

    def _points(self, lanes: PlanLanes, taps: list[list[View]], out: Tensor) -> None:
        head = self.network.landmark_head
        if isinstance(head, DenseHead):
            self._head(lanes, head, taps[-1], out)
            return
        with self.arena.frame():
            levels = zip(head.levels, taps, strict=True)
            maps = [self._block(lanes, cast(DenseBlock, level), tap, [0])[0].address for level, tap in levels]
            self.plan.heat_maps(maps, lanes.total, out.shape[2], self.config.size, out.data_ptr())

    def _head(self, lanes: PlanLanes, head: DenseHead, x: list[View], out: Tensor) -> None:
        side, outputs = x[0].side, head.out_features
        later = self.later and head.norm is not None
        key = (id(head), later)
        weight = self.weights.address((key, "weight"), lambda: _channels_first(head.folded(later)[0], side))
        bias = self.weights.address((key, "bias"), lambda: head.folded(later)[1])
        self.plan.head(*lanes.read(x), weight, bias, outputs, out.data_ptr())

    def _draw(self, found: Predictions, planes: View) -> None:
        config = self.config
        classes = config.parsing.width if config.parsing else 0
        points = config.landmarks.width if config.landmarks else 0
        sizes = [t.width for t in config.classifications]
        self.plan.encode(
            found.parsing_logits.data_ptr(),
            found.points.data_ptr(),
            [found.class_logits[t.name].data_ptr() for t in config.classifications],
            sizes,
            self.count,
            classes,
            points,
            config.size,
            config.point_radius,
            planes.address,
        )

    def _convolve(
        self,
        lanes: PlanLanes,
        sources: Sequence[View],
        key: Any,
        weight: Tensor,
        out: View,
        epilogue: str,
        norm: tuple[int, int] = (0, 0),
    ) -> None:
        filters = self.weights.filters(key, weight, sources[0].side)
        self.plan.convolution(*lanes.read(sources), *norm, filters, weight.shape[0], epilogue, out.address, out.stride)

    def _pointwise(self, lanes: PlanLanes, sources: Sequence[View], key: Any, weight: Tensor, out: View) -> None:
        outputs, side, bf16 = weight.shape[0], sources[0].side, self.weights.bf16
        filters = self.weights.taps((key, "pointwise"), weight, bf16)
        self.plan.direct(*lanes.read(sources), [0], side, filters, outputs, 0, out.address, out.stride, False, bf16)

    def _window(
        self,
        padded: int,
        channels: int,
        border: tuple[int, ...],
        kernel: int,
        filters: int,
        out: View,
        initial: int,
        step: int = 1,
        relu: bool = False,
    ) -> None:
        """A ``kernel`` x ``kernel`` convolution of bordered planes; in float32 where taps lie half a plane apart."""
        plane, row, _, _, half, split = border
        field = (padded, channels, channels * plane, plane, 0)
        shape = (self.count, channels, out.side, out.side)
        taps = range(kernel)
        offsets = [y * row + (x % 2 * half + x // 2 if split else x) for y in taps for x in taps]
        arguments = ([field], 0, [self.count], shape, offsets, step * row, filters, out.channels, initial)
        self.plan.direct(*arguments, out.address, out.stride, relu, self.weights.bf16 and not split)


def _border(size: int, before: int, after: int, split: bool = False) -> tuple[int, ...]:
    """Layout of a picture with a border of zeros: plane, row, top, left, half, split; see csrc/cpu/feedback.h."""
    side = before + size + after
    if not split:
        return side * side, side, before, before, 0, 0
    half = side * (-(-side // 2))
    return 2 * half, -(-side // 2), before, before, half, 1


def _by_border(weight: Tensor) -> Tensor:
    """What 7x7 filters ``(O, C, 7, 7)`` make of a plane of ones, by how far the borders are: ``(C, O, 7, 7)``."""
    ones = torch.ones(1, 1, 7, 7, dtype=weight.dtype)
    return torch.cat([F.conv2d(ones, weight[:, c : c + 1], padding=3) for c in range(weight.shape[1])] or [weight[:0]])


def _unique(sources: Sequence[View], weight: Tensor) -> tuple[list[View], Tensor]:
    """Doubled sources once, with the columns of their weight added, as in `ifan.concat.Concat.unique`."""
    columns: dict[View, Tensor] = {}
    for source, part in zip(sources, weight.split([s.channels for s in sources], 1), strict=True):
        columns[source] = columns[source] + part if source in columns else part
    return list(columns), torch.cat(list(columns.values()), 1)


def _channels_first(weight: Tensor, side: int) -> Tensor:
    """A dense head's weight from the release's order, row, column, channel, to ``(outputs, C, side, side)``."""
    return weight.unflatten(1, (side, side, -1)).permute(0, 3, 1, 2)
