"""Dense layers: normalisation and ReLU as the prologue of a 3x3 convolution that writes its own channels of one buffer.

A layer reads the sources and the channels grown before it, never concatenated. Backward goes through the layers from
the last: weight gradient, input gradient, then the fusion's own backward (`integrate`) for normalisation and ReLU;
what reaches grown channels and their moments joins the gradient of the layer that made them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import channel_moments, integrate
from .convolution import convolve, input_gradient, promoted, weight_gradient
from .lanes import per_lane


def forward(
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
    """Grown channels ``(N, G L, H, W)`` and their moments ``(T, G L)``, or ``(T, 0)`` with running statistics."""
    growth, batch_statistics = weights[0].shape[0], len(means) == 1
    shape = (sum(segments), growth * len(weights), *sources[0].shape[2:])
    grown = sources[0].new_empty(shape, dtype=promoted(sources))
    moments = grown.new_empty((2, len(segments), shape[1] if batch_statistics else 0), dtype=torch.float32)
    for layer, weight in enumerate(weights):
        new = slice(growth * layer, growth * (layer + 1))
        mean, var = _statistics(layer, growth, means, variances, moments)
        scale, shift, _ = integrate.affine((gammas[layer], betas[layer], mean, var), eps)
        convolve(
            _inputs(sources, grown, growth * layer),
            weight,
            grown[:, new],
            rows=_rows(rows, per_sample, layer),
            norm=(per_lane(scale, segments), per_lane(shift, segments)),
        )
        if batch_statistics:
            moments[0, :, new], moments[1, :, new] = channel_moments.forward(grown[:, new], segments)
    return grown, moments[0].clone(), moments[1].clone()


def backward(
    upstream: Sequence[Tensor],
    outputs: Sequence[Tensor],
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
) -> list[list[Tensor]]:
    """Gradients of sources, weights, gammas, betas, means and variances, group by group."""
    growth, batch_statistics, grown = weights[0].shape[0], len(means) == 1, outputs[0]
    moments = torch.stack(list(outputs[1:]))
    arriving, of_moments = upstream[0].float().clone(), torch.stack([value.float() for value in upstream[1:]])
    of_sources = [torch.zeros_like(x, dtype=torch.float32) for x in sources]
    of_layers: list[list[Tensor]] = []
    of_first: list[Tensor] = []
    channels = sum(x.shape[1] for x in sources)
    for layer in reversed(range(len(weights))):
        new = slice(growth * layer, growth * (layer + 1))
        if batch_statistics:
            part = of_moments[0, :, new], of_moments[1, :, new], grown[:, new], moments[0, :, new]
            arriving[:, new] += channel_moments.backward(*part, segments, torch.float32)
        gradient = arriving[:, new].to(grown.dtype).contiguous()
        mean, var = _statistics(layer, growth, means, variances, moments)
        norm = gammas[layer], betas[layer], mean, var
        inputs, flags = _inputs(sources, grown, growth * layer), [*per_sample, *[False] * bool(layer)]
        scale, shift, _ = integrate.affine(norm, eps)
        of_weight = weight_gradient(
            inputs,
            gradient,
            rows=_rows(rows, per_sample, layer),
            norm=(per_lane(scale, segments), per_lane(shift, segments)),
        )
        reached = input_gradient(gradient, weights[layer], torch.float32)
        found = integrate.backward(reached, inputs, norm, segments, rows, flags, 1, eps)
        for total, value in zip(of_sources, found, strict=False):
            total += value
        if layer:
            arriving[:, : growth * layer] += found[len(sources)]
        *_, of_gamma, of_beta, of_mean, of_var = found
        if batch_statistics:
            of_moments[:, :, : growth * layer] += torch.stack([v[:, channels:] for v in (of_mean, of_var)])
            firsts = [v[:, :channels] for v in (of_mean, of_var)]
            of_first = [a + b for a, b in zip(of_first, firsts, strict=True)] if of_first else firsts
        of_layers.insert(0, [of_weight.to(weights[layer].dtype), of_gamma, of_beta, of_mean, of_var])
    of_weights, of_gammas, of_betas, of_means, of_vars = (list(group) for group in zip(*of_layers, strict=True))
    if batch_statistics:
        of_means, of_vars = ([value.contiguous()] for value in of_first)
    of_inputs = [value.to(x.dtype) for value, x in zip(of_sources, sources, strict=True)]
    return [of_inputs, of_weights, of_gammas, of_betas, of_means, of_vars]


def _statistics(
    layer: int, growth: int, means: Sequence[Tensor], variances: Sequence[Tensor], moments: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and variance ``(T, C_l)`` of a layer's input: given a layer, or the sources' and those of grown channels."""
    if len(means) > 1:
        return means[layer], variances[layer]
    known = moments[:, :, : growth * layer]
    return torch.cat([means[0], known[0]], 1), torch.cat([variances[0], known[1]], 1)


def _inputs(sources: Sequence[Tensor], grown: Tensor, channels: int) -> list[Tensor]:
    return [*sources, grown[:, :channels]] if channels else list(sources)


def _rows(rows: Tensor | None, per_sample: Sequence[bool], layer: int) -> list[Tensor | None]:
    return [rows if flag else None for flag in per_sample] + [None] * bool(layer)
