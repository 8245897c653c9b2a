"""The whole feedback loop as one native plan: weights repacked once, one arena, one call, no Python between layers.

What is exact and saves work: stem and re-encoders run once for all tasks; the image's share of the stem once for all
iterations; what the first iteration reads are constants; transitions down pool before their 1x1 convolution; skip
channels that stand twice in a concatenation are read once where they are read raw; lanes are ordered so that those
that go on past the landmark tap, and then those that are parsed, come first and nothing is copied.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ifan.config import NetworkConfig, TaskConfig
from ifan.graph import encoder_widths
from ifan.layers import EPSILON, DenseBlock, DenseHead, TaskNorm, TransitionDown, TransitionUp
from ifan.network import BGR_MEAN, IFAN, Predictions, released
from ifan.ops.concatenation import Normalisation
from ifan.ops.native import bf16_refusal, cpu_module

_LARGEST_SLICE = 128 * 128
"""Pixels of the faces that share an arena: more of them outgrow the caches, fewer read the weights more often."""

_Key = tuple[int, bool, str]
"""Of plans that can stand in for each other: faces, whether they start from given planes, instruction set."""


@dataclass(frozen=True)
class View:
    """Planes ``(rows, channels, side, side)`` at an address; ``stride`` from row to row, 0 where all share one."""

    address: int
    channels: int
    side: int
    stride: int
    per_sample: bool = False

    @property
    def field(self) -> tuple[int, int, int, int, int, int]:
        """The view as a kernel reads it: address, channels, strides of rows and planes, a row a sample, no gradient."""
        return self.address, self.channels, self.stride, self.side**2, int(self.per_sample), 0

    def rows_from(self, row: int) -> View:
        """The rows from ``row`` on."""
        return replace(self, address=self.address + 4 * row * self.stride)

    def channels_from(self, first: int, count: int) -> View:
        """``count`` channels from ``first`` on."""
        return replace(self, address=self.address + 4 * first * self.side**2, channels=count)


class Arena:
    """Addresses inside one piece of memory, handed out as a stack."""

    def __init__(self, base: int) -> None:
        self.base, self.top, self.size = base, 0, 0

    def take(self, floats: int) -> int:
        """The address of so many new floats."""
        at = self.base + 4 * self.top
        self.top += -(-floats // 16) * 16 + 80  # planes of neighbouring tensors shall not share cache sets
        self.size = max(self.size, self.top)
        return at

    def maps(self, rows: int, channels: int, side: int, per_sample: bool = False) -> View:
        """New planes ``(rows, channels, side, side)``."""
        stride = channels * side**2
        return View(self.take(rows * stride), channels, side, stride, per_sample)

    @contextmanager
    def frame(self) -> Iterator[None]:
        """What is taken inside is free again afterwards."""
        top = self.top
        yield
        self.top = top


@dataclass(frozen=True)
class _Lanes:
    """The lanes of some tasks in the plan's order: ``count`` samples each, starting at lane ``first``."""

    tasks: tuple[int, ...]  # positions in the configuration
    count: int
    rows: int  # address of the sample of each lane
    first: int = 0

    @property
    def total(self) -> int:
        return self.count * len(self.tasks)

    @property
    def segments(self) -> list[int]:
        return [self.count] * len(self.tasks)

    def prefix(self, tasks: Sequence[int]) -> _Lanes:
        return replace(self, tasks=self.tasks[: len(tasks)])

    def only(self, task: int) -> _Lanes:
        return replace(self, tasks=(task,), first=self.first + self.count * self.tasks.index(task))

    def read(self, sources: Sequence[View], side: tuple[int, int] | None = None) -> tuple[Any, ...]:
        """The first four arguments of a kernel."""
        views = [s if s.per_sample else s.rows_from(self.first) for s in sources]
        height, width = side or (sources[0].side, sources[0].side)
        shape = (self.total, sum(s.channels for s in sources), height, width)
        return [s.field for s in views], self.rows + 8 * self.first, self.segments, shape


