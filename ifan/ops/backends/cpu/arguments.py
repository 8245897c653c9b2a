"""A concatenation and its normalisation as the native kernels take them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ifan.concat import Concat, Norm
from ifan.ops.native import cpu_module, in_dtype


class ConcatFields:
    """A `Concat` on the CPU as addresses and strides of float32.

    It keeps the tensors alive whose addresses it holds. Sources of another dtype, and those whose planes do not lie in
    one piece, are copied. With ``firsts`` (`ifan.ops.repeats`), it has new float32 ``gradients (N, C_i, H, W)`` that a
    backward writes; that of a source which stands a second time is added to that of the first.
    """

    def __init__(self, x: Concat, firsts: Sequence[int] | None = None) -> None:
        self.concat, self.rows = x, x.lanes.rows.contiguous()
        self.planes, fields, channels = [], [], 0
        for tensor, per_sample, *_ in x.sources:
            plane = _with_whole_planes(in_dtype(tensor, torch.float32))
            shape, strides = plane.shape, plane.stride()
            self.planes.append(plane)
            fields.append((plane.data_ptr(), shape[1], strides[0], strides[1], shape[0] if per_sample else 0))
            channels += shape[1]
        self.shape = (self.rows.shape[0], channels, *self.planes[0].shape[2:])
        self.arguments = fields, self.rows.data_ptr(), x.lanes.segments, self.shape
        """The first four arguments of a kernel: sources, rows, segments and the shape of the concatenation."""
        self.firsts = firsts or ()
        self.gradients: list[Tensor] = []
        self.adds: list[bool] = []
        for i, first in enumerate(self.firsts):
            plane, again = self.planes[i], first < i
            self.adds.append(again)
            self.gradients.append(
                self.gradients[first] if again else plane.new_empty((self.shape[0], *plane.shape[1:]))
            )

    @property
    def targets(self) -> list[tuple[int, int, int]]:
        """The argument of a backward kernel that says where the sources' gradients go."""
        return [(g.data_ptr(), g.stride(0), int(add)) for g, add in zip(self.gradients, self.adds, strict=True)]

    def source_gradients(self) -> list[Tensor]:
        """The gradient of each source that is not a repeated one, float32: with a row a sample it collects those of its
        lanes, in their order."""
        found = []
        for i in dict.fromkeys(self.firsts):
            g, source = self.gradients[i], self.concat.sources[i]
            if source.per_sample:
                g = g.new_zeros(source.tensor.shape).index_add_(0, self.rows, g)
            found.append(g)
        return found


Rows = tuple[int, int]
"""Address of ``(T, C)`` and floats from one task's to the next, as the kernels take a normalisation's values."""


def rows_of(x: Tensor) -> Rows:
    """The rows of what `in_rows` gave."""
    return x.data_ptr(), x.stride(0)


class NormFields:
    """A `Norm` with mean and var as one scale and one shift a task and channel, ``(T, C)`` each, and its gradients."""

    def __init__(self, norm: Norm) -> None:
        values = [in_rows(x) for x in norm.tensors]
        self.scale, self.shift = values[0].new_empty((2, *norm.weight.shape))
        module, (tasks, channels) = cpu_module(), norm.weight.shape
        module.normalisation([rows_of(x) for x in values], tasks, channels, norm.eps, self.scale.data_ptr())
        self.mean, self._var, self._eps = values[2].contiguous(), values[3], norm.eps

    def gradients(self, sums: Tensor, segments: Sequence[int], of_mean: Tensor, of_var: Tensor) -> list[Tensor]:
        """Gradients of weight and bias; those of mean and variance are added to ``of_mean`` and ``of_var``.

        float32 ``sums (N, C, 2)``: for each lane and channel the sum of the gradients behind the normalisation, and
        that of their products with ``x - mean``.
        """
        found = [torch.empty_like(self.scale), torch.empty_like(self.scale)]
        cpu_module().normalisation_backward(
            sums.data_ptr(),
            segments,
            sums.shape[1],
            self.scale.data_ptr(),
            rows_of(self._var),
            self._eps,
            [rows_of(value) for value in (*found, of_mean, of_var)],
        )
        return found


def in_rows(x: Tensor) -> Tensor:
    """float32 whose rows lie in one piece each."""
    x = in_dtype(x, torch.float32)
    return x if x.is_contiguous() or x.shape[1] < 2 or x.stride(1) == 1 else x.contiguous()


def _with_whole_planes(x: Tensor) -> Tensor:
    if x.is_contiguous():
        return x
    height, width = x.shape[2:]
    whole = (width == 1 or x.stride(3) == 1) and (height == 1 or x.stride(2) == width)
    return x if whole else x.contiguous()
