"""Dense layers: normalisation and ReLU as the prologue of a 3x3 convolution that writes its own channels of one buffer.

A layer reads the sources and the channels grown before it, never concatenated. Backward goes through the layers from
the last: weight gradient, input gradient, then the fusion's own backward (`integrate`) for normalisation and ReLU;
what reaches grown channels and their moments joins the gradient of the layer that made them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ifan.concat import Concat, DenseLayer, Norm

from . import channel_moments, integrate
from .convolution import convolve, input_gradient, weight_gradient
from .lanes import per_lane, rows_of


def forward(x: Concat, layers: Sequence[DenseLayer]) -> tuple[Tensor, Tensor, Tensor]:
    """Grown channels ``(N, G L, H, W)`` and their moments ``(T, G L)``, or ``(T, 0)`` with running statistics."""
    growth, batch_statistics, segments = layers[0].weight.shape[0], _batch_statistics(layers), x.lanes.segments
    lanes, _, height, width = x.shape
    grown = x.tensors[0].new_empty((lanes, growth * len(layers), height, width), dtype=x.dtype)
    moments = grown.new_empty((2, len(segments), grown.shape[1] if batch_statistics else 0), dtype=torch.float32)
    for index, layer in enumerate(layers):
        new, given = slice(growth * index, growth * (index + 1)), _inputs(x, grown, growth * index)
        norm = _norm(layers, index, moments)
        convolve(given.tensors, layer.weight, grown[:, new], rows=rows_of(given), norm=_by_lane(norm, segments))
        if batch_statistics:
            moments[0, :, new], moments[1, :, new] = channel_moments.forward(grown[:, new], segments)
    return grown, moments[0].clone(), moments[1].clone()


def backward(
    upstream: Sequence[Tensor], outputs: Sequence[Tensor], x: Concat, layers: Sequence[DenseLayer]
) -> list[Tensor]:
    """Gradients of the sources, the weights, and the norms' tensors, one norm behind the other."""
    growth, batch_statistics, grown = layers[0].weight.shape[0], _batch_statistics(layers), outputs[0]
    moments, segments, channels = torch.stack(list(outputs[1:])), x.lanes.segments, x.channels
    arriving, of_moments = upstream[0].float().clone(), torch.stack([value.float() for value in upstream[1:]])
    of_sources = [torch.zeros_like(source, dtype=torch.float32) for source in x.tensors]
    of_weights: list[Tensor] = []
    of_norms: list[list[Tensor]] = []
    of_first: list[Tensor] = []
    for index in reversed(range(len(layers))):
        new, weight = slice(growth * index, growth * (index + 1)), layers[index].weight
        if batch_statistics:
            part = of_moments[0, :, new], of_moments[1, :, new], grown[:, new], moments[0, :, new]
            arriving[:, new] += channel_moments.backward(*part, segments, torch.float32)
        gradient = arriving[:, new].to(grown.dtype).contiguous()
        norm, given = _norm(layers, index, moments), _inputs(x, grown, growth * index)
        affine = _by_lane(norm, segments)
        of_weights.insert(
            0, weight_gradient(given.tensors, gradient, rows=rows_of(given), norm=affine).to(weight.dtype)
        )
        found = integrate.backward(input_gradient(gradient, weight, torch.float32), given, norm, 1)
        for total, value in zip(of_sources, found, strict=False):
            total += value
        if index:
            arriving[:, : growth * index] += found[len(of_sources)]
        *_, of_scale, of_shift, of_mean, of_var = found
        if batch_statistics:
            of_moments[:, :, : growth * index] += torch.stack([v[:, channels:] for v in (of_mean, of_var)])
            firsts = [v[:, :channels] for v in (of_mean, of_var)]
            of_first = [a + b for a, b in zip(of_first, firsts, strict=True)] if of_first else firsts
        of_norms.insert(0, [of_scale, of_shift, *([] if batch_statistics else [of_mean, of_var])])
    of_norms[0] += [value.contiguous() for value in of_first]
    of_inputs = [value.to(source.dtype) for value, source in zip(of_sources, x.tensors, strict=True)]
    return [*of_inputs, *of_weights, *(value for norm in of_norms for value in norm)]


def _batch_statistics(layers: Sequence[DenseLayer]) -> bool:
    return len(layers) == 1 or layers[-1].norm.mean is None


def _norm(layers: Sequence[DenseLayer], index: int, moments: Tensor) -> Norm:
    """Norm of a layer, with the moments of the first one's sources and of grown channels where it has none."""
    norm, first = layers[index].norm, layers[0].norm.tensors[2:]
    if norm.mean is not None:
        return norm
    known = moments[:, :, : norm.weight.shape[1] - first[0].shape[1]]
    mean, var = (torch.cat(pair, 1) for pair in zip(first, known, strict=True))
    return norm._replace(mean=mean, var=var)


def _by_lane(norm: Norm, segments: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Scale and shift of each lane, ``(N, C)``."""
    scale, shift, _ = integrate.affine(norm)
    return per_lane(scale, segments), per_lane(shift, segments)


def _inputs(x: Concat, grown: Tensor, channels: int) -> Concat:
    """Inputs of a layer: the sources and the channels grown before it."""
    return x + Concat.of(x.lanes, grown[:, :channels]) if channels else x
