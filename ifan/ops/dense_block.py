"""A dense block: layers of task-wise normalisation, ReLU and 3x3 convolution, each reading all channels before it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ifan import reference
from ifan.ops import checks, convolution, native, repeats
from ifan.ops.call import CallCache, operation
from ifan.ops.concatenation import Concatenation, Rows, in_rows, rows_of
from ifan.ops.dispatch import choose, current_backend, register_kernel
from ifan.ops.gpu import kernels, tasks_refusal, triton_refusal
from ifan.ops.native import cpu_module, in_dtype
from ifan.ops.recompute import empty_gradients, gradients
from ifan.profiling import ranged

NAME = "dense_block"


@ranged(f"ifan.{NAME}")
def dense_block(
    sources: Sequence[Tensor],
    weights: Sequence[Tensor],
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    segments: Sequence[int],
    rows: Tensor | None = None,
    per_sample: Sequence[bool] | None = None,
    eps: float = 1e-3,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Grow L times G channels: layer l is ``conv3x3(relu((x - mean) / sqrt(var + eps) * gamma + beta))``.

    Its input x is the sources and all channels grown before it, ``C_l = C_0 + G * l`` in all; each lane is normalised
    with the values of its task.

    Args:
        sources: tensors ``(N, C_i, H, W)``, or ``(R, C_i, H, W)`` with a row a sample where ``per_sample`` says so;
            concatenated along channels, ``C_0`` in all.
        weights: L convolution weights ``(G, C_l, 3, 3)``, used in the sources' dtype; padding 1, no bias.
        gammas, betas: L tensors ``(T, C_l)``, scale and shift after normalisation.
        means, variances: one tensor ``(T, C_0)``: *batch statistics*, those of the sources, while those of grown
            channels are computed here; or L tensors ``(T, C_l)``: *running statistics*. With L = 1 the two agree.
        segments: lanes of each of the T tasks, zeros allowed, summing to N.
        rows: ``(N,)`` int64, the sample of each lane; needed if a source has a row a sample.
        per_sample: one flag a source; default all False.
        eps: added to the variance.
        backend: see `ifan.ops.use_backend`.

    Returns:
        the grown channels ``(N, G * L, H, W)`` in the sources' (promoted) dtype, and with batch statistics their mean
        and biased variance ``(T, G * L)``, else ``(T, 0)``; float32, or float64 for float64. Autocast changes nothing.
        Differentiable in sources, weights, gammas, betas, means and variances.

    Raises:
        ValueError: a shape, dtype, device, segment or row is wrong.

    Source: dense blocks with task-wise normalisation, iFAN (arXiv 1711.06055).
    """
    groups = (weights, gammas, betas, means, variances)
    tensors = (*sources, *chain.from_iterable(groups))

    def check_call() -> tuple[tuple[list[int], list[bool]], str]:
        return _check(sources, *groups, segments, rows, per_sample), choose(NAME, backend, *tensors)

    told = backend or current_backend(), tuple(map(len, groups)), tuple(segments), per_sample and len(per_sample)
    (counts, flags), chosen, run = _CALLS(tensors, told, check_call, keep=not any(per_sample or ()))
    arguments = (sources, weights, gammas, betas, means, variances, counts, rows, flags, eps)
    return reference.dense_block(*arguments) if chosen == "reference" else run(*arguments, chosen)


def _check(
    sources: Sequence[Tensor],
    weights: Sequence[Tensor],
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    segments: Sequence[int],
    rows: Tensor | None,
    per_sample: Sequence[bool] | None,
) -> tuple[list[int], list[bool]]:
    lanes, channels, flags = checks.sources_of(NAME, sources, sum(segments), rows, per_sample)
    counts, layers = checks.segments_of(NAME, segments, lanes), len(weights)
    checks.require(layers > 0, NAME, "weights must hold at least one layer; got none. Pass one weight a layer.")
    for name, group, allowed in (
        ("gammas", gammas, (layers,)),
        ("betas", betas, (layers,)),
        ("means", means, (1, layers)),
        ("variances", variances, (len(means),)),
    ):
        expected = " or ".join(map(str, dict.fromkeys(allowed)))
        checks.require(
            len(group) in allowed, NAME, f"{name} must hold {expected} tensors; got {len(group)}. Pass one a layer."
        )
    growth = weights[0].shape[0]
    for layer, weight in enumerate(weights):
        width = channels + growth * layer
        checks.shape(NAME, f"weights[{layer}]", weight, (growth, width, 3, 3), "(G, C_l, 3, 3)")
        values = {"gammas": gammas, "betas": betas, "means": means, "variances": variances}
        for name, group in values.items():
            if layer < len(group):
                checks.shape(NAME, f"{name}[{layer}]", group[layer], (len(counts), width), "(T, C_l)")
                checks.floating(NAME, sources[0].device, **{f"{name}[{layer}]": group[layer]})
        checks.floating(NAME, sources[0].device, **{f"weights[{layer}]": weight})
    return counts, flags


