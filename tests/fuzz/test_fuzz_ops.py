"""Hostile arguments of the registered operations: an error, or what the reference makes of them.

Called directly, as ``torch.ops.ifan.NAME``, and compiled. ``make sanitize`` says whether memory was kept to.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support import flat
from tests.support.cases import compiled, needs_cpu
from tests.support.damage import CASES, chance_of
from tests.support.losses import batch, registered
from tests.support.tolerances import assert_close

WHOLE = (-(2**62), -1, 0, 1, 2, 3, 7, 100, 2**31, 2**62)
REAL = (float("nan"), float("inf"), -1.0, 0.0, 1e-3, 1e30)
ROWS = torch.tensor([1, 0, 1])
PUBLIC = {"integrate": 1, "dense_block": 1, "transition_up": 1, "encode_predictions": 1, "hybrid_loss": 2}
"""Results of an operation that do not depend on the backend: some also return what their backward needs."""


def tensor_like(value: Tensor, chance: random.Random) -> Tensor:
    """Another shape, layout, type or other values."""
    turn = chance.randrange(7)
    axis = chance.randrange(max(value.dim(), 1))
    if turn == 0 and value.dim():
        return value.narrow(axis, 0, chance.randrange(value.shape[axis] + 1))
    if turn == 1 and value.dim():
        return torch.cat([value, value], axis)
    if turn == 2:
        return (
            value[None] if chance.random() < 0.5 or not value.dim() else value.select(axis, 0) if len(value) else value
        )
    if turn == 3:
        return value.to(
            chance.choice((torch.float64, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool))
        )
    if turn == 4 and value.dim() > 1:
        return value.transpose(axis, axis - 1)
    if turn == 5 and value.numel():
        changed = value.clone(memory_format=torch.contiguous_format)
        places = WHOLE if not value.is_floating_point() else REAL
        flat_view = changed.reshape(-1)
        try:
            flat_view[chance.randrange(len(flat_view))] = chance.choice(places)
        except RuntimeError:  # beyond a narrow type
            return value
        return changed
    return value.repeat_interleave(2, -1)[..., ::2] if value.dim() else value  # the same, with gaps


def hostile(value: Any, chance: random.Random) -> Any:
    """``value`` of a call, one thing in it changed."""
    if isinstance(value, Tensor):
        return tensor_like(value, chance)
    if isinstance(value, (list, tuple)) and value:
        at, turn = chance.randrange(len(value)), chance.randrange(5)
        items = list(value)
        if turn == 0:
            return items[:at] + items[at + 1 :]
        if turn == 1:
            return [*items, items[at]]
        items[at] = hostile(items[at], chance)
        return items
    if isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return chance.choice(WHOLE)
    return chance.choice(REAL) if isinstance(value, float) else value


def arguments() -> dict[str, tuple[Any, ...]]:
    """A right call of each operation; the last argument is the backend."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    norm, x = [rand(1, 3) + 0.5 for _ in range(4)], rand(2, 3, 8, 8)
    groups = [[value] for value in norm]
    return {
        "integrate": flat.integrate_arguments([x], *norm, [3], ROWS, [True], 1, 1e-3, "cpu"),
        "dense_block": flat.dense_block_arguments([x], [rand(4, 3, 3, 3)], *groups, [3], ROWS, [True], 1e-3, "cpu"),
        "transition_up": flat.transition_up_arguments([x], rand(4, 3, 3, 3), rand(2, 1, 3, 3), ROWS, [True], "cpu"),
        "encode_predictions": (rand(2, 1, 8, 8), rand(2, 2, 1) - 0.5, rand(2, 3), [3], 2, "cpu"),
        "hybrid_loss": registered("cpu", **batch(torch.float32)),
    }


def answer(name: str, given: tuple[Any, ...]) -> list[Tensor] | None:
    """What the operation returns, ``None`` for an error that it may raise."""
    try:
        found = getattr(torch.ops.ifan, name)(*given)
    except (ValueError, RuntimeError, TypeError, IndexError):
        return None
    flattened: list[Tensor] = []
    for value in found if isinstance(found, (list, tuple)) else [found]:
        flattened += value if isinstance(value, (list, tuple)) else [value]
    return flattened


def finite(value: Any) -> bool:
    """True if no number in ``value`` makes rounding differ much."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool((value.abs() < 1e3).all())
    if isinstance(value, (list, tuple)):
        return all(map(finite, value))
    return not isinstance(value, float) or abs(value) < 1e3


@needs_cpu
@pytest.mark.parametrize("name", arguments())
def test_hostile_calls_give_an_error_or_the_reference(name: str) -> None:
    chance, right = chance_of(name), arguments()[name]
    assert answer(name, right) is not None
    refused = equal = 0
    for _ in range(CASES):
        given = list(right)
        for _ in range(chance.choice((1, 1, 2))):
            at = chance.randrange(len(given) - 1)
            given[at] = hostile(given[at], chance)
        found = answer(name, tuple(given))
        if found is None:
            refused += 1
            continue
        expected = answer(name, (*given[:-1], "reference"))
        if expected is None:  # PyTorch has no convolution without filters
            assert found[0].numel() == 0, f"the reference refuses {given}"
            continue
        for ours, theirs in list(zip(found, expected, strict=False))[: PUBLIC[name]]:
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), given
            if finite(given) and theirs.isfinite().all():
                # Of arguments of mixed types some reach the kernels in single precision.
                assert_close(ours, theirs, 10_000, torch.float32 if ours.dtype == torch.float64 else None)
        equal += 1
    assert refused
    assert equal


OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "integrate": lambda x, rows: flat.integrate([x], *[torch.ones(1, 3)] * 4, [3], rows, [True], backend="cpu"),
    "transition_up": lambda x, rows: flat.transition_up(
        [x], torch.ones(4, 3, 3, 3), torch.ones(2, 1, 3, 3), rows, [True], backend="cpu"
    ),
}


@needs_cpu
@pytest.mark.parametrize("name", OPS)
def test_compiled_calls_refuse_rows_out_of_range(name: str) -> None:
    chance, x = chance_of(name, "compiled"), torch.rand(2, 3, 8, 8)
    call = compiled(OPS[name])
    for _ in range(CASES):
        rows = torch.tensor([chance.choice((0, 1, 0, 1, chance.choice(WHOLE))) for _ in range(3)])
        if bool(((rows == 0) | (rows == 1)).all()):
            assert torch.equal(call(x, rows), OPS[name](x, rows))
        else:
            with pytest.raises(ValueError, match=r"rows must be in 0\.\.1; got"):
                call(x, rows)
