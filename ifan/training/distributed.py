"""Several processes, one global batch: every sum over the batch becomes a sum over the processes.

Losses are divided by the global number of labelled elements, gradients are added, and the moments that normalise are
those of all processes' lanes, so any number of processes computes what one would.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Processes:
    """The group that ``torchrun`` or ``accelerate launch`` started, or this process alone."""

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

    @staticmethod
    def join(device: torch.device) -> Processes:
        """Join the group that the environment (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) describes, if any."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1 or not dist.is_available():
            return Processes()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return Processes(dist.get_rank(), dist.get_world_size())

    def leave(self) -> None:
        """Wait for the others and dissolve the group."""
        if self.world > 1 and dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()

    def barrier(self) -> None:
        """Wait for the others."""
        if self.world > 1:
            dist.barrier()

    def sum(self, value: Tensor) -> Tensor:
        """``value`` summed over the processes; no gradient."""
        if self.world == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    def copy_from_first(self, model: nn.Module) -> None:
        """Give every process the first one's parameters and buffers."""
        if self.world > 1:
            for value in model.state_dict().values():
                dist.broadcast(value, 0)

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients over the processes in one message; an absent gradient counts as zero."""
        params = list(parameters)
        for p in params:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        if self.world == 1:
            return
        grads = [p.grad for p in params if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    def moments(self, mean: Tensor, var: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Moments (T, C) of ``counts`` (T,) values here, joined over all processes; differentiable in mean and var.

        mean = sum n_i mean_i / n; var = sum n_i (var_i + (mean_i - mean)^2) / n: exact for unequal and zero counts. A
        task without values anywhere has mean 0 and variance 1.
        """
        n = counts[:, None]
        # A process whose part has no gradient still takes part in the others' backward pass.
        anchor = torch.zeros((), dtype=mean.dtype, device=mean.device, requires_grad=torch.is_grad_enabled())
        total = self.sum(n)
        safe = total.clamp_min(1)
        joined = _Sum.apply(n * mean + anchor) / safe
        spread = _Sum.apply(n * (var + (mean - joined) ** 2)) / safe
        return joined, torch.where(total > 0, spread, 1.0), total[:, 0]


def own_device(name: str) -> torch.device:
    """The device of that name; plain ``cuda`` is the card with this process' number (LOCAL_RANK)."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r}: expected cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r}: this torch finds no such device; use --device cpu or install a CUDA build")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    return device


class _Sum(torch.autograd.Function):
    """Sum over the processes. The objective is the sum of all processes' losses, so gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total
