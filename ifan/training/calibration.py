"""Running statistics of given weights, estimated anew: what training leaves belongs to weights on the move."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import cast

import torch

from ifan.config import EPSILON
from ifan.data.mixture import Batch
from ifan.layers import DenseHead, TaskNorm
from ifan.network import IFAN
from ifan.training.model import planes_before


@torch.no_grad()
def calibrate(model: IFAN, batches: Iterable[Batch], passes: int) -> None:
    """Set all running statistics of ``model`` to the mean of the batches' moments, over ``passes`` iterations each.

    A task counts only the batches that have lanes of it; one that none has keeps its statistics. What is fed back is
    predicted with the statistics found so far. The model's mode is restored. Source: "precise" batch statistics, Wu and
    Johnson, "Rethinking 'Batch' in BatchNorm", arXiv 2105.07576.
    """
    norms = [module for module in model.modules() if isinstance(module, TaskNorm)]
    mode = model.training
    try:
        for norm in norms:
            norm.averaged = {}
        model.train()
        for batch in batches:
            model(batch.images, batch.lanes, passes, every=True, planes=planes_before(model, batch))
    finally:
        for norm in norms:
            norm.averaged = None
        model.train(mode)


@torch.no_grad()
def normalise_heads(model: IFAN, heads: Iterable[str], batches: Iterable[Batch]) -> None:
    """Give dense heads whose statistics change nothing (`Fitting.heads`) those of their inputs in ``batches``.

    Their weights are made up for it, so that in evaluation ``model`` computes the same as before; its other statistics
    stay. It is how weights that `ifan.weights.publish` folded are trained further.
    """
    measured = copy.deepcopy(model)
    calibrate(measured, batches, 1)
    for name in heads:
        head, other = (cast(DenseHead, network.get_submodule(name)) for network in (model, measured))
        mean, var = (value[0] for value in cast(TaskNorm, other.norm).running(later=False))
        for key, buffer in cast(TaskNorm, head.norm).named_buffers():
            buffer.copy_(mean if key.endswith("mean") else var)
        head.bias.add_(head.weight @ mean)
        head.weight.mul_((var + EPSILON).sqrt())