@operation("ifan::dense_block")
def _forward(
    sources: Sequence[Tensor],
    weights: Sequence[Tensor],
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    segments: Sequence[int],
    rows: Tensor | None,
    per_sample: Sequence[bool],
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = (sources, weights, gammas, betas, means, variances, segments, rows, per_sample, eps)
    if backend == "cpu":
        return _cpu_forward(*arguments)
    if backend in ("triton", "cuda"):
        found: tuple[Tensor, Tensor, Tensor] = kernels(backend, NAME).forward(*arguments)
        return found
    grown, mean, var = reference.dense_block(*arguments)
    return grown.contiguous(), mean.contiguous(), var.contiguous()


def _cpu_forward(
    sources: Sequence[Tensor],
    weights: Sequence[Tensor],
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    segments: Sequence[int],
    rows: Tensor | None,
    per_sample: Sequence[bool],
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    growth, batch_statistics = weights[0].shape[0], len(means) == 1
    grown = sources[0].new_empty((sum(segments), growth * len(weights), *sources[0].shape[2:]), dtype=torch.float32)
    new_mean = grown.new_empty((len(segments), grown.shape[1] if batch_statistics else 0))
    new_var = torch.empty_like(new_mean)
    x, norms = Concatenation(sources, segments, rows, per_sample), _norms(gammas, betas, means, variances)

    def kernel(isa: str, filters: int, same: convolution.Pieces) -> bool:
        moments = [value.data_ptr() if batch_statistics else 0 for value in (new_mean, new_var)]
        told = (*x.arguments, _addresses(norms), eps, isa, filters, grown.data_ptr(), growth, *moments)
        return bool(cpu_module().dense_block_forward(*told, torch.get_num_threads(), same))

    convolution.Filters.use(weights, lambda: _packed(weights, x.shape[1]), kernel)
    return native.in_dtype(grown, checks.promoted(sources)), new_mean, new_var


def _packed(weights: Sequence[Tensor], channels: int) -> convolution.Packed:
    """Filters of all layers for the ``channels`` of the sources, which are read once for all, then those of each layer
    for the channels grown before it."""
    later = [(weight, slice(channels, None)) for weight in weights[1:]]
    return convolution.pack([*((weight, slice(0, channels)) for weight in weights), *later])


def _norms(*groups: Sequence[Tensor]) -> list[list[Tensor]]:
    """Weight, bias, mean and variance of each layer's normalisation; one tensor of a kind stands for all layers."""
    layers = len(groups[0])
    return [[in_rows(group[layer % len(group)]) for group in groups] for layer in range(layers)]


def _addresses(norms: Sequence[Sequence[Tensor]]) -> list[list[Rows]]:
    return [[rows_of(value) for value in norm] for norm in norms]


def _cuda_refusal(*tensors: Tensor) -> str | None:
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return "its kernel is for inference: call it under torch.no_grad(), or train with another backend"
    if checks.promoted(tensors[:1]) == torch.float32:
        return "the first source's dtype is float32, and its kernel multiplies float16 or bfloat16"
    return tasks_refusal(*tensors)


register_kernel(NAME, "cpu", native.input_refusal, convolution.slower_than_pytorch)
register_kernel(NAME, "triton", triton_refusal)
register_kernel(NAME, "cuda", _cuda_refusal)


_CALLS = CallCache[tuple[list[int], list[bool]]](_forward)


@_forward.register_fake
def _(
    sources: Sequence[Tensor],
    weights: Sequence[Tensor],
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    segments: Sequence[int],
    rows: Tensor | None,
    per_sample: Sequence[bool],
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    channels, dtype = weights[0].shape[0] * len(weights), checks.promoted(sources)
    grown = sources[0].new_empty((sum(segments), channels, *sources[0].shape[2:]), dtype=dtype)
    shape = (len(segments), channels if len(means) == 1 else 0)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    return grown, grown.new_empty(shape, dtype=kind), grown.new_empty(shape, dtype=kind)


@operation("ifan::dense_block_backward")
def _backward(
    upstream: Sequence[Tensor],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    lengths: Sequence[int],
    firsts: Sequence[int],
    segments: Sequence[int],
    rows: Tensor | None,
    per_sample: Sequence[bool],
    eps: float,
    backend: str,
) -> list[Tensor]:
    """Gradients of the inputs, `ifan.ops.repeats.collected`."""
    if backend == "cpu":
        return _cpu_backward(upstream, _groups(inputs, lengths), outputs, firsts, segments, rows, per_sample, eps)
    if backend == "triton":
        groups = _groups(inputs, lengths)
        by_group = kernels(backend, NAME).backward(upstream, outputs, *groups, segments, rows, per_sample, eps)
        found = [gradient for group in by_group for gradient in group]
    else:

        def run(*values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            sources, weights, gammas, betas, means, variances = _groups(values, lengths)
            rest = (segments, rows, per_sample, eps)
            return reference.dense_block(sources, weights, gammas, betas, means, variances, *rest)

        found = gradients(run, inputs, upstream)
    return repeats.collected(found, firsts)


def _cpu_backward(
    upstream: Sequence[Tensor],
    inputs: Sequence[Sequence[Tensor]],
    outputs: Sequence[Tensor],
    firsts: Sequence[int],
    segments: Sequence[int],
    rows: Tensor | None,
    per_sample: Sequence[bool],
    eps: float,
) -> list[Tensor]:
    sources, weights, *norm_values = inputs
    grown, *moments = (in_dtype(value, torch.float32) for value in outputs)
    arriving = [in_dtype(value, torch.float32).contiguous() for value in upstream]
    distinct = repeats.distinct([value for group in inputs for value in group], firsts)
    if not grown.numel():
        return [torch.zeros_like(value, memory_format=torch.contiguous_format) for value in distinct]
    batch_statistics = len(norm_values[2]) == 1
    to_grown = torch.empty_like(grown) if batch_statistics else arriving[0].clone()
    x = Concatenation(sources, segments, rows, per_sample, True, firsts)
    of_weights, *of_values = ([grown.new_empty(value.shape) for value in group] for group in inputs[1:])
    of_norms, norms = _addresses(_norms(*of_values)), _norms(*norm_values)
    isa, filters = convolution.pack([(weight, slice(None)) for weight in weights], transposed=True)
    cpu_module().dense_block_backward(
        *x.arguments,
        x.targets,
        _addresses(norms),
        eps,
        isa,
        filters.data_ptr(),
        grown.data_ptr(),
        weights[0].shape[0],
        [value.data_ptr() if batch_statistics else 0 for value in moments],
        [value.data_ptr() for value in arriving],
        to_grown.data_ptr(),
        [(weight.data_ptr(), norm) for weight, norm in zip(of_weights, of_norms, strict=True)],
        convolution.parts(x.shape[0], x.shape[2] * x.shape[3]),
        torch.get_num_threads(),
    )
    found = [*x.source_gradients(), *of_weights, *(value for group in of_values for value in group)]
    return native.in_dtypes_of(distinct, found)


@_backward.register_fake
def _(
    upstream: Sequence[Tensor],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    lengths: Sequence[int],
    firsts: Sequence[int],
    *_: Any,
) -> list[Tensor]:
    return empty_gradients(repeats.distinct(inputs, firsts))


def _groups(values: Sequence[Tensor], lengths: Sequence[int]) -> list[list[Tensor]]:
    """Cut a flat list into consecutive groups of these lengths."""
    ends = [sum(lengths[: index + 1]) for index in range(len(lengths))]
    return [list(values[end - length : end]) for end, length in zip(ends, lengths, strict=True)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    groups, (ctx.segments, rows, *ctx.rest) = inputs[:6], inputs[6:]
    ctx.firsts = repeats.first_occurrences(groups[0], ctx.rest[0])
    ctx.lengths = [len(group) for group in groups]
    ctx.save_for_backward(rows, *output, *[tensor for group in groups for tensor in group])


def _differentiate(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
    rows, grown, mean, var, *inputs = ctx.saved_tensors
    outputs, count = [grown, mean, var], len(set(ctx.firsts))
    found = _backward(list(upstream), inputs, outputs, ctx.lengths, ctx.firsts, ctx.segments, rows, *ctx.rest)
    others = _groups(found[count:], ctx.lengths[1:])
    return (repeats.by_source(found[:count], ctx.firsts), *others, *[None] * 5)


_forward.register_autograd(_differentiate, setup_context=_setup_context)
