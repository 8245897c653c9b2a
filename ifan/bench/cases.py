"""The operations at the sizes of the network: inputs, what each contender runs, bytes and FLOP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ifan import ops
from ifan.bench import plain, rivals
from ifan.bench.problem import Case, Missing, Problem, Ready, Run, Setting, vector_error
from ifan.concat import Concat, DenseLayer, Lanes, Norm
from ifan.config import IGNORE, NetworkConfig
from ifan.wiring import LEVELS, MIDDLE, Widths

Call = Callable[[Any, "str | None"], Sequence[Tensor]]
"""(inputs, backend) -> outputs; backend ``plain`` stands for the function in ordinary PyTorch."""

PLAIN = "plain"
FUSED: Any = ops
ORDINARY: Any = plain
"""Untyped: inputs are passed on starred, which a type checker cannot count."""

FORWARD, BOTH = "forward", "forward+backward"


@dataclass(frozen=True)
class Operation:
    """Call of an op and its inputs.

    ``make`` draws one set of inputs; the first ``activations`` of them change from call to call, the rest are weights.
    """

    call: Call
    make: Callable[[], list[Tensor]]
    activations: int
    backward: bool
    exported: bool = False
    tolerance: float = 1e-4


def operations(quick: bool = False) -> list[Case]:
    """Every op and size; ``quick``: the same kinds of work at sizes that take milliseconds."""
    widths = Widths(NetworkConfig(size=32 if quick else 128))
    growth, layers = widths.config.growth, widths.config.block_layers
    lanes, side = (2, 32) if quick else (8, 128)
    cases = [_moments(lanes, 128, side // 2, work) for work in (FORWARD, BOTH)]
    for level, joined in widths.down_in.items():
        width, grown = widths.dense_in[level].channels, growth * layers
        maps = joined.channels - 2 * width - grown
        sources = (width, grown, width, *([maps] if maps else []))
        cases.append(_integrate(lanes, sources, joined.side, FORWARD))
        if level == 0:
            cases.append(_integrate(lanes, sources, joined.side, BOTH))
    for block, x in widths.dense_in.items():
        if block != MIDDLE:
            cases.append(_dense(1, x.channels, x.side, layers, growth, FORWARD))
    second, last = widths.dense_in[1], widths.up_in[LEVELS - 1]
    cases.append(_dense(lanes, second.channels, second.side, layers, growth, BOTH))
    cases += [_transition(1, x.channels, x.side, FORWARD) for x in widths.up_in.values()]
    cases.append(_transition(lanes // 2, last.channels, last.side // 2, BOTH))
    cases += [_encode(lanes, side, work) for work in (FORWARD, BOTH)]
    cases += [_loss(lanes, 11, side // 2, 4 * side), _loss(lanes, 9, side, side)]
    return cases


def _case(op: str, shape: str, work: str, operation: Operation, moved: int, flop: int) -> Case:
    if work == BOTH:  # activations read again, gradients read and written; two more products for every one
        moved, flop = 3 * moved, 3 * flop
    return Case(op, shape, work, partial(_problem, replace(operation, backward=work == BOTH)), 4 * moved, flop)


def _problem(operation: Operation, setting: Setting) -> Problem:
    torch.manual_seed(0)
    sets = [[value.to(setting.device) for value in operation.make()] for _ in range(2)]
    upstream: list[Tensor] = []

    def run(backend: str | None, call: Call = operation.call, values: Sequence[Sequence[Tensor]] = sets) -> Run:
        return _runner(call, backend, values, upstream, operation.backward)

    with torch.no_grad():
        upstream += [torch.randn_like(value) for value in operation.call(sets[0], PLAIN)]
    exact: dict[int, list[Tensor]] = {}

    def expected(i: int) -> list[Tensor]:
        if i not in exact:
            double = [[_double(value) for value in one] for one in sets]
            doubled = [value.double() for value in upstream]
            found = _runner(operation.call, "reference", double, doubled, operation.backward)(i)
            exact[i] = [value.detach().float() for value in found]
        return exact[i]

    def compiled(mode: str) -> Run:
        function = torch.compile(lambda *values: operation.call(values, PLAIN), mode=mode, dynamic=False)
        return run(None, lambda values, _: function(*values))

    makers: dict[str, Callable[[], Ready]] = {
        "ifan": lambda: _ours(run),
        "eager": lambda: Ready(run(PLAIN)),
        "compile": lambda: rivals.compiled(compiled, setting),
    }
    if operation.exported and not operation.backward and setting.device == "cpu":
        feeds = [[value.detach() for value in one[: operation.activations]] for one in sets]
        graph_file = partial(_exported, operation, sets[0], setting)
        makers["onnxruntime"] = lambda: rivals.onnxruntime(graph_file(), feeds, setting.threads)
        makers["openvino"] = lambda: rivals.openvino(graph_file(), feeds, setting.threads)
    if not operation.backward:
        return Problem(makers, expected, operation.tolerance)
    # Among millions of values one lies so near zero that rounding decides whether ReLU passes its gradient on.
    return Problem(makers, expected, 10 * operation.tolerance, error=vector_error)


def _ours(run: Callable[[str | None], Run]) -> Ready:
    native = next((row for row in ops.backend_status() if row.name == "cpu"), None)
    note = "" if native is None or native.available else f"native kernels missing: {native.reason}"
    return Ready(run(None), note)


def _runner(
    call: Call, backend: str | None, sets: Sequence[Sequence[Tensor]], upstream: Sequence[Tensor], backward: bool
) -> Run:
    """Outputs, and with ``backward`` then the gradient of every input that has one."""
    if not backward:

        def forward(i: int) -> Sequence[Tensor]:
            with torch.inference_mode():
                return call(sets[i % 2], backend)

        return forward
    leaves = [[v.detach().requires_grad_() if v.requires_grad else v for v in one] for one in sets]
    return _with_gradients(call, backend, leaves, upstream)


def _with_gradients(
    call: Call, backend: str | None, sets: Sequence[Sequence[Tensor]], upstream: Sequence[Tensor]
) -> Run:
    def run(i: int) -> Sequence[Tensor]:
        values = sets[i % 2]
        found = list(call(values, backend))
        pairs = [(out, up) for out, up in zip(found, upstream, strict=True) if out.requires_grad]
        wanted = [v for v in values if v.requires_grad]
        gradients = torch.autograd.grad([out for out, _ in pairs], wanted, [up for _, up in pairs])
        return [*(out.detach() for out in found), *gradients]

    return run


def _double(value: Tensor) -> Tensor:
    return value.detach().double().requires_grad_(value.requires_grad) if value.is_floating_point() else value


class _Frozen(nn.Module):
    """An op as a module whose first inputs are arguments and whose weights are constants."""

    def __init__(self, call: Call, inputs: Sequence[Tensor], activations: int) -> None:
        super().__init__()
        self.call = call
        self.weights = nn.ParameterList(nn.Parameter(v.detach(), requires_grad=False) for v in inputs[activations:])

    def forward(self, *activations: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.call([*activations, *self.weights], PLAIN))


def _exported(operation: Operation, inputs: Sequence[Tensor], setting: Setting) -> Path:
    """The op as ONNX, made once for all runtimes. Only the first set's weights: both sets share them."""
    from ifan.export.write import Signature, require, to_onnx

    try:
        for package in ("onnx", "onnxscript"):
            require(package)
    except ValueError as error:
        raise Missing(str(error)) from error
    path = setting.folder / f"op{id(operation)}.onnx"
    if not path.exists():
        arguments = tuple(value.detach() for value in inputs[: operation.activations])
        names = [f"x{i}" for i in range(len(arguments))]
        module = _Frozen(operation.call, inputs, operation.activations)
        to_onnx(module, arguments, path, Signature(names, ["y"]), dynamic=False)
    return path


