"""The feedback loop written down as native calls, and the memory they work in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ifan.config import NetworkConfig, TaskConfig
from ifan.engine.arena import Arena, LaneMaps, PlanLanes, View, address, zeros
from ifan.engine.stem import Stem
from ifan.engine.weights import PackedWeights
from ifan.native import cpu_module
from ifan.predictions import FacePredictions, uninitialised
from ifan.weights.folding import folded_head
from ifan.weights.shapes import block_name, head_name
from ifan.wiring import LEVELS, MIDDLE, joined_maps, wire


@dataclass(frozen=True)
class PlanKey:
    """Key of plans that can stand in for each other: number of faces, whether they begin with given predictions, and
    the kernels in use."""

    faces: int
    begun: bool
    kernels: str


class Plan:
    """The recorded calls for one number of faces, with the arena they work in.

    ``tasks``: positions in the configuration of what the last of the ``iterations`` predicts.
    """

    def __init__(self, key: PlanKey, weights: PackedWeights, iterations: int, tasks: Sequence[int]) -> None:
        config = weights.config
        self.key = key
        self.images = np.empty((key.faces, 3, config.image_size, config.image_size), np.uint8)
        self.begun: FacePredictions | None = None
        if key.begun:
            begun = uninitialised(config, [t.name for t in config.tasks], key.faces)
            drawn = config.landmarks.planes if config.landmarks else 0
            self.begun = replace(begun, points=begun.points[:, :, :drawn].copy())
        measured = _Recorder(Arena(64), weights, self.images)  # no memory yet: it is measured how much it takes
        measured.record(iterations, tasks, self.begun)
        self.memory = zeros(measured.arena.size + 16)  # borders stay zero: nothing else is ever written there
        self._recorder = _Recorder(Arena(address(self.memory)), weights, self.images)
        self.out = self._recorder.record(iterations, tasks, self.begun)
        self.plan = self._recorder.plan

    def fill(self, images: np.ndarray, begun: FacePredictions | None) -> None:
        """Copy in what the next run reads."""
        self.images[:] = images
        if begun is not None and self.begun is not None:
            self.begun.parsing_logits[:] = begun.parsing_logits
            self.begun.points[:] = begun.points[:, :, : self.begun.points.shape[2]]
            for name, logits in self.begun.class_logits.items():
                logits[:] = begun.class_logits[name]

    def predictions(self) -> FacePredictions:
        """A copy of what the last run found."""
        classes = {name: value.copy() for name, value in self.out.class_logits.items()}
        return FacePredictions(self.out.parsing_logits.copy(), self.out.points.copy(), classes)


class _Recorder:
    """Writes the feedback loop down as kernel calls.

    Keeps alive what the calls read and write, but for the arena's memory and ``images``.
    """

    def __init__(self, arena: Arena, weights: PackedWeights, images: np.ndarray) -> None:
        self.arena, self.weights, self.config = arena, weights, weights.config
        self.plan = cpu_module().Plan(bf16=weights.bf16)
        self.rows = np.tile(np.arange(len(images), dtype=np.int64), len(self.config.tasks))
        self.stem = Stem(arena, weights, self.plan, len(images), weights.bf16)
        self.images, self.kept = images, list[FacePredictions]()
        order = sorted(range(len(self.config.tasks)), key=lambda t: self.config.tasks[t].kind == "landmarks")
        self.lanes = PlanLanes(tuple(order), len(images), address(self.rows))

    def record(self, iterations: int, tasks: Sequence[int], begun: FacePredictions | None) -> FacePredictions:
        """All iterations; the last one of ``tasks`` only. Returns where its predictions will be."""
        config, count, everything = self.config, self.lanes.count, range(len(self.config.tasks))
        share = self.stem.image_share(address(self.images))
        planes = self.stem.planes()
        self.stem.take_bordered()
        if begun is not None:
            self.stem.draw(begun, planes)
        for i in range(iterations):
            wanted = [t for t in everything if t in tasks or i < iterations - 1]
            out = uninitialised(config, [config.tasks[t].name for t in wanted], count)
            with self.arena.frame():
                later = i > 0 or begun is not None
                if later:
                    seen = self.stem.later(planes, share, self.kept[-1].points if i else None)
                else:
                    seen = self.stem.first(share)
                lanes = PlanLanes(tuple(t for t in self.lanes.tasks if t in wanted), count, self.lanes.rows)
                stem, maps = LaneMaps((seen.stem,), lanes), [LaneMaps((seen.planes,), lanes)]
                encoded = [[LaneMaps((view,), lanes) for view in levels] for levels in seen.encoded]
                layers = _Layers(self, out, later)
                wire(layers, stem, joined_maps(maps, encoded), [config.tasks[t] for t in wanted])
            self.kept.append(out)
            if i < iterations - 1:
                self.stem.draw(out, planes)
        return out


class _Layers:
    """The layers of one pass as `ifan.wiring.Net`; predictions go to ``out``."""

    def __init__(self, recorder: _Recorder, out: FacePredictions, later: bool) -> None:
        self.config: NetworkConfig = recorder.config
        self.arena, self.weights, self.plan = recorder.arena, recorder.weights, recorder.plan
        self.out, self.later = out, later
        self._deeper = [t for t, task in enumerate(self.config.tasks) if task.kind != "landmarks"]

    def dense(self, block: int, x: LaneMaps) -> LaneMaps:
        """See `ifan.wiring.Net`."""
        rows = self._rows(x.lanes, block >= MIDDLE) if block <= MIDDLE else [0]
        return self._grown(block_name(block), x, rows, self.config.block_layers)

    def down(self, level: int, x: LaneMaps) -> LaneMaps:
        """See `ifan.wiring.Net`; pools before the 1x1 convolution, which is the same."""
        name, lanes, weights = f"down.{level}", x.lanes, self.weights
        outputs = weights[f"{name}.convolution.weight"].shape[0]
        out = self.arena.maps(lanes.total, outputs, x.side // 2)
        with self.arena.frame():
            pooled = self.arena.maps(lanes.total, x.channels, x.side // 2)
            scale, shift = weights.norm(f"{name}.norm", self._rows(lanes, level == LEVELS - 1), self.later)
            self.plan.integrate(*x.arguments, 2, scale, shift, pooled.address)
            self._pointwise(LaneMaps((pooled,), lanes), f"{name}.convolution.weight", out)
        return LaneMaps((out,), lanes)

    def up(self, step: int, x: LaneMaps) -> LaneMaps:
        """See `ifan.wiring.Net`."""
        lanes, channels = x.lanes, self.config.up_channels
        out = self.arena.maps(lanes.total, channels, 2 * x.side)
        with self.arena.frame():
            shifted = self.arena.maps(lanes.total, channels // 4, 2 * x.side)
            self._convolve(x, f"up.{step}.a.weight", shifted, channels, "relu_phase_shift")
            self._convolve(LaneMaps((shifted,), lanes), f"up.{step}.b.weight", out, channels, "relu")
        return LaneMaps((out,), lanes)

    def head(self, task: TaskConfig, read: list[LaneMaps]) -> None:
        """See `ifan.wiring.Net`."""
        name, out = head_name(task), self.out
        if task.kind == "parsing":
            logits = out.parsing_logits
            self._pointwise(
                read[0], f"{name}.weight", View(address(logits), task.width, self.config.size, logits[0].size)
            )
        elif task.kind == "classification":
            self._dense_head(name, read[0], task.width, out.class_logits[task.name])
        elif self.config.landmark_head == "dense":
            self._dense_head(name, read[0], 2 * task.width, out.points)
        else:
            with self.arena.frame():
                levels = [self._grown(f"{name}.levels.{i}", x, [0], 1, task.width) for i, x in enumerate(read)]
                drawn = [level.views[0].address for level in levels]
                self.plan.heat_maps(drawn, read[0].lanes.total, task.width, self.config.size, address(out.points))

    def present(self, x: LaneMaps) -> bool:
        """See `ifan.wiring.Net`."""
        return True

    def _rows(self, lanes: PlanLanes, deeper: bool) -> list[int]:
        """Rows of a normalisation that these lanes' tasks have; past the landmarks' tap these have none."""
        return [self._deeper.index(t) if deeper else t for t in lanes.tasks]

    def _grown(self, name: str, x: LaneMaps, rows: Sequence[int], layers: int, growth: int = 0) -> LaneMaps:
        """The channels that a dense block grows, one view."""
        growth = growth or self.config.growth
        grown = self.arena.maps(x.lanes.total, growth * layers, x.side)
        for i in range(layers):
            source = x + LaneMaps((grown.channels_from(0, growth * i),), x.lanes) if i else x
            norm = self.weights.norm(f"{name}.norms.{i}", rows, self.later)
            weight, target = f"{name}.convolutions.{i}.weight", grown.channels_from(growth * i, growth)
            filters = self._filters(weight, (growth, source.channels, x.side))
            self.plan.convolution(*source.arguments, *norm, filters, growth, "none", target.address, target.stride)
        return LaneMaps((grown,), x.lanes)

    def _convolve(self, x: LaneMaps, weight: str, out: View, outputs: int, epilogue: str) -> None:
        once = x.unique()
        filters = self._filters(weight, (outputs, once.channels, x.side), x)
        self.plan.convolution(*once.arguments, 0, 0, filters, outputs, epilogue, out.address, out.stride)

    def _filters(self, weight: str, shape: tuple[int, int, int], merged: LaneMaps | None = None) -> int:
        weights = self.weights

        def make() -> np.ndarray:
            return merged.merged(weights[weight]) if merged else weights[weight]

        return weights.filters(weight, shape, weights.bf16, make)

    def _pointwise(self, x: LaneMaps, weight: str, out: View) -> None:
        once, weights = x.unique(), self.weights
        filters = weights.taps(weight, weights.bf16, lambda: x.merged(weights[weight]))
        arguments = (*once.arguments, [0], x.side, filters, out.channels, 0, out.address, out.stride)
        self.plan.direct(*arguments, False, weights.bf16)

    def _dense_head(self, name: str, x: LaneMaps, outputs: int, out: np.ndarray) -> None:
        later = self.later and self.config.normalise_heads
        side, model = x.side, self.weights.model

        def weight() -> np.ndarray:
            """The head's weight from the release's order, row, column, channel, to ``(outputs, C, side, side)``."""
            return folded_head(model, name, later)[0].reshape(outputs, side, side, -1).transpose(0, 3, 1, 2)

        place = self.weights.address((name, later, "weight"), weight)
        bias = self.weights.address((name, later, "bias"), lambda: folded_head(model, name, later)[1])
        self.plan.head(*x.arguments, place, bias, outputs, address(out))
