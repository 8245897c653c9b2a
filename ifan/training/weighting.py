"""Weighting of the tasks' losses into the one number that is minimised.

A weighting is a small module so that what it learns travels with the checkpoint. `Weighting.combine` gets the losses of
all tasks ``(T,)`` in config order, those of the whole batch when several processes share it, and says which tasks the
batch labels; the others have loss 0 and must neither pull nor push.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ifan.config import TrainingConfig


class Fixed(nn.Module):
    """sum_t w_t L_t with the weights of the configuration."""

    weights: Tensor

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights, persistent=False)

    def combine(self, losses: Tensor, whole: Tensor, present: Tensor, share: float = 1.0) -> Tensor:
        """The scalar to minimise.

        ``losses`` (T,) with gradient: this process' part; ``whole`` (T,) without: summed over the processes, of which
        this one is ``share``; ``present`` (T,) bool: labelled in the whole batch.
        """
        return (self.weights * losses).sum()

    def observe(self, whole: Tensor, present: Tensor) -> None:
        """Learn from the losses of the step (``combine``'s arguments), after the network's update."""


class Uncertainty(Fixed):
    """sum_t w_t (exp(-s_t) L_t + s_t / 2) over the labelled tasks, log variances s learned (Kendall et al. 2018)."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__(weights)
        self.log_variance = nn.Parameter(torch.zeros_like(weights))

    def combine(self, losses: Tensor, whole: Tensor, present: Tensor, share: float = 1.0) -> Tensor:
        """See `Fixed.combine`; the penalty s_t / 2 is divided among the processes."""
        terms = torch.exp(-self.log_variance) * losses + share * self.log_variance / 2
        return (self.weights * terms * present).sum()


class FAMO(Fixed):
    """Fast adaptive multi-task optimisation (Liu et al. 2023), for batches that may lack a task.

    With z = softmax(logits) over the tasks seen so far, task t weighs w_t z_t / l_t, scaled so that the weights of the
    seen tasks sum to their number; l_t is its loss in this batch or, where it is not labelled, the last one seen. After
    the step the logits follow the change of the log losses: xi <- xi - rate (J^T (log l_before - log l_now) +
    decay xi), J the Jacobian of the softmax; a task without a new loss has changed by 0. The loss after a step is
    taken from the next batch that labels the task, as the paper proposes to save a second forward pass.
    """

    logits: Tensor
    last: Tensor

    def __init__(self, weights: Tensor, rate: float = 0.025, decay: float = 1e-3) -> None:
        super().__init__(weights)
        self.rate, self.decay = rate, decay
        self.register_buffer("logits", torch.zeros_like(weights))
        self.register_buffer("last", torch.zeros_like(weights))  # 0 = not seen yet

    def combine(self, losses: Tensor, whole: Tensor, present: Tensor, share: float = 1.0) -> Tensor:
        """See `Fixed.combine`."""
        return (self.weights * self._balance(whole, present) * losses).sum()

    @torch.no_grad()
    def observe(self, whole: Tensor, present: Tensor) -> None:
        """Move the logits by the change of the labelled tasks' losses and remember these."""
        now = whole.clamp_min(_TINY)
        known = present & (self.last > 0)
        change = torch.where(known, self.last.clamp_min(_TINY).log() - now.log(), 0.0)
        seen = self.last > 0
        if bool(seen.any()):
            z = torch.softmax(self.logits.masked_fill(~seen, -torch.inf), 0)
            self.logits -= self.rate * (z * (change - (z * change).sum()) + self.decay * self.logits)
        self.last.copy_(torch.where(present, now, self.last))

    def _balance(self, whole: Tensor, present: Tensor) -> Tensor:
        losses = torch.where(present, whole, self.last).detach()
        seen = present | (self.last > 0)
        z = torch.softmax(self.logits.masked_fill(~seen, -torch.inf), 0)
        raw = torch.where(seen, z / losses.clamp_min(_TINY), 0.0)
        return raw * (seen.sum() / raw.sum().clamp_min(_TINY))


Weighting = Fixed
_TINY = 1e-8


def make_weighting(config: TrainingConfig, tasks: tuple[str, ...]) -> Weighting:
    """The configured weighting for ``tasks`` in config order; ``ValueError`` for a weight of an unknown task."""
    unknown = sorted(config.task_weights.keys() - set(tasks))
    if unknown:
        raise ValueError(f"training.task_weights: unknown task {unknown[0]!r}; expected some of {list(tasks)}")
    weights = torch.tensor([config.task_weights.get(task, 1.0) for task in tasks])
    return {"fixed": Fixed, "uncertainty": Uncertainty, "famo": FAMO}[config.weighting](weights)
