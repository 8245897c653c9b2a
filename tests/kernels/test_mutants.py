"""Kernels broken on purpose: each must fail the comparison with the reference or the checker."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ifan.kernels
import problems
import pytest
import torch
from checker import checked
from problems import PROBLEMS, Problem
from test_values import assert_same, exact

MUTANTS = [
    # A missing mask.
    (
        "integrate",
        "tl.load(source, mask=inside, other=0.0).to(tl.float32) * s + t",
        "tl.load(source).to(tl.float32) * s + t",
        "integrate",
    ),
    (
        "channel_moments",
        "away = tl.where(inside, value - mean[:, None], 0.0)",
        "away = value - mean[:, None]",
        "channel_moments",
    ),
    ("hybrid_loss", "tl.where(labelled, loss * weight, 0.0)", "loss", "hybrid_loss-weighted"),
    ("hybrid_loss", "weight = tl.where(weight > 0, weight, 0.0)", "weight = weight + 1.0", "hybrid_loss-weighted"),
    ("convolution", "(iy >= 0) & (iy < height) & (ix >= 0)", "(ix >= 0)", "transition_up"),
    (
        "convolution",
        "value = tl.where(inside, tl.maximum(value.to(tl.float32) * a + b, 0.0), 0.0)",
        "value = tl.maximum(value.to(tl.float32) * a + b, 0.0)",
        "dense_block-batch",
    ),
    # A swapped or wrong stride.
    (
        "channel_moments",
        "(pixel // width).to(tl.int64) * stride_h",
        "(pixel // width).to(tl.int64) * stride_w",
        "channel_moments",
    ),
    (
        "encode_predictions",
        "c * target_c + y * target_h + x * target_w",
        "c * target_c + x * target_h + y * target_w",
        "encode_predictions",
    ),
    ("integrate", "row * stride_n + c * stride_c", "row * stride_c + c * stride_n", "integrate"),
    # A dropped or wrong upstream gradient.
    (
        "integrate",
        "passed = tl.where(value * s + t > 0, d, 0.0)",
        "passed = tl.where(value * s + t > 0, 1.0, 0.0)",
        "integrate",
    ),
    (
        "hybrid_loss",
        "(total * task_weights.float() + of_losses) / divisors",
        "total * task_weights.float() / divisors",
        "hybrid_loss-weighted",
    ),
    ("hybrid_loss", "(value * tl.load(factor))", "(value)", "hybrid_loss-weighted"),
    ("integrate", "* (1.0 / (POOL * POOL))", "", "integrate-pooled"),
    ("dense_block", "arriving[:, : growth * layer] += found[len(sources)]", "pass", "dense_block-batch"),
    # A wrong denominator, a lost normalisation, a swapped phase.
    ("hybrid_loss", "tl.sum(sums, 0) / by", "tl.sum(sums, 0) / labelled", "hybrid_loss-weighted"),
    ("convolution", "(2 * y + o % 2)", "(2 * y + o // 2 % 2)", "transition_up"),
    ("convolution", "weight.flip(2, 3)", "weight", "transition_up"),
    ("encode_predictions", "g - tl.sum(p * g, 0)[None, :]", "g", "encode_predictions"),
    # A race, and an address counted in 32 bits.
    ("lanes", "result + sample.to(tl.int64) * size + index", "result + index", "integrate"),
    (
        "channel_moments",
        "target = (lane * blocks + tl.program_id(1)) * channels + c",
        "target = tl.program_id(1) * channels + c",
        "channel_moments",
    ),
    (
        "integrate",
        "lane = (tl.program_id(0) // tiles).to(tl.int64)",
        "lane = (tl.program_id(0) // tiles).to(tl.int32)",
        "far",
    ),
]


@contextmanager
def mutant(folder: Path, module: str, old: str, new: str) -> Iterator[None]:
    """``ifan.kernels`` with every ``old`` in one module replaced."""
    shutil.copytree(Path(ifan.kernels.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    text = (folder / f"{module}.py").read_text(encoding="utf-8")
    assert old in text, "the mutant's text is not in the kernel any more"
    (folder / f"{module}.py").write_text(text.replace(old, new), encoding="utf-8")
    kept = {name: found for name, found in sys.modules.items() if name.startswith("ifan.kernels.")}
    path = ifan.kernels.__path__
    for name in kept:
        del sys.modules[name]
    ifan.kernels.__path__ = [str(folder)]
    try:
        yield
    finally:
        ifan.kernels.__path__ = path
        for name in [name for name in sys.modules if name.startswith("ifan.kernels.")]:
            del sys.modules[name]
        sys.modules.update(kept)
        for name, found in kept.items():
            setattr(ifan.kernels, name.rsplit(".", 1)[1], found)


def compare(problem: Problem) -> None:
    inputs = problem.arranged(torch.float32)
    with checked(overflow=True):
        found = problems.results(problem, "triton", inputs)
    assert_same(found, exact(problem, inputs), torch.float32)


def far() -> Problem:
    """Lanes 2^30 values apart."""
    x = torch.empty(2**31 + 64, dtype=torch.float16).as_strided((3, 2, 4, 4), (2**30, 16, 4, 1))
    x.copy_(torch.randn(3, 2, 4, 4))
    values = [torch.rand(1, 2, dtype=torch.float64) + 0.5 for _ in range(4)]

    def run(backend: str, *v: torch.Tensor) -> torch.Tensor:
        source = x if backend == "triton" else x.double()
        return problems.ops.integrate([source], *v, [3], backend=backend).double().float()

    return Problem(values, 0, run)


@pytest.mark.parametrize(
    ("module", "old", "new", "problem"), MUTANTS, ids=[f"{m[0]}-{m[3]}-{i}" for i, m in enumerate(MUTANTS)]
)
def test_mutant_is_caught(module: str, old: str, new: str, problem: str, tmp_path: Path) -> None:
    made = far() if problem == "far" else PROBLEMS[problem]()
    with mutant(tmp_path / "kernels", module, old, new), pytest.raises(Exception) as caught:  # noqa: PT011
        compare(made)
    assert isinstance(caught.value, AssertionError) or "Check" in repr(caught.value) or "overflow" in repr(caught.value)


@pytest.mark.parametrize("problem", ["integrate", "hybrid_loss-weighted"])
def test_an_unchanged_copy_passes(problem: str, tmp_path: Path) -> None:
    with mutant(tmp_path / "kernels", "lanes", "per_lane", "per_lane"):
        compare(PROBLEMS[problem]())
