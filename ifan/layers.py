"""The layers of the network: task-wise normalisation, dense blocks, transitions, re-encoders, dense heads.

Convolutions are shared by all tasks; only what is `TaskNorm` exists once a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ifan import ops
from ifan.concat import (
    Concat,
    DenseLayer,
    Lanes,
    Moments,
    MomentsReduce,
    Norm,
    Parts,
    Source,
    joined_moments,
    pooled_moments,
)
from ifan.config import EPSILON, NetworkConfig, TaskConfig
from ifan.ops.take_rows import take_rows
from ifan.wiring import encoder_widths

MOMENTUM = 0.01


@dataclass(frozen=True)
class ForwardContext:
    """Reading of the features in a pass: whose lanes, and with the batch's statistics (training) or the running ones.

    ``later``: the pass is not the first iteration, which matters where the running statistics are kept apart.
    """

    lanes: Lanes
    training: bool
    reduce: MomentsReduce | None
    later: bool = False

    def on(self, lanes: Lanes) -> ForwardContext:
        """The same context on other lanes."""
        return replace(self, lanes=lanes)

    def shared(self, x: Tensor, batch: int) -> Concat:
        """A tensor that all tasks read: a row a sample, or one row for all.

        Running statistics let the ops look rows up as they read. Batch statistics are those of the lanes, so in
        training the rows are laid out by lane.
        """
        if not self.training:
            return Concat.of(self.lanes, x.expand(batch, -1, -1, -1), per_sample=True)
        if x.shape[0] == 1:
            x = x.expand(self.lanes.rows.shape[0], -1, -1, -1)
        elif not self.lanes.in_order:
            x = take_rows(x, self.lanes.rows)
        return self.fresh(x)

    def fresh(self, x: Tensor) -> Concat:
        """A new tensor with a row a lane, and its moments where they will be needed."""
        if not self.training:
            return Concat.of(self.lanes, x)
        x, mean, var, by_task = ops.with_channel_moments(x, list(self.lanes.segments))
        return self._described(x, mean, var, by_task)

    def with_moments(self, x: Tensor, mean: Tensor, var: Tensor) -> Concat:
        """A new tensor with a row a lane whose moments in this process are known."""
        x, by_task = ops.by_task(x, list(self.lanes.segments))
        return self._described(x, mean, var, by_task)

    def _described(self, x: Tensor, mean: Tensor, var: Tensor, by_task: Parts) -> Concat:
        moments = joined_moments(x, (mean, var), self.lanes, self.reduce)
        return Concat((Source(x, False, moments, by_task),), self.lanes)


class TaskNorm(nn.Module):
    """Batch normalisation with parameters and running statistics of its own for each task, ``(T, C)`` each.

    Epsilon 1e-3 inside the root; running statistics move by 1 % a step towards the batch's mean and biased variance.
    Without ``network.task_norm`` all tasks share one row, with the moments of all their lanes together. As
    ``network.iteration_norm`` says, the iterations after the first have statistics or also parameters of their own.
    """

    weight: Tensor
    bias: Tensor
    later_weight: Tensor
    later_bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, tasks: int, channels: int, config: NetworkConfig, affine: bool = True) -> None:
        super().__init__()
        self.tasks, self.by_task = tasks, config.task_norm or tasks <= 1
        rows = tasks if config.task_norm else min(tasks, 1)
        self.separate, self.separate_affine = config.iteration_norm != "shared", config.iteration_norm == "separate"
        for prefix in ("", "later_") if self.separate_affine else ("",):
            if affine:
                self.register_parameter(f"{prefix}weight", nn.Parameter(torch.ones(rows, channels)))
                self.register_parameter(f"{prefix}bias", nn.Parameter(torch.zeros(rows, channels)))
        self.averaged: dict[str, Tensor] | None = None
        """While the running statistics are estimated anew: batches that each row's mean holds so far, by buffer."""
        for kind in ("running", "later") if self.separate else ("running",):
            self.register_buffer(f"{kind}_mean", torch.zeros(rows, channels))
            self.register_buffer(f"{kind}_var", torch.ones(rows, channels))

    def affine(self, later: bool) -> tuple[Tensor, Tensor]:
        """Scale and shift after normalisation in the first or a later iteration, ``(T, C)`` each."""
        if later and self.separate_affine:
            return self._by_task(self.later_weight), self._by_task(self.later_bias)
        return self._by_task(self.weight), self._by_task(self.bias)

    def norm(self, later: bool, moments: tuple[Tensor | None, Tensor | None] = (None, None)) -> Norm:
        """The normalisation of the first or of a later iteration with these ``moments``."""
        return Norm(*self.affine(later), *moments)

    def running(self, later: bool) -> Moments:
        """The running statistics of the first or of a later iteration, ``(T, C)`` each."""
        mean, var = (getattr(self, name) for name in self._running(later))
        return self._by_task(mean), self._by_task(var)

    def statistics(self, x: Concat, later: bool) -> Moments:
        """The batch's moments in training (and then the running ones follow), else the running ones."""
        if any(source.moments is None for source in x.sources):
            return self.running(later)
        mean, var = x.moments_of(x.channels)
        segments = x.lanes.global_segments
        if mean.shape[0] != self.running_mean.shape[0]:
            mean, var = pooled_moments(mean, var, segments)
            segments = (sum(segments),)
        self.follow(mean, var, segments, later)
        return self._by_task(mean), self._by_task(var)

    @torch.no_grad()
    def follow(self, mean: Tensor, var: Tensor, segments: Sequence[int], later: bool = False) -> None:
        """Move the running statistics of the rows that have lanes in any process.

        The tensors are replaced, not changed: an earlier iteration that records its gradient holds the old ones.
        """
        present = mean.new_tensor([[1.0 if n else 0.0] for n in segments])
        step = MOMENTUM * present
        for name, value in zip(self._running(later), (mean, var), strict=True):
            old: Tensor = getattr(self, name)
            if self.averaged is not None:
                count = self.averaged[name] = self.averaged.get(name, 0) + present
                step = present / count.clamp_min(1)
            setattr(self, name, old.lerp(value.to(old.dtype), step.to(old.dtype)))

    def _running(self, later: bool) -> tuple[str, str]:
        kind = "later" if later and self.separate else "running"
        return f"{kind}_mean", f"{kind}_var"

    def _by_task(self, rows: Tensor) -> Tensor:
        return rows if rows.shape[0] == self.tasks else rows.repeat(self.tasks, 1)


