"""What the native kernels are told of tensors that they read as one concatenation, and of its normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ifan.ops.native import cpu_module, in_dtype


class Concatenation:
    """Sources ``(N or R, C_i, H, W)`` on the CPU, as addresses and strides of float32.

    Keeps the tensors alive whose addresses it holds; those of another dtype and those whose planes do not lie in one
    piece are copied. For a backward there are new float32 ``gradients (N, C_i, H, W)``, which are written; where
    ``firsts``, see `ifan.ops.repeats`, says that a source stands a second time, its gradient is added to that of the
    first.
    """

    def __init__(
        self,
        sources: Sequence[Tensor],
        segments: Sequence[int],
        rows: Tensor | None,
        per_sample: Sequence[bool],
        backward: bool = False,
        firsts: Sequence[int] | None = None,
    ) -> None:
        self.sources, self.per_sample = sources, per_sample
        self.rows = None if rows is None else rows.contiguous()
        self.planes, fields, channels = [], [], 0
        for source, flag in zip(sources, per_sample, strict=True):
            x = _with_whole_planes(in_dtype(source, torch.float32))
            shape, strides = x.shape, x.stride()
            self.planes.append(x)
            fields.append((x.data_ptr(), shape[1], strides[0], strides[1], shape[0] if flag else 0))
            channels += shape[1]
        self.shape = (sum(segments), channels, *sources[0].shape[2:])
        self.arguments = fields, 0 if self.rows is None else self.rows.data_ptr(), segments, self.shape
        """The first four arguments of a kernel: sources, rows, segments and the shape of the concatenation."""
        self.firsts = range(len(sources)) if firsts is None else firsts
        self.gradients: list[Tensor] = []
        self.adds: list[bool] = []
        for i, (x, first) in enumerate(zip(self.planes, self.firsts, strict=True) if backward else ()):
            again = first < i
            self.adds.append(again)
            self.gradients.append(self.gradients[first] if again else x.new_empty((self.shape[0], *x.shape[1:])))

    @property
    def targets(self) -> list[tuple[int, int, int]]:
        """The argument of a backward kernel that says where the sources' gradients go."""
        return [(g.data_ptr(), g.stride(0), int(add)) for g, add in zip(self.gradients, self.adds, strict=True)]

    def source_gradients(self) -> list[Tensor]:
        """The gradient of each source that is not a repeated one, float32: with a row a sample it collects those of its
        lanes, in their order."""
        found = []
        for i in dict.fromkeys(self.firsts):
            g = self.gradients[i]
            if self.per_sample[i] and self.rows is not None:
                g = g.new_zeros(self.sources[i].shape).index_add_(0, self.rows, g)
            found.append(g)
        return found


Rows = tuple[int, int]
"""Address of ``(T, C)`` and floats from one task's to the next, as the kernels are told of a normalisation's values."""


def rows_of(x: Tensor) -> Rows:
    """The rows of what `in_rows` gave."""
    return x.data_ptr(), x.stride(0)


class Normalisation:
    """A normalisation ``(T, C)`` as one scale and one shift a task and channel, ``(x - mean) / sqrt(var + eps) * weight
    + bias``, and its gradients."""

    def __init__(self, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> None:
        values = [in_rows(x) for x in (weight, bias, mean, var)]
        self.scale, self.shift = values[0].new_empty((2, *weight.shape))
        module, (tasks, channels) = cpu_module(), weight.shape
        module.normalisation([rows_of(x) for x in values], tasks, channels, eps, self.scale.data_ptr())
        self.mean, self._var, self._eps = values[2].contiguous(), values[3], eps

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
