"""A dense block: layers of task-wise normalisation, ReLU and 3x3 convolution, each reading all channels before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ifan import reference
from ifan.concat import Concat, DenseLayer, first_occurrences, norms_from_flat
from ifan.ops import checks, native, repeats
from ifan.ops.backends.cpu import convolution
from ifan.ops.backends.cpu import dense_block as cpu
from ifan.ops.call import CallCache, operation
from ifan.ops.dispatch import choose, current_backend, register_kernel
from ifan.ops.gpu import kernels, tasks_refusal, triton_refusal
from ifan.ops.recompute import empty_gradients, gradients
from ifan.profiling import ranged

NAME = "dense_block"
Grown = tuple[Tensor, Tensor, Tensor]
"""Grown channels, their mean and their variance."""


@ranged(f"ifan.{NAME}")
def dense_block(x: Concat, layers: Sequence[DenseLayer], *, backend: str | None = None) -> Grown:
    """Grow L times G channels: layer l is ``conv3x3(relu((x - mean) / sqrt(var + eps) * weight + bias))``.

    Its input x is the concatenation and all channels grown before it, ``C_l = C_0 + G * l`` in all; each lane is
    normalised with the values of its task.

    Args:
        x: concatenation ``(N, C_0, H, W)`` of lanes of T tasks. One tensor may stand in it twice.
        layers: L layers: the convolution's weight ``(G, C_l, 3, 3)``, used in the sources' dtype, padding 1, no bias;
            and the norm, ``(T, C_l)``. With *running statistics* every norm has mean and var. With *batch statistics*
            only the first has them, those of the sources; those of grown channels are computed here. With L = 1 the two
            agree. All norms have the same eps.
        backend: see `ifan.ops.use_backend`.

    Returns:
        the grown channels ``(N, G * L, H, W)`` in the sources' (promoted) dtype, and with batch statistics their mean
        and biased variance ``(T, G * L)``, else ``(T, 0)``; float32, or float64 for float64. Autocast changes nothing.
        Differentiable in sources, weights and norms.

    Raises:
        ValueError: a shape, dtype, device or row is wrong.

    Source: dense blocks with task-wise normalisation, iFAN (arXiv 1711.06055).
    """
    sources, rows, layout = x.flat()
    weights, norms = [layer.weight for layer in layers], [value for layer in layers for value in layer.norm.tensors]
    tensors = (*sources, *weights, *norms)

    def check() -> tuple[None, str]:
        _check(x, layers)
        return None, choose(NAME, backend, *tensors)

    constants = backend or current_backend(), tuple(layout), len(sources), len(layers)
    _, chosen, run = _CALLS(tensors, constants, check, keep=1 not in layout[: len(sources)])
    convolution.filters.record(weights)
    if chosen == "reference":
        return reference.dense_block(x, layers)
    if run is _forward.function:
        return _run(x, layers, chosen)
    found: Grown = run(sources, weights, norms, rows, layout, layers[0].norm.eps, chosen)
    return found


def _run(x: Concat, layers: Sequence[DenseLayer], backend: str) -> Grown:
    if backend == "cpu":
        return cpu.forward(x, layers)
    if backend in ("triton", "cuda"):
        found: Grown = kernels(backend, NAME).forward(x, layers)
        return found
    grown, mean, var = reference.dense_block(x, layers)
    return grown.contiguous(), mean.contiguous(), var.contiguous()


def _check(x: Concat, layers: Sequence[DenseLayer]) -> None:
    checks.concat(NAME, x)
    checks.require(len(layers) > 0, NAME, "layers must hold at least one layer; got none. Pass a weight and a norm.")
    growth = layers[0].weight.shape[0]
    for index, (weight, norm) in enumerate(layers):
        width = x.channels + growth * index
        checks.shape(NAME, f"layers[{index}].weight", weight, (growth, width, 3, 3), "(G, C_l, 3, 3)")
        checks.floating(NAME, x.sources[0].tensor.device, **{f"layers[{index}].weight": weight})
        checks.norm(NAME, f"layers[{index}].norm", norm, x, width)
        running = layers[-1].norm.mean is not None
        if (norm.mean is not None, norm.var is not None) != ((index == 0 or running,) * 2):
            checks.fail(
                NAME,
                f"layers[{index}].norm must have {'' if index == 0 or running else 'no '}mean and var, as all layers "
                "(running statistics) or the first alone (batch statistics) have them. Pass or drop both.",
            )
        if norm.eps != layers[0].norm.eps:
            checks.fail(NAME, f"norms must share eps; got {layers[0].norm.eps} and {norm.eps}. Use one.")


def _check_flat(
    sources: Sequence[Tensor],
    weights: Sequence[Tensor],
    norms: Sequence[Tensor],
    rows: Tensor,
    layout: Sequence[int],
    eps: float,
    backend: str,
) -> None:
    layers = len(weights)
    checks.require(
        len(norms) in (4 * layers, 2 * layers + 2),
        NAME,
        f"norms must hold 4 tensors a layer, or 2 of each but the first; got {len(norms)} for {layers}. Pass them.",
    )
    _check(Concat.from_flat(sources, rows, layout), _layers(weights, norms, eps))


@operation("ifan::dense_block", check=_check_flat)
def _forward(
    sources: Sequence[Tensor],
    weights: Sequence[Tensor],
    norms: Sequence[Tensor],
    rows: Tensor,
    layout: Sequence[int],
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _run(Concat.from_flat(sources, rows, layout), _layers(weights, norms, eps), backend)


def _layers(weights: Sequence[Tensor], norms: Sequence[Tensor], eps: float) -> list[DenseLayer]:
    each = norms_from_flat(norms, len(weights), eps)
    return [DenseLayer(weight, norm) for weight, norm in zip(weights, each, strict=True)]


def _batch_statistics(weights: Sequence[Tensor], norms: Sequence[Tensor]) -> bool:
    return len(norms) == 2 * len(weights) + 2


def _cuda_refusal(*tensors: Tensor) -> str | None:
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return "its kernel is for inference: call it under torch.no_grad(), or train with another backend"
    if tensors[0].dtype == torch.float32:
        return "the first source's dtype is float32, and its kernel multiplies float16 or bfloat16"
    return tasks_refusal(*tensors)


register_kernel(NAME, "cpu", native.input_refusal, convolution.slower_than_pytorch)
register_kernel(NAME, "triton", triton_refusal)
register_kernel(NAME, "cuda", _cuda_refusal)

_CALLS = CallCache[None](_forward)


@_forward.register_fake
def _(
    sources: Sequence[Tensor],
    weights: Sequence[Tensor],
    norms: Sequence[Tensor],
    rows: Tensor,
    layout: Sequence[int],
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    x, channels = Concat.from_flat(sources, rows, layout), weights[0].shape[0] * len(weights)
    lanes, _, height, width = x.shape
    grown = sources[0].new_empty((lanes, channels, height, width), dtype=x.dtype)
    shape = (len(x.lanes.segments), channels if _batch_statistics(weights, norms) else 0)
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    return grown, grown.new_empty(shape, dtype=kind), grown.new_empty(shape, dtype=kind)


def _check_backward(
    results: Sequence[Tensor],
    sources: Sequence[Tensor],
    parameters: Sequence[Tensor],
    rows: Tensor,
    layout: Sequence[int],
    eps: float,
    backend: str,
) -> None:
    (weights, norms), firsts, layout = _split(parameters), layout[: len(sources)], layout[len(sources) :]
    _check_flat(sources, weights, norms, rows, layout, eps, backend)
    x = Concat.from_flat(sources, rows, layout)
    checks.firsts(NAME, firsts, x)
    lanes, _, height, width = x.shape
    channels = weights[0].shape[0] * len(weights)
    moments = (len(x.lanes.segments), channels if _batch_statistics(weights, norms) else 0)
    checks.same_shapes(NAME, "results", results, [(lanes, channels, height, width), moments, moments] * 2)


@operation("ifan::dense_block_backward", check=_check_backward)
def _backward(
    results: Sequence[Tensor],
    sources: Sequence[Tensor],
    parameters: Sequence[Tensor],
    rows: Tensor,
    layout: Sequence[int],
    eps: float,
    backend: str,
) -> list[Tensor]:
    """Gradients of sources, weights and norms, `ifan.ops.repeats.collected`.

    ``results``: gradients of grown channels, mean and variance, then these. ``parameters``: weights, then norms.
    ``layout`` holds the sources' first occurrences before what forward has.
    """
    upstream, outputs, count = results[:3], results[3:], len(sources)
    firsts, layout = layout[:count], layout[count:]
    weights, norms = _split(parameters)
    x, layers = Concat.from_flat(sources, rows, layout), _layers(weights, norms, eps)
    inputs = [*sources, *parameters]
    if backend == "cpu":
        found = cpu.backward(upstream, outputs, x, layers, firsts)
        return native.in_dtypes_of(repeats.distinct(inputs, firsts), found)
    if backend == "triton":
        found = kernels(backend, NAME).backward(upstream, outputs, x, layers)
    else:

        def run(*values: Tensor) -> Grown:
            given = Concat.from_flat(values[:count], rows, layout)
            return reference.dense_block(given, _layers(*_split(values[count:]), eps))

        found = gradients(run, inputs, upstream)
    return repeats.collected(found, firsts)


def _split(parameters: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Weights ``(G, C, 3, 3)``, which come first, and the norms' ``(T, C)``."""
    layers = sum(value.dim() == 4 for value in parameters)
    return list(parameters[:layers]), list(parameters[layers:])


@_backward.register_fake
def _(
    results: Sequence[Tensor],
    sources: Sequence[Tensor],
    parameters: Sequence[Tensor],
    rows: Tensor,
    layout: Sequence[int],
    *_: Any,
) -> list[Tensor]:
    return empty_gradients(repeats.distinct([*sources, *parameters], layout[: len(sources)]))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    sources, weights, norms, rows, layout, *ctx.rest = inputs
    ctx.firsts = first_occurrences(sources, layout[: len(sources)])
    ctx.layout, ctx.layers = [*ctx.firsts, *layout], len(weights)
    ctx.save_for_backward(rows, *output, *sources, *weights, *norms)


def _differentiate(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
    (rows, *outputs), values = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
    count, distinct = len(ctx.firsts), len(set(ctx.firsts))
    found = _backward([*upstream, *outputs], list(values[:count]), list(values[count:]), rows, ctx.layout, *ctx.rest)
    parameters = found[distinct:]
    of_sources = repeats.by_source(found[:distinct], ctx.firsts)
    return (of_sources, parameters[: ctx.layers], parameters[ctx.layers :], *[None] * 4)


_forward.register_autograd(_differentiate, setup_context=_setup_context)