class DenseBlock(nn.Module):
    """Layers of normalise - ReLU - 3x3 to ``growth`` channels, each reading all before it; returns the grown
    channels."""

    def __init__(self, inputs: Sequence[int], tasks: int, config: NetworkConfig) -> None:
        super().__init__()
        self.norms = nn.ModuleList(TaskNorm(tasks, c, config) for c in inputs)
        self.convolutions = nn.ModuleList(convolution(c, config.growth, 3) for c in inputs)

    def forward(self, x: Concat, context: ForwardContext) -> Concat:
        """The grown channels only, ``(N, layers * growth, H, W)`` together."""
        layers = [(cast(TaskNorm, n), cast(nn.Conv2d, c)) for n, c in zip(self.norms, self.convolutions, strict=True)]
        if context.training:
            grown = x
            # Moments that other processes or tasks share in must be joined before the next layer can begin.
            singly = context.reduce is not None or not layers[0][0].by_task
            for some in [[layer] for layer in layers] if singly else [layers]:
                statistics = some[0][0].statistics(grown, context.later)
                new, mean, var = self._grow(grown, some, [statistics], context.later)
                grown = grown + context.with_moments(new, mean, var)
                for norm, layer in some[1:]:
                    norm.follow(*grown.moments_of(layer.in_channels), x.lanes.global_segments, context.later)
            return grown.tail(len(x.sources))
        running = [norm.running(context.later) for norm, _ in layers]
        return Concat.of(x.lanes, self._grow(x, layers, running, context.later)[0])

    @staticmethod
    def _grow(
        x: Concat, layers: list[tuple[TaskNorm, nn.Conv2d]], statistics: list[Moments], later: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        known = [*statistics, *[(None, None)] * (len(layers) - len(statistics))]
        norms = [norm.norm(later, moments) for (norm, _), moments in zip(layers, known, strict=True)]
        return ops.dense_block(x, [DenseLayer(c.weight, norm) for (_, c), norm in zip(layers, norms, strict=True)])


class TransitionDown(nn.Module):
    """Normalise - ReLU - average 2x2 - 1x1 convolution; the release pools last, which is the same and dearer."""

    def __init__(self, c_in: int, c_out: int, tasks: int, config: NetworkConfig) -> None:
        super().__init__()
        self.norm, self.convolution = TaskNorm(tasks, c_in, config), convolution(c_in, c_out, 1)

    def forward(self, x: Concat, context: ForwardContext) -> Concat:
        """``(N, C_in, H, W)`` to ``(N, C_out, H / 2, W / 2)``."""
        return context.fresh(self.convolution(integrate(x, self.norm, context.later, pool=2)))


class TransitionUp(nn.Module):
    """3x3 to ``channels`` - ReLU - phase shift to twice the side - 3x3 to ``channels`` - ReLU, over raw features."""

    def __init__(self, c_in: int, channels: int) -> None:
        super().__init__()
        self.a = convolution(c_in, channels, 3, glorot=True)
        self.b = convolution(channels // 4, channels, 3, glorot=True)

    def forward(self, x: Concat, context: ForwardContext) -> Concat:
        """``(N, C_in, H, W)`` to ``(N, channels, 2 H, 2 W)``."""
        x, weight = x.unique(self.a.weight)
        return context.fresh(ops.transition_up(x, weight, self.b.weight))


class ReEncoder(nn.Module):
    """Planes of one task to maps at 1/4, 1/8 and 1/16 of their side: (convolution, ReLU, max pool 2) three times."""

    def __init__(self, task: TaskConfig) -> None:
        super().__init__()
        first, other = (1, 1) if task.kind == "classification" else (5, 3)
        widths = (task.planes, *encoder_widths(task))
        self.padding = (1, 2, 1, 2) if first == 5 else (0, 0, 0, 0)  # "same" at stride 2 pads one before, two after
        self.convolutions = nn.ModuleList(
            convolution(widths[i], widths[i + 1], first if i == 0 else other) for i in range(3)
        )

    def forward(self, planes: Tensor) -> list[Tensor]:
        """Planes ``(B, planes, S, S)`` to maps of side S / 4, S / 8 and S / 16."""
        first, *others = (cast(nn.Conv2d, c) for c in self.convolutions)
        x, stride = F.pad(planes, self.padding), 2
        if first.kernel_size == (1, 1):
            # The same sums. oneDNN's gradient of a 1x1 weight at stride 2 writes past its workspace where planes are
            # channels-last and few, as torch.compile lays them out, and damages the heap (uxlfoundation/oneDNN 6035).
            x, stride = x[:, :, ::2, ::2], 1
        x = F.max_pool2d(F.relu(F.conv2d(x, first.weight, stride=stride)), 2)
        maps = [x]
        for convolution in others:
            x = F.max_pool2d(F.relu(convolution(x)), 2)
            maps.append(x)
        return maps


class DenseHead(nn.Linear):
    """Dropout and a dense layer over all inputs in the release's order: row, column, channel.

    With ``network.normalise_heads`` each input first gets mean 0 and variance 1 over the lanes (no parameters), which
    `ifan.network.fold_training_extras` folds away. Normalising a whole channel would not do: its mean still differs
    from pixel to pixel, and these thousands of constants add up to one bias that every step of Adam throws about.
    """

    def __init__(self, inputs: int, outputs: int, config: NetworkConfig) -> None:
        super().__init__(inputs, outputs)
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)
        self.dropout = config.dropout
        self.norm = TaskNorm(1, inputs, config, affine=False) if config.normalise_heads else None

    def forward(self, x: Concat, context: ForwardContext) -> Tensor:  # type: ignore[override]
        """``(N, C, H, W)`` to ``(N, outputs)``."""
        flat = x.concatenated().permute(0, 2, 3, 1).flatten(1).to(self.weight.dtype)
        if self.norm is not None:
            mean, var = self.norm.statistics(context.on(x.lanes).fresh(flat[:, :, None, None]), context.later)
            flat = (flat - mean) * (var + EPSILON).rsqrt()
        return super().forward(F.dropout(flat, self.dropout, context.training))

    def folded(self, later: bool) -> tuple[Tensor, Tensor]:
        """Weight ``(outputs, inputs)`` and bias, in double precision, of the plain layer that computes the same in the
        first or a later iteration."""
        weight, bias = self.weight.double(), self.bias.double()
        if self.norm is None:
            return weight, bias
        mean, var = self.norm.running(later)
        weight = weight * (var.double() + EPSILON).rsqrt()
        return weight, bias - (weight * mean.double()).sum(1)


class HeatMapHead(nn.Module):
    """Points as the means of heat maps, which all levels of the down path draw together.

    At each level a dense layer that grows by a channel a point draws their maps; these are added from the coarsest to
    the finest, each sum enlarged to the next level's side. A softmax over the pixels makes of the last sum a
    distribution, whose mean is the point (Sun et al., "Integral Human Pose Regression", arXiv 1711.08229).
    """

    def __init__(self, inputs: Sequence[int], points: int, config: NetworkConfig) -> None:
        super().__init__()
        self.levels = nn.ModuleList(DenseBlock([c], 1, replace(config, growth=points)) for c in inputs)

    def forward(self, levels: Sequence[Concat], context: ForwardContext) -> Tensor:
        """Concat ``(N, C_i, S / 2^i, S / 2^i)`` of level i to ``(N, 2, P)``, crop sides from the centre."""
        drawn = zip(self.levels, levels, strict=True)
        return centres([level(x, context.on(x.lanes)).tensors[0] for level, x in drawn])

    def convolutions(self) -> list[nn.Conv2d]:
        """The convolution of each level, from the finest."""
        return [cast(nn.Conv2d, cast(DenseBlock, level).convolutions[0]) for level in self.levels]


def centres(maps: Sequence[Tensor]) -> Tensor:
    """Means of the softmax over the pixels of the sum of ``maps``, ``(N, P, S / 2^i, S / 2^i)`` each, the coarser ones
    enlarged: ``(N, 2, P)``, x's then y's in crop sides from the centre."""
    heat = maps[-1]
    for finer in maps[-2::-1]:
        heat = finer + F.interpolate(heat, scale_factor=2.0, mode="bilinear")
    size = heat.shape[-1]
    p = heat.flatten(2).softmax(2).unflatten(2, (size, size))
    at = (torch.arange(size, dtype=heat.dtype, device=heat.device) + 0.5) / size - 0.5
    return torch.stack([(p.sum(2) * at).sum(2), (p.sum(3) * at).sum(2)], 1)


def integrate(x: Concat, norm: TaskNorm, later: bool, pool: int = 1) -> Tensor:
    """Concatenation, task-wise normalisation, ReLU and pooling of ``x``: ``(N, C, H / pool, W / pool)``."""
    return ops.integrate(x, norm.norm(later, norm.statistics(x, later)), pool)


def convolution(c_in: int, c_out: int, k: int, glorot: bool = False) -> nn.Conv2d:
    """A ``k`` x ``k`` convolution that keeps the side, without bias; He or Glorot uniform weights, as the release
    draws them."""
    layer = nn.Conv2d(c_in, c_out, k, padding=k // 2, bias=False)
    if glorot:
        nn.init.xavier_uniform_(layer.weight)
    else:
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    return layer