class Engine:
    """A trained network on the CPU's native kernels.

    Args:
        network: the network, on the CPU in float32; its weights are copied.
        iterations: feedback iterations; ``None`` = as the configuration says.
        tasks: what the last iteration predicts; ``None`` = all. Earlier iterations always predict everything.
        precision: ``"fp32"``, or ``"bf16"``: products of the convolutions in bfloat16, sums and all else in float32.

    May be called from several threads at once. Raises ``ValueError`` for an unknown task or precision, a network
    elsewhere or a processor without bfloat16 products, and ``ImportError`` where the native kernels are missing.
    """

    def __init__(
        self,
        network: IFAN,
        iterations: int | None = None,
        tasks: Sequence[str] | None = None,
        precision: str = "fp32",
    ) -> None:
        weight = network.stem.weight
        if weight.device.type != "cpu" or weight.dtype != torch.float32:
            raise ValueError(f"Engine: expected a float32 network on the CPU; got {weight.dtype} on {weight.device}")
        _check_precision(precision)
        self.config: NetworkConfig = network.config
        self.iterations = network.config.iterations if iterations is None else iterations
        if self.iterations < 1:
            raise ValueError(f"iterations: expected at least 1; got {self.iterations}")
        names = [t.name for t in self.config.tasks]
        wanted = names if tasks is None else [self.config.task(t).name for t in tasks]
        self.tasks = tuple(names.index(n) for n in names if n in wanted)
        self._weights = _Weights(released(network).eval(), precision == "bf16")
        self._plans: dict[_Key, list[_Plan]] = defaultdict(list)
        self._lock = threading.Lock()

    def __call__(self, images: Tensor) -> Predictions:
        """The last iteration's predictions for ``images (N, 3, S, S)`` RGB uint8, a row a sample."""
        return self._run(images, None)

    def iterate(self, images: Tensor, planes: Tensor) -> Predictions:
        """One iteration from ``planes (N, K + P + sum of C, S, S)``: what the network's ``iterate`` does."""
        return self._run(images, planes)

    def _run(self, images: Tensor, planes: Tensor | None) -> Predictions:
        size = self.config.size
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(
                f"images: expected (N, 3, {size}, {size}) uint8; got {tuple(images.shape)} {images.dtype}. Crop to "
                "that size."
            )
        if not images.shape[0]:
            return self._weights.nothing(self.tasks)
        largest, threads, parts = max(1, _LARGEST_SLICE // size**2), torch.get_num_threads(), list[Predictions]()
        starts = range(0, images.shape[0], largest)
        for first in range(0, len(starts), threads):
            together = starts[first : first + threads]  # a thread a slice, or all threads one slice after another
            groups = [together] if len(together) == threads else [[start] for start in together]
            for group in groups:
                pieces = [slice(start, start + largest) for start in group]
                parts += self._together([(images[i], None if planes is None else planes[i]) for i in pieces])
        return joined(parts)

    def _together(self, slices: Sequence[tuple[Tensor, Tensor | None]]) -> list[Predictions]:
        plans = [self._taken(images.shape[0], planes is not None) for images, planes in slices]
        for plan, (images, planes) in zip(plans, slices, strict=True):
            plan.fill(images, planes)
        cpu_module().run_plans([plan.plan for plan in plans], torch.get_num_threads())
        found = [plan.predictions() for plan in plans]
        with self._lock:
            for plan in plans:
                self._plans[plan.key].append(plan)
        return found

    def _taken(self, count: int, from_planes: bool) -> _Plan:
        """A plan for that many faces that nobody runs now."""
        key = (count, from_planes, cpu_module().features()["isa"])
        with self._lock:
            if self._plans[key]:
                return self._plans[key].pop()
        iterations = 1 if from_planes else self.iterations
        return _Plan(key, self._weights, count, iterations, self.tasks, from_planes)


def _check_precision(precision: str) -> None:
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision: expected 'fp32' or 'bf16'; got {precision!r}")
    cpu_module()
    if precision == "bf16" and (missing := bf16_refusal()):
        raise ValueError(f"precision 'bf16': expected a processor with AVX512_BF16; {missing}. Use 'fp32'.")


class _Weights:
    """The network's weights as the kernels read them, repacked once for each instruction set."""

    def __init__(self, network: IFAN, bf16: bool) -> None:
        self.network, self.config, self.bf16 = network, network.config, bf16
        self._kept: dict[Any, Any] = {}

    def keep(self, key: Any, make: Callable[[], Any]) -> Any:
        key = (cpu_module().features()["isa"], key)
        if key not in self._kept:
            with torch.no_grad():
                self._kept[key] = make()
        return self._kept[key]

    def address(self, key: Any, make: Callable[[], Tensor]) -> int:
        return cast(Tensor, self.keep(key, lambda: make().detach().float().contiguous())).data_ptr()

    def filters(self, key: Any, weight: Tensor, side: int) -> int:
        """A 3x3 convolution's weight as `Plan.convolution` reads it for maps of that side."""
        small = cpu_module().fits_small_maps(side, side)

        def pack() -> Tensor:
            module, whole = cpu_module(), weight.contiguous()
            outputs, inputs = weight.shape[:2]
            if small:
                packed = torch.empty(module.packed_small_filters(outputs, inputs))
                module.pack_small_filters(whole.data_ptr(), outputs, inputs, packed.data_ptr())
            elif self.bf16:
                packed = torch.empty(module.packed_filters_bf16(outputs, inputs))
                module.pack_filters_bf16(whole.data_ptr(), outputs, inputs, packed.data_ptr())
            else:
                packed = torch.empty(module.packed_filters(outputs, inputs, isa := module.isa()))
                module.pack_filters(whole.data_ptr(), outputs, inputs, False, packed.data_ptr(), isa)
            return packed

        return self.address((key, small), pack)

    def taps(self, key: Any, weight: Tensor, bf16: bool) -> int:
        """A weight ``(O, C)`` or ``(O, C, k, k)`` as `Plan.direct` reads it."""

        def pack() -> Tensor:
            module, whole, outputs, channels = cpu_module(), weight.contiguous(), weight.shape[0], weight.shape[1]
            taps = weight[0, 0].numel()
            if bf16:
                packed = torch.empty(module.packed_taps_bf16(outputs, channels, taps))
                module.pack_taps_bf16(whole.data_ptr(), outputs, channels, taps, packed.data_ptr())
            else:
                packed = torch.empty(module.packed_taps(outputs, channels * taps))
                module.pack_taps(whole.data_ptr(), outputs, channels * taps, packed.data_ptr())
            return packed

        return self.address((key, bf16), pack)

    def norm(self, norm: TaskNorm, rows: Sequence[int], later: bool) -> tuple[int, int]:
        """Addresses of scale and shift of these of the norm's tasks, in the first or a later iteration."""

        def make() -> Normalisation:
            values = (*norm.affine(), *norm.running(later))
            weight, bias, mean, var = (value.detach()[list(rows)] for value in values)
            return Normalisation(weight, bias, mean, var, EPSILON)

        found = self.keep((id(norm), tuple(rows), later and norm.separate), make)
        return found.scale.data_ptr(), found.shift.data_ptr()

    def first(self) -> dict[str, Tensor]:
        """What the first iteration reads: its planes, their share of the stem and their maps, one row each."""

        def make() -> dict[str, Tensor]:
            network = self.network
            planes = network.first_planes()
            stem = F.conv2d(planes, network.stem.weight[:, 3:], padding=3)
            out = {"planes": planes.contiguous(), "stem": stem.contiguous()}
            groups = planes.split([t.width for t in self.config.tasks], 1)
            for t, (encoder, group) in enumerate(zip(network.encoders, groups, strict=True)):
                for level, maps in enumerate(encoder(group)):
                    out[f"maps{t}.{level}"] = maps.contiguous()
            return out

        return cast(dict[str, Tensor], self.keep("first", make))

    def nothing(self, tasks: Sequence[int]) -> Predictions:
        return _predictions(self.config, tasks, 0)


def _predictions(config: NetworkConfig, tasks: Sequence[int], lanes: int) -> Predictions:
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


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Predictions of slices of a batch as those of the batch."""
    if len(parts) == 1:
        return parts[0]
    first, rows, start = parts[0], defaultdict(list), 0
    for part in parts:
        for name, row in part.rows.items():
            rows[name].append(row + start)
        start += max((row.shape[0] for row in part.rows.values()), default=0)
    return Predictions(
        torch.cat([p.parsing_logits for p in parts]),
        torch.cat([p.points for p in parts]),
        {name: torch.cat([p.class_logits[name] for p in parts]) for name in first.class_logits},
        {name: torch.cat(row) for name, row in rows.items()},
    )


class _Plan:
    """The recorded calls for one number of faces, with the arena they work in."""

    def __init__(
        self, key: _Key, weights: _Weights, count: int, iterations: int, tasks: Sequence[int], from_planes: bool
    ) -> None:
        size = weights.config.size
        self.key = key
        self.images = torch.empty(count, 3, size, size, dtype=torch.uint8)
        self.rows = torch.arange(count).repeat(len(weights.config.tasks))
        self.planes = torch.empty(count, sum(t.width for t in weights.config.tasks), size, size)
        arguments = (weights, count, self.images, self.rows, self.planes if from_planes else None)
        measured = _Recorder(Arena(0), *arguments)
        measured.record(iterations, tasks)
        self.memory = torch.zeros(measured.arena.size + 16)  # borders stay zero: nothing else is ever written there
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
        self, arena: Arena, weights: _Weights, count: int, images: Tensor, rows: Tensor, planes: Tensor | None
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
        self.lanes = _Lanes(order, count, rows.data_ptr())

    def record(self, iterations: int, tasks: Sequence[int]) -> Predictions:
        """All iterations; the last one of ``tasks`` only. Returns where its predictions will be."""
        config, size = self.config, self.config.size
        share = self._image_share()
        planes = self.arena.maps(self.count, sum(t.width for t in config.tasks), size, per_sample=True)
        self._take_bordered()
        for i in range(iterations):
            last, self.later = i == iterations - 1, i > 0 or self.given is not None
            out = _predictions(config, tasks if last else range(len(config.tasks)), self.count)
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
        padded = self.arena.take(self.count * 3 * border[0])
        self.plan.image(self.images.data_ptr(), self.count, size, BGR_MEAN, config.image_scale, padded, border)
        filters = self.weights.taps("stem.image", network.stem.weight[:, :3], self.weights.bf16)
        self._window(padded, 3, border, 7, filters, share, 0)
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
        config, weight, size = self.config, self.network.stem.weight[:, 3:], self.config.size
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
                everything = _Lanes((t,), self.count, self.lanes.rows)
                self._convolve(everything, [maps[i - 1]], (t, i), convolutions[i], whole, "relu")
                plan.max_pool(whole.address, self.count * widths[i], sides[i], sides[i], maps[i].address)
        return maps

    def _trunk(self, lanes: _Lanes, stem: View, maps: list[list[View]], out: Predictions) -> None:
        network, config = self.network, self.config
        x, skips = [stem], list[list[View]]()
        tap: list[View] = []
        for i, block in enumerate(network.down_blocks):
            skips.append([*x, *self._block(lanes, cast(DenseBlock, block), x, lanes.tasks), *x])
            tap = [*skips[-1], *maps[i]]
            if i < len(network.down_blocks) - 1:
                x = [self._down(lanes, cast(TransitionDown, network.down[i]), tap, lanes.tasks)]
        if config.landmarks is not None:
            landmarks = config.tasks.index(config.landmarks)
            if landmarks in lanes.tasks:
                self._head(lanes.only(landmarks), network.landmark_head, tap, out.points)
                lanes = lanes.prefix(lanes.tasks[:-1])
        if not lanes.tasks or network.middle is None:
            return
        rows = [network.past_tap.index(t) for t in lanes.tasks]
        x = [self._down(lanes, cast(TransitionDown, network.down[-1]), tap, rows)]
        x = [*x, *self._block(lanes, network.middle, x, rows)]
        for t in lanes.tasks:
            if config.tasks[t].kind == "classification":
                name = config.tasks[t].name
                self._head(lanes.only(t), cast(DenseHead, network.class_heads[name]), x, out.class_logits[name])
        if config.parsing is not None and lanes.tasks[0] == config.tasks.index(config.parsing):
            self._parse(lanes.prefix(lanes.tasks[:1]), x, skips, maps, out.parsing_logits)

    def _parse(
        self, lanes: _Lanes, x: list[View], skips: list[list[View]], maps: list[list[View]], logits: Tensor
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

    def _block(self, lanes: _Lanes, block: DenseBlock, x: list[View], norm_rows: Sequence[int]) -> list[View]:
        """The grown channels, one view."""
        growth, layers = self.config.growth, len(block.norms)
        grown = self.arena.maps(lanes.total, growth * layers, x[0].side)
        for i, (norm, layer) in enumerate(zip(block.norms, block.convolutions, strict=True)):
            sources = [*x, grown.channels_from(0, growth * i)] if i else x
            target = grown.channels_from(growth * i, growth)
            scale = self.weights.norm(cast(TaskNorm, norm), norm_rows, self.later)
            self._convolve(lanes, sources, id(layer), cast(nn.Conv2d, layer).weight, target, "none", scale)
        return [grown]

    def _down(self, lanes: _Lanes, down: TransitionDown, x: list[View], norm_rows: Sequence[int]) -> View:
        side, channels = x[0].side // 2, sum(v.channels for v in x)
        out = self.arena.maps(lanes.total, down.convolution.weight.shape[0], side)
        with self.arena.frame():
            pooled = self.arena.maps(lanes.total, channels, side)
            scale, shift = self.weights.norm(down.norm, norm_rows, self.later)
            self.plan.integrate(*lanes.read(x), 2, scale, shift, pooled.address)
            self._pointwise(lanes, [pooled], id(down), down.convolution.weight, out)
        return out

    def _up(self, lanes: _Lanes, up: TransitionUp, x: list[View]) -> View:
        sources, weight = _unique(x, up.a.weight)
        outputs, side = up.b.weight.shape[0], 2 * x[0].side
        out = self.arena.maps(lanes.total, outputs, side)
        with self.arena.frame():
            shifted = self.arena.maps(lanes.total, weight.shape[0] // 4, side)
            self._convolve(lanes, sources, (id(up), "a"), weight, shifted, "relu_phase_shift")
            self._convolve(lanes, [shifted], (id(up), "b"), up.b.weight, out, "relu")
        return out

    def _head(self, lanes: _Lanes, head: DenseHead, x: list[View], out: Tensor) -> None:
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
        lanes: _Lanes,
        sources: Sequence[View],
        key: Any,
        weight: Tensor,
        out: View,
        epilogue: str,
        norm: tuple[int, int] = (0, 0),
    ) -> None:
        filters = self.weights.filters(key, weight, sources[0].side)
        self.plan.convolution(*lanes.read(sources), *norm, filters, weight.shape[0], epilogue, out.address, out.stride)

    def _pointwise(self, lanes: _Lanes, sources: Sequence[View], key: Any, weight: Tensor, out: View) -> None:
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
        field = (padded, channels, channels * plane, plane, 0, 0)
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
    """Doubled sources once, with the columns of their weight added, as in `ifan.features.Features.unique`."""
    columns: dict[View, Tensor] = {}
    for source, part in zip(sources, weight.split([s.channels for s in sources], 1), strict=True):
        columns[source] = columns[source] + part if source in columns else part
    return list(columns), torch.cat(list(columns.values()), 1)


def _channels_first(weight: Tensor, side: int) -> Tensor:
    """A dense head's weight from the release's order, row, column, channel, to ``(outputs, C, side, side)``."""
    return weight.unflatten(1, (side, side, -1)).permute(0, 3, 1, 2)
