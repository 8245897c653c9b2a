"""AdamW with the parameter groups this network needs, and its learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ifan.config import TrainingConfig
from ifan.network import IFAN

HEAD_RATES = {"landmarks": 0.1, "classification": 3.0}
"""Size of what a dense head says, in crop sides and in logits."""


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Rate of update ``step`` (from 0): linear warm-up, then a half cosine that ends at ``final_learning_rate``."""
    warmup = min(config.warmup_steps, config.steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = min((step - warmup) / max(config.steps - warmup, 1), 1.0)
    fall = (1 + math.cos(math.pi * progress)) / 2
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * fall


def make_optimizer(model: IFAN, weighting: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW for the parameters that require gradients; each group's ``scale`` multiplies the schedule's rate.

    Convolutions decay; normalisation parameters, biases and the loss weighting's parameters do not. A dense head adds
    up thousands of inputs: an Adam step at the ordinary rate would move a landmark by about its whole range. Its
    weights get the rate times `HEAD_RATES`, a typical size of the outputs over the root of the number of inputs, and
    the same decay a step as the others.
    """
    heads = {id(weight) for _, weight, _ in model.dense_heads()}
    trained = [p for p in model.parameters() if p.requires_grad]
    convolutions = [p for p in trained if p.dim() == 4]
    others = [p for p in trained if p.dim() != 4 and id(p) not in heads]
    decay = config.weight_decay
    groups = [_group(convolutions, decay), _group([*others, *weighting.parameters()], 0.0)]
    for kind, head, fan_in in model.dense_heads():
        scale = HEAD_RATES[kind] / math.sqrt(fan_in)
        groups.append(_group([head] if head.requires_grad else [], decay / scale, scale))
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, fused=True)
    for p in [p for group in optimizer.param_groups for p in group["params"]]:
        # What AdamW makes at its first step, made now: a checkpoint's tensors are known before the first one.
        optimizer.state[p] = {
            "step": torch.zeros(()),
            "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": torch.zeros_like(p),
        }
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group ``rate`` times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def optimizer_tensors(optimizer: torch.optim.Optimizer, modules: Iterable[tuple[str, nn.Module]]) -> dict[str, Tensor]:
    """The optimiser's state by parameter name: ``<module>.<parameter>.exp_avg`` and so on; the tensors themselves."""
    names = {f"{prefix}.{n}": p for prefix, module in modules for n, p in module.named_parameters()}
    state = optimizer.state
    return {f"{name}.{key}": value for name, p in names.items() if p in state for key, value in state[p].items()}


def _group(params: list[nn.Parameter], decay: float, scale: float = 1.0) -> dict[str, object]:
    return {"params": params, "weight_decay": decay, "scale": scale}
