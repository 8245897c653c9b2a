"""Exponential moving average of a network's parameters and running statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA:
    """Shadow copies of all parameters and buffers of ``model``, floating ones in at least fp32.

    After ``t`` updates the next one moves the shadow by ``1 - min(decay, (1 + t) / (10 + t))``, so that the random
    initial weights are forgotten early. Buffers that are not floating point are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: _keep(t).clone() for name, t in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the shadow towards ``model``; ``step`` counts the updates made before this one."""
        move = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))  # of all tensors in one call
        pairs = [(self.shadow[name], value) for name, value in model.state_dict().items()]
        floating = [(shadow, value.to(shadow.dtype)) for shadow, value in pairs if shadow.is_floating_point()]
        if floating:
            move([shadow for shadow, _ in floating], [value for _, value in floating], step)
        for shadow, value in pairs:
            if not shadow.is_floating_point():
                shadow.copy_(value)

    @torch.no_grad()
    def assign(self, model: nn.Module) -> None:
        """Make the shadow what ``model`` is."""
        for name, value in model.state_dict().items():
            self.shadow[name].copy_(value)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """``model`` in evaluation mode with the averaged values; both are put back on leaving."""
        training, own = model.training, {name: t.clone() for name, t in model.state_dict().items()}
        try:
            model.load_state_dict(self.shadow)
            yield model.eval()
        finally:
            model.load_state_dict(own)
            model.train(training)


def _keep(value: Tensor) -> Tensor:
    half = value.dtype in (torch.float16, torch.bfloat16)
    return value.detach().float() if half else value.detach()
