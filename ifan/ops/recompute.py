"""The backward of an operation whose forward ran the reference: run it again and differentiate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def gradients(function: Callable[..., Any], inputs: Sequence[Tensor], upstream: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of ``function(*inputs)`` with respect to each input, for the outputs' gradients ``upstream``.

    Contiguous, no two of them sharing memory. `torch.func.vjp` records where ordinary autograd is switched off, as it
    is inside the body of a custom operation.
    """
    pull_back = torch.func.vjp(lambda *values: tuple(function(*values)), *[value.detach() for value in inputs])[1]
    return [gradient.clone(memory_format=torch.contiguous_format) for gradient in pull_back(tuple(upstream))]


def empty_gradients(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Result of `gradients` for fake tensors."""
    return [torch.empty_like(value, memory_format=torch.contiguous_format) for value in inputs]
