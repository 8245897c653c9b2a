"""Stem and re-encoders as native calls: from an image and planes to the maps that the trunk reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np

from ifan.config import TaskConfig
from ifan.engine.arena import Arena, LaneMaps, PlanLanes, View, address, zeros
from ifan.engine.weights import PackedWeights
from ifan.native import cpu_module, thread_count
from ifan.predictions import FacePredictions
from ifan.wiring import BGR_MEAN, encoder_widths

Border = tuple[int, int, int, int, int, int]
"""Layout of a picture with a border of zeros: plane, row, top, left, half, split; see csrc/cpu/feedback.h."""


@dataclass(frozen=True)
class StemMaps:
    """Maps that a pass's trunk reads: stem, planes of all tasks together, three maps of each task's re-encoder."""

    stem: View
    planes: View
    encoded: list[list[View]]


class Stem:
    """Records stem and re-encoders of ``count`` faces into ``plan``, and the planes that predictions are drawn as."""

    def __init__(self, arena: Arena, weights: PackedWeights, plan: Any, count: int, bf16: bool) -> None:
        self.arena, self.weights, self.plan, self.count, self.bf16 = arena, weights, plan, count, bf16
        self.config = weights.config
        self.weight = weights["stem.weight"]
        self._bordered: dict[int | None, tuple[int, Border]] = {}
        self._rows = np.arange(count, dtype=np.int64)

    def planes(self) -> View:
        """Memory of planes."""
        return self._maps(sum(t.planes for t in self.config.tasks))

    def take_bordered(self) -> None:
        """Take memory of the pictures with a border. Outside all frames: nothing else is written there, so it stays
        zero."""
        size, tasks = self.config.size, self.config.tasks
        around, strided = _border(size, 3, 3), _border(size, 1, 2, split=True)
        planes = sum(t.planes for t in tasks)
        self._bordered = {None: (self.arena.take(self.count * planes * around[0]), around)}
        for t, task in enumerate(tasks):
            if task.kind != "classification":
                self._bordered[t] = self.arena.take(self.count * task.planes * strided[0]), strided

    def image_share(self, images: int) -> View:
        """The share of the image ``(N, 3, I, I)`` uint8 at an address, once for all iterations."""
        config, border = self.config, _border(self.config.size, 3, 3)
        share, channels = self._maps(config.stem_channels), config.image_channels
        padded = self.arena.take(self.count * channels * border[0])
        scale = config.image_scale
        self.plan.image(images, self.count, config.size, config.image_fold, BGR_MEAN, scale, padded, border)
        filters = self.weights.taps("stem.image", self.bf16, lambda: self.weight[:, :channels])
        self._window((padded, channels, border), 7, filters, share)
        return share

    def first(self, share: View) -> StemMaps:
        """The maps of the first iteration, from constants."""
        constants = first_constants(self.weights)
        stem = self._maps(self.config.stem_channels)
        values = stem.channels * stem.side**2
        self.plan.add_shared(share.address, constants.stem.address, self.count, values, stem.address)
        return replace(constants, stem=stem)

    def later(self, planes: View, share: View, points: np.ndarray | None) -> StemMaps:
        """The maps of ``planes``; their discs are those of ``points (N, 2, P)``, or unknown."""
        stem = self._maps(self.config.stem_channels)
        self._add_planes(planes, share, stem, points)
        encoded, first = list[list[View]](), 0
        for t, task in enumerate(self.config.tasks):
            encoded.append(self._re_encoded(t, task, planes.channels_from(first, task.planes)))
            first += task.planes
        return StemMaps(stem, planes, encoded)

    def draw(self, found: FacePredictions, planes: View) -> None:
        """Draw predictions as planes; of the points those that are drawn, and no others, must be given."""
        config = self.config
        self.plan.encode(
            address(found.parsing_logits),
            address(found.points),
            [address(found.class_logits[t.name]) for t in config.classifications],
            [t.width for t in config.classifications],
            self.count,
            config.parsing.width if config.parsing else 0,
            config.landmarks.planes if config.landmarks else 0,
            config.size,
            config.point_radius,
            planes.address,
        )

    def _maps(self, channels: int) -> View:
        return self.arena.maps(self.count, channels, self.config.size, per_sample=True)

    def _add_planes(self, planes: View, share: View, stem: View, points: np.ndarray | None) -> None:
        """The stem: constant planes by a table and known discs pixel by pixel, the others by convolution."""
        config, weights, size = self.config, self.weights, self.config.size
        weight = self.weight[:, config.image_channels :]
        discs = config.landmarks.planes if config.landmarks and points is not None else 0
        classes = sum(t.width for t in config.classifications)
        dense = planes.channels - discs - classes
        constant, drawn = weight[:, planes.channels - classes :], weight[:, dense : dense + discs]
        table = weights.address("stem.classes", lambda: _by_border(constant))
        filters = weights.address("stem.discs", lambda: _by_tap(drawn)) if discs else 0
        self.plan.stem_shares(
            share.address,
            self.count,
            config.stem_channels,
            size,
            planes.channels_from(dense + discs, classes).address,
            classes,
            planes.stride,
            table,
            address(points) if points is not None else 0,
            discs,
            config.point_radius,
            filters,
            stem.address,
        )
        if dense:
            padded, border = self._bordered[None]
            self.plan.border(planes.address, self.count, planes.stride, dense, size, padded, border)
            taps = weights.taps(("stem.planes", dense), self.bf16, lambda: weight[:, :dense])
            self._window((padded, dense, border), 7, taps, stem, stem.address)

    def _re_encoded(self, t: int, task: TaskConfig, group: View) -> list[View]:
        size, arena, plan, weights = self.config.size, self.arena, self.plan, self.weights
        names = [f"encoders.{t}.convolutions.{i}.weight" for i in range(3)]
        widths, sides = encoder_widths(task), [size // 4, size // 8, size // 16]
        maps = [arena.maps(self.count, w, s, per_sample=True) for w, s in zip(widths, sides, strict=True)]
        if task.kind == "classification":  # constant planes give constant maps
            flat = [weights.address(name, partial(weights.__getitem__, name)) for name in names]
            places = [view.address for view in maps]
            plan.class_maps(group.address, self.count, group.stride, size**2, task.width, flat, places, sides)
            return maps
        padded, border = self._bordered[t]
        plan.border(group.address, self.count, group.stride, group.channels, size, padded, border)
        whole = arena.maps(self.count, widths[0], size // 2)
        taps = weights.taps(names[0], False, lambda: weights[names[0]])
        self._window((padded, group.channels, border), 5, taps, whole, step=2)
        plan.max_pool(whole.address, self.count * widths[0], sides[0], sides[0], maps[0].address)
        for i in (1, 2):
            with arena.frame():
                whole = arena.maps(self.count, widths[i], sides[i - 1])
                self._convolve(maps[i - 1], names[i], whole)
                plan.max_pool(whole.address, self.count * widths[i], sides[i], sides[i], maps[i].address)
        return maps

    def _convolve(self, x: View, name: str, out: View) -> None:
        weights = self.weights
        shape = (out.channels, x.channels, x.side)
        filters = weights.filters(name, shape, self.bf16, lambda: weights[name])
        read = LaneMaps((x,), PlanLanes((0,), self.count, address(self._rows)))
        self.plan.convolution(*read.arguments, 0, 0, filters, out.channels, "relu", out.address, out.stride)

    def _window(
        self, x: tuple[int, int, Border], kernel: int, filters: int, out: View, initial: int = 0, step: int = 1
    ) -> None:
        """A ``kernel`` x ``kernel`` convolution of ``x``: address, channels and layout of bordered planes; in float32,
        with a ReLU, where taps lie half a plane apart."""
        padded, channels, (plane, row, _, _, half, split) = x
        field = (padded, channels, channels * plane, plane, 0)
        shape = (self.count, channels, out.side, out.side)
        taps = range(kernel)
        offsets = [y * row + (x % 2 * half + x // 2 if split else x) for y in taps for x in taps]
        arguments = ([field], 0, [self.count], shape, offsets, step * row, filters, out.channels, initial)
        self.plan.direct(*arguments, out.address, out.stride, bool(split), self.bf16 and not split)


def first_constants(weights: PackedWeights) -> StemMaps:
    """The share of the planes in the first iteration's stem, its planes and their maps: one row that all samples
    share, computed once in float32 from the label means."""
    return cast(tuple[StemMaps, np.ndarray], weights.keep("first", lambda: _first_constants(weights)))[0]


def _first_constants(weights: PackedWeights) -> tuple[StemMaps, np.ndarray]:
    config, means = weights.config, _means(weights)

    def record(arena: Arena) -> tuple[Stem, StemMaps]:
        stem = Stem(arena, weights, cpu_module().Plan(), 1, False)
        share, planes = stem._maps(config.stem_channels), stem.planes()  # nothing writes the share: it stays zero
        stem.take_bordered()
        stem.draw(means, planes)
        return stem, stem.later(planes, share, means.points)

    measured = Arena(64)
    record(measured)
    memory = zeros(measured.size + 16)
    stem, found = record(Arena(address(memory)))
    cpu_module().run_plans([stem.plan], thread_count())
    encoded = [[replace(view, stride=0) for view in maps] for maps in found.encoded]
    return StemMaps(found.stem, replace(found.planes, stride=0), encoded), memory


def _means(weights: PackedWeights) -> FacePredictions:
    """The label means as predictions for one face."""

    def logarithm(name: str) -> np.ndarray:
        values = weights[name].astype(np.float64)
        return np.log(np.maximum(values, np.finfo(np.float32).tiny)).astype(np.float32)

    classes, logits, first = logarithm("mean_classes"), dict[str, np.ndarray](), 0
    for task in weights.config.classifications:
        logits[task.name] = classes[None, first : first + task.width].copy()
        first += task.width
    landmarks = weights.config.landmarks
    drawn = weights["mean_points"][None, :, : landmarks.planes if landmarks else 0]
    points = np.ascontiguousarray(drawn, np.float32)
    return FacePredictions(logarithm("mean_parsing")[None], points, logits)


def _border(size: int, before: int, after: int, split: bool = False) -> Border:
    side = before + size + after
    if not split:
        return side * side, side, before, before, 0, 0
    half = side * (-(-side // 2))
    return 2 * half, -(-side // 2), before, before, half, 1


def _by_tap(weight: np.ndarray) -> np.ndarray:
    """Filters ``(O, C, k, k)`` as ``(C, k k, O)``."""
    return weight.reshape(*weight.shape[:2], -1).transpose(1, 2, 0)


def _by_border(weight: np.ndarray) -> np.ndarray:
    """Sums of the taps of 7x7 filters ``(O, C, 7, 7)`` that lie inside a plane, by how far the borders are:
    ``(C, O, 7, 7)``."""
    at = np.arange(7)
    inside = (np.abs(at[:, None] + at - 6) < 4).astype(np.float64)  # of tap i at place y: 0 <= y + i - 3 < 7
    return np.asarray(inside @ weight.astype(np.float64) @ inside.T).swapaxes(0, 1)