def _moments(lanes: int, channels: int, size: int, work: str) -> Case:
    def call(values: Any, backend: str | None) -> Sequence[Tensor]:
        if backend == PLAIN:
            return ORDINARY.channel_moments(values[0])
        return FUSED.channel_moments(values[0], [lanes], backend=backend)

    operation = Operation(call, lambda: [_map(lanes, channels, size)], 1, False)
    count = lanes * channels * size**2
    return _case("channel_moments", f"{lanes}x{channels}x{size}x{size}", work, operation, count, 0)


def _norms(channels: int) -> list[Tensor]:
    """gamma, beta, mean, variance of one task."""
    return [(torch.rand(1, channels) + 0.5).requires_grad_() for _ in range(4)]


def _map(lanes: int, channels: int, size: int) -> Tensor:
    return torch.randn(lanes, channels, size, size).requires_grad_()


def _integrate(lanes: int, widths: Sequence[int], size: int, work: str) -> Case:
    split, channels = len(widths), sum(widths)

    def call(values: Any, backend: str | None) -> Sequence[Tensor]:
        sources, norm = values[:split], values[split:]
        if backend == PLAIN:
            return [ORDINARY.integrate(sources, *norm, pool=2)]
        x = Concat.of(Lanes.ordered([lanes]), *sources)
        return [ops.integrate(x, Norm(*norm), 2, backend=backend)]

    def make() -> list[Tensor]:
        return [*(_map(lanes, width, size) for width in widths), *_norms(channels)]

    count = lanes * channels * size**2
    shape = f"{lanes}x{channels}x{size}x{size}"
    return _case("integrate", shape, work, Operation(call, make, split, False), count + count // 4, 0)


def _dense(lanes: int, channels: int, size: int, layers: int, growth: int, work: str) -> Case:
    widths = [channels + growth * i for i in range(layers)]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(growth, w, 3, 3, generator=generator).div(3 * w**0.5).requires_grad_() for w in widths]
    norms = [norm for w in widths for norm in _norms(w)]

    def call(values: Any, backend: str | None) -> Sequence[Tensor]:
        source, kernels, norm = values[0], values[1 : 1 + layers], values[1 + layers :]
        groups = [norm[i::4] for i in range(4)]
        if backend == PLAIN:
            return [ORDINARY.dense_block(source, kernels, *groups)]
        block = [DenseLayer(w, Norm(*values)) for w, *values in zip(kernels, *groups, strict=True)]
        return [ops.dense_block(Concat.of(Lanes.ordered([lanes]), source), block, backend=backend)[0]]

    operation = Operation(call, lambda: [_map(lanes, channels, size), *weights, *norms], 1, False, exported=True)
    flop = 2 * 9 * growth * sum(widths) * lanes * size**2
    moved = lanes * (channels + layers * growth) * size**2
    return _case("dense_block", f"{lanes}x{channels}x{size}x{size}", work, operation, moved, flop)


