"""The feedback loop as a graph of plain PyTorch operations, for ONNX and OpenVINO.

Everything that is exact and that a graph can express is in it: each task runs only what it needs, stem and re-encoders
run once for all tasks, the image's share of the stem once for all iterations, transitions down pool before their 1x1
convolution, and skip channels that stand twice in a concatenation are read once where they are read raw. A graph
sees one crop; `ifan.refine.refine` reframes with any such function.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ifan import reference
from ifan.config import NetworkConfig
from ifan.layers import EPSILON, DenseBlock, DenseHead, HeatMapHead, TaskNorm, TransitionDown, TransitionUp, centres
from ifan.network import IFAN, fold_training_extras
from ifan.wiring import LEVELS, Widths

FORMATS = {".onnx": "onnx", ".xml": "openvino"}
"""File names' endings and the package each format needs."""

FIX = "pip install 'ifan[export]'"

_Path = tuple[int, bool]
"""Position of a task, and whether the iteration is not the first: what chooses a normalisation."""


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
        self.plain, self.past_tap = plain, [i for i, t in enumerate(config.tasks) if t.kind != "landmarks"]
        self.outputs = tuple(_OUTPUTS.get(t.kind, f"{t.name}_logits") for t in config.tasks)
        self.down_blocks = nn.ModuleList(_Block(cast(DenseBlock, b)) for b in plain.down_blocks)
        self.down = nn.ModuleList(_Down(cast(TransitionDown, d)) for d in plain.down)
        self.middle = _Block(plain.middle) if plain.middle else None
        if config.parsing:
            repeated = [None, *(Widths(config).dense_in[level].channels for level in reversed(range(LEVELS)))]
            merged = [
                _merged(cast(TransitionUp, u).a.weight, w, config) for u, w in zip(plain.up, repeated, strict=False)
            ]
            self.up = nn.ModuleList(_Up(m, cast(TransitionUp, u)) for m, u in zip(merged, plain.up, strict=True))
            self.up_blocks = nn.ModuleList(_Block(cast(DenseBlock, b)) for b in plain.up_blocks)
            self.register_buffer("head", _merged(plain.parsing_head.weight, repeated[-1], config))
        self.heat_maps = nn.ModuleList(_Block(level) for level in _levels(plain))
        self.heads = nn.ModuleDict({name: _heads(head) for name, head in plain.dense_head_of().items()})
        self.register_buffer("first", plain.first_planes().detach())
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor, planes: Tensor | None = None) -> tuple[Tensor, ...]:
        """All iterations; with ``planes (N, K + P + sum of C, S, S)`` one iteration from these."""
        share = self.image_share(images)
        if planes is not None:
            return self.iterate(share, planes)
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
            named["points"] if config.landmarks else empty[:, None].expand(-1, 2, -1),
            torch.cat(classes, 1) if classes else empty,
            self.plain.class_sizes,
            config.point_radius,
        )

    def iterate(self, image_share: Tensor, planes: Tensor, later: bool = True) -> tuple[Tensor, ...]:
        """One pass from planes (a row a sample, or one for all) to ``outputs``; ``later``: not the first iteration."""
        batch, groups = image_share.shape[0], planes.split([t.width for t in self.config.tasks], 1)
        stem = image_share + F.conv2d(planes, self.plain.stem_filters()[1], padding=3)
        encoded = [encoder(group) for encoder, group in zip(self.plain.encoders, groups, strict=True)]
        levels = [list(groups), [], *([maps[i] for maps in encoded] for i in range(3))]
        maps = [[m.expand(batch, -1, -1, -1) for m in level] for level in levels]
        return tuple(self._task((i, later), stem, maps) for i in range(len(self.config.tasks)))

    def _task(self, path: _Path, x: Tensor, maps: list[list[Tensor]]) -> Tensor:
        task, later = path
        kind = self.config.tasks[task]
        skips: list[list[Tensor]] = []  # torch.compile cannot call list[...]
        taps: list[list[Tensor]] = []
        for i, block in enumerate(self.down_blocks):
            skips.append([x, *block([x], path)])
            taps.append([*skips[-1], x, *maps[i]])
            if i < len(self.down_blocks) - 1:
                x = self.down[i](taps[-1], path)
        if kind.kind == "landmarks" and len(self.heat_maps):
            return centres([block(tap, (0, later))[0] for block, tap in zip(self.heat_maps, taps, strict=True)])
        if kind.kind == "landmarks":
            return self._head(kind.name, taps[-1], later).unflatten(1, (2, kind.width))
        path = (self.past_tap.index(task), later)
        x = self.down[-1](taps[-1], path)
        deepest = [x, *cast(_Block, self.middle)([x], path)]
        if kind.kind == "classification":
            return self._head(kind.name, deepest, later)
        return self._parse(deepest, skips, maps, later)

    def _parse(self, x: list[Tensor], skips: list[list[Tensor]], maps: list[list[Tensor]], later: bool) -> Tensor:
        for i, (up, block) in enumerate(zip(self.up, self.up_blocks, strict=True)):
            level = len(skips) - i
            if 2 <= level <= 4:
                x = [*x, *maps[level]]
            x = [up(x), *skips[level - 1]]
            x = [*x, *block([*x, skips[level - 1][0]], (0, later))]
        return F.conv2d(torch.cat([*x, *maps[0]], 1), cast(Tensor, self.head))

    def _head(self, task: str, x: Sequence[Tensor], later: bool) -> Tensor:
        head = cast(nn.ModuleList, self.heads[task])[-1 if later else 0]
        return cast(Tensor, head(torch.cat(list(x), 1).permute(0, 2, 3, 1).flatten(1)))


