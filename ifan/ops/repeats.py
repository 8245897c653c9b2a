"""A source that stands twice in a concatenation, as a skip's does, and its one gradient."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def distinct(inputs: Sequence[Tensor], firsts: Sequence[int]) -> list[Tensor]:
    """``inputs``, of which the first ones are sources, without those that stand a second time."""
    return [*(inputs[i] for i in dict.fromkeys(firsts)), *inputs[len(firsts) :]]


def collected(gradients: Sequence[Tensor], firsts: Sequence[int]) -> list[Tensor]:
    """Gradients of all inputs to those of the `distinct` ones, a repeated source's added up."""
    for gradient, first in zip(gradients, firsts, strict=False):
        if gradient is not gradients[first]:
            gradients[first].add_(gradient)
    return distinct(gradients, firsts)


def by_source(gradients: Sequence[Tensor], firsts: Sequence[int]) -> list[Tensor | None]:
    """Gradient of each source for autograd: of `collected` ones, and ``None`` for the repetitions."""
    left = iter(gradients)
    return [next(left) if first == i else None for i, first in enumerate(firsts)]