def _transition(lanes: int, channels: int, size: int, work: str) -> Case:
    generator, width = torch.Generator().manual_seed(1), 128
    shapes = ((width, channels, 3, 3), (width, width // 4, 3, 3))
    weights = [torch.randn(s, generator=generator).div(3 * s[1] ** 0.5).requires_grad_() for s in shapes]

    def call(values: Any, backend: str | None) -> Sequence[Tensor]:
        source, a, b = values
        if backend == PLAIN:
            return [ORDINARY.transition_up(source, a, b)]
        return [ops.transition_up(Concat.of(Lanes.ordered([lanes]), source), a, b, backend=backend)]

    operation = Operation(call, lambda: [_map(lanes, channels, size), *weights], 1, False, exported=True)
    flop = 2 * 9 * width * lanes * (channels * size**2 + width // 4 * 4 * size**2)
    moved = lanes * (channels + 4 * width) * size**2
    return _case("transition_up", f"{lanes}x{channels}x{size}x{size}", work, operation, moved, flop)


def _encode(batch: int, size: int, work: str) -> Case:
    classes, points, kinds = 9, 5, 7

    def call(values: Any, backend: str | None) -> Sequence[Tensor]:
        backend = "reference" if backend == PLAIN else backend
        return [FUSED.encode_predictions(*values, [kinds], backend=backend)]

    def make() -> list[Tensor]:  # points in the middle of pixels: no rounding at a half
        centre = torch.randint(0, size, (batch, 2, points)).float() / size - 0.5
        return [_map(batch, classes, size), centre, torch.randn(batch, kinds).requires_grad_()]

    shape, count = f"{batch}x{classes}+{points}+{kinds}x{size}x{size}", batch * size**2
    operation = Operation(call, make, 3, False)
    return _case("encode_predictions", shape, work, operation, count * (2 * classes + points + kinds), 0)


def _loss(batch: int, classes: int, size: int, labels: int) -> Case:
    targets_from, kinds, points = 3, 7, 5

    def call(values: Any, backend: str | None) -> Sequence[Tensor]:
        logits, where, scores = values[:targets_from]
        target, aims, weight, ids, shares = values[targets_from:]
        backend = "reference" if backend == PLAIN else backend
        judged, options = ops.LossPredictions(logits, where, scores), ops.LossOptions([kinds], shares)
        return [FUSED.hybrid_loss(judged, ops.LossTargets(target, aims, weight, ids), options, backend=backend).total]

    def make() -> list[Tensor]:
        target = torch.randint(0, classes, (batch, labels, labels), dtype=torch.uint8)
        target[torch.rand(target.shape) < 0.1] = IGNORE
        where = (torch.rand(batch, 2, points) - 0.5).requires_grad_()
        scores = torch.randn(batch, kinds).requires_grad_()
        aims, weight = torch.rand(batch, 2, points) - 0.5, torch.ones(batch, points)
        ids = torch.randint(0, kinds, (batch, 1))
        return [_map(batch, classes, size), where, scores, target, aims, weight, ids, torch.ones(3)]

    moved = batch * (2 * classes * size**2 + labels**2 // 4)  # logits and their gradient in float32, labels in bytes
    shape = f"{batch}x{classes}x{size}x{size}->{labels}"
    return Case("hybrid_loss", shape, BOTH, partial(_problem, Operation(call, make, 3, True)), 4 * moved)
