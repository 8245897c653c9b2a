"""Running statistics of given weights, estimated anew: what training leaves belongs to weights on the move."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ifan.data.mixture import Batch
from ifan.layers import TaskNorm
from ifan.network import IFAN


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
            model(batch.images, batch.lanes, passes, every=True)
    finally:
        for norm in norms:
            norm.averaged = None
        model.train(mode)