_OUTPUTS = {"parsing": "parsing_logits", "landmarks": "points"}


def export(network: IFAN, path: Path, iterations: int | None = None, from_planes: bool = False) -> tuple[str, ...]:
    """Write the network as one graph to ``path``: ``.onnx``, or ``.xml`` (with a ``.bin``) for OpenVINO.

    The input ``images`` and the outputs are those of `FeedbackGraph`; any batch size from 1. ``from_planes``: one
    iteration, from a second input ``planes``. Returns the outputs' names. Raises ``ValueError`` for another ending or a
    missing package, ``OSError`` where the file cannot be written.
    """
    if path.suffix not in FORMATS:
        raise ValueError(
            f"{path}: expected a file name ending in {' or '.join(FORMATS)}; got {path.suffix or 'none'!r}"
        )
    model = FeedbackGraph(network, iterations)
    path.parent.mkdir(parents=True, exist_ok=True)
    arguments, names = _example(model, from_planes)
    if path.suffix == ".onnx":
        to_onnx(model, arguments, path, names, model.outputs)
    else:
        to_openvino(model, arguments, path, names, model.outputs)
    return model.outputs


def to_onnx(
    model: nn.Module,
    arguments: tuple[Tensor, ...],
    path: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic: bool = True,
) -> None:
    """Write ``model`` as ONNX, ``dynamic`` with a free first dimension of every input and output."""
    require("onnx")
    require("onnxscript")
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple({0: batch} for _ in arguments) if dynamic else None
    with _quiet():
        program = torch.onnx.export(
            model.eval(),
            arguments,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    program.save(str(path))


def to_openvino(
    model: nn.Module, arguments: tuple[Tensor, ...], path: Path, inputs: Sequence[str], outputs: Sequence[str]
) -> None:
    """Write ``model`` as OpenVINO's ``.xml`` and ``.bin`` in float32, by way of ONNX."""
    openvino = require("openvino")
    with tempfile.TemporaryDirectory() as folder:
        between = Path(folder) / "graph.onnx"
        to_onnx(model, arguments, between, inputs, outputs)
        openvino.save_model(openvino.convert_model(between), path, compress_to_fp16=False)


def require(package: str) -> ModuleType:
    """An optional package; ``ValueError`` says how to get it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f"export: {package} is not installed ({error}); run: {FIX}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages and dimension names that do not matter here."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _example(model: FeedbackGraph, from_planes: bool) -> tuple[tuple[Tensor, ...], list[str]]:
    """Inputs to trace with, of a batch that no dimension of the network is likely to equal."""
    config, batch = model.config, 2
    images = torch.zeros(batch, 3, config.image_size, config.image_size, dtype=torch.uint8)
    if not from_planes:
        return (images,), ["images"]
    return (images, cast(Tensor, model.first).repeat(batch, 1, 1, 1)), ["images", "planes"]


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

    def forward(self, x: Tensor, path: _Path) -> Tensor:
        task, later = path
        return F.relu(self.paths[task + later * self.later](x))


class _Block(nn.Module):
    """The grown channels of a dense block, a tensor a layer."""

    def __init__(self, block: DenseBlock) -> None:
        super().__init__()
        self.norms = nn.ModuleList(_Norms(cast(TaskNorm, n)) for n in block.norms)
        self.convolutions = block.convolutions

    def forward(self, sources: list[Tensor], path: _Path) -> list[Tensor]:
        grown: list[Tensor] = []
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            grown.append(convolution(norm(torch.cat([*sources, *grown], 1), path)))
        return grown


class _Down(nn.Module):
    def __init__(self, transition: TransitionDown) -> None:
        super().__init__()
        self.norm, self.convolution = _Norms(transition.norm), transition.convolution

    def forward(self, sources: list[Tensor], path: _Path) -> Tensor:
        return cast(Tensor, self.convolution(F.avg_pool2d(self.norm(torch.cat(sources, 1), path), 2)))


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


def _merged(weight: Tensor, repeated: int | None, config: NetworkConfig) -> Tensor:
    """A weight over (up, block input, grown, block input again, rest) as one over what is left without the copy."""
    if repeated is None:
        return weight.detach()
    up, grown = config.up_channels, config.growth * config.block_layers
    first, once, middle, again, rest = weight.detach().split(
        [up, repeated, grown, repeated, weight.shape[1] - up - 2 * repeated - grown], 1
    )
    return torch.cat([first, once + again, middle, rest], 1)
