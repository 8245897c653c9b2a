"""The cost model against what the interpreter loads and stores: equal to the byte, for every kernel."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from tests.gpu import problems
from tests.gpu.problems import PROBLEMS, SMALL, Problem
from tests.gpu.tools import gpu_cost
from tests.gpu.tools.launches import watched
from tests.gpu.triton.counter import Counted, counted
from tests.gpu.triton.mutated import mutant

LABELLED = {
    f"hybrid_loss-labelled-{finer}": partial(problems.hybrid_loss, finer, weighted=weighted, ignored=0)
    for finer, weighted in ((1, True), (2, True), (2.5, False))
}
SEVERAL_TILES = {
    "integrate-48": partial(problems.integrate, 1, 48),
    "integrate-pooled-66": partial(problems.integrate, 2, 66),
    "channel_moments-64x65": partial(problems.channel_moments, 64, 65),
}
CASES = PROBLEMS | SMALL | LABELLED | SEVERAL_TILES
SLOW = {name for name in CASES if name.startswith(("dense_block", "transition_up", "integrate-pooled-66"))}
BY_LABEL = {f"cross_entropy.{name}_kernel" for name in ("cross_entropy", "fine", "gather")}
"""Kernels that load less where a pixel is not labelled."""


def launches(problem: Problem, dtype: torch.dtype, layout: str = "contiguous") -> list[Counted]:
    """Forward and backward, counted."""
    with counted() as found:
        problems.results(problem, "triton", problem.arranged(dtype, layout))
    return found


def differences(found: list[Counted]) -> list[str]:
    return [f"{one.launch.name}: {one.moved}, not {one.predicted}" for one in found if one.moved != one.predicted]


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.full), torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.full) if n in SLOW else n for n in CASES])
def test_bytes_of_every_launch(name: str, dtype: torch.dtype) -> None:
    found = launches(CASES[name](), dtype)
    masked = [one for one in found if one.launch.name in BY_LABEL] if name in PROBLEMS else []
    assert differences([one for one in found if one not in masked]) == []
    for one in masked:
        assert all(one.moved[key] <= one.predicted[key] for key in one.moved), one.launch.name


@pytest.mark.parametrize("layout", ["channels_last", "slice"])
def test_the_memory_layout_changes_no_byte(layout: str) -> None:
    for name in ("integrate-pooled", "channel_moments", "encode_predictions"):
        assert differences(launches(PROBLEMS[name](), torch.float32, layout)) == []


def test_every_kernel_has_a_formula_and_is_counted() -> None:
    names: set[str] = set()
    for problem in (make() for name, make in CASES.items() if name not in SLOW):
        with watched(lambda launch: names.add(launch.name)):
            problems.results(problem, "triton", problem.arranged(torch.bfloat16))
    assert names == set(gpu_cost.FORMULAS)


def test_costs_add_up() -> None:
    found = [gpu_cost.cost(one.launch) for one in launches(PROBLEMS["integrate"](), torch.float32)]
    total = sum(found, gpu_cost.NOTHING)
    assert total.launches == len(found) == 7
    assert total.moved == sum(one.read + one.written for one in found)


AGAIN = [
    (
        "integrate",
        "integrate",
        "y = tl.maximum(tl.load(source, mask=inside, other=0.0).to(tl.float32) * s + t, 0.0)",
        "y = tl.maximum(tl.load(source, mask=inside, other=0.0).to(tl.float32) * s + t, 0.0)\n"
        "    tl.load(source, mask=inside, other=0.0)",
    ),
    (
        "channel_moments",
        "channel_moments",
        "away = tl.where(inside, value - mean[:, None], 0.0)",
        "away = tl.where(inside, tl.load(source, mask=inside, other=0.0).to(tl.float32) - mean[:, None], 0.0)",
    ),
    (
        "transition",
        "convolution",
        "value = tl.load(base + place, mask=inside, other=0.0)",
        "value = (tl.load(base + place, mask=inside, other=0.0) + tl.load(base + place, mask=inside, other=0.0)) * 0.5",
    ),
    ("hybrid_loss-labelled-1", "cross_entropy", "tl.store(sums + 1, tl.sum(weight, 0))", "tl.store(sums, 0.0)"),
    (
        "encode_predictions",
        "encode_predictions",
        "tl.store(target, disc.to(planes.dtype.element_ty), mask=pixel < size * size)",
        "tl.store(target, disc.to(planes.dtype.element_ty), mask=pixel < size)",
    ),
]
"""Kernels that read their input twice, or write less or more than they should."""


@pytest.mark.parametrize(("problem", "module", "old", "new"), AGAIN, ids=[mutant[0] for mutant in AGAIN])
def test_a_kernel_that_moves_other_bytes_is_caught(
    problem: str, module: str, old: str, new: str, tmp_path: Path
) -> None:
    made = CASES[problem]()
    with mutant(tmp_path / "kernels", module, old, new):
        assert differences(launches(made, torch.float32)) != []
