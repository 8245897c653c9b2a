"""Kernels broken on purpose: each must fail the comparison with the reference or the checker.

Offsets counted in 32 bits are broken in `test_offsets`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.gpu import problems
from tests.gpu.comparison import assert_same, exact
from tests.gpu.problems import PROBLEMS, SMALL, Problem
from tests.gpu.triton.checker import checked
from tests.gpu.triton.mutated import mutant

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
    ("cross_entropy", "tl.where(labelled, loss * weight, 0.0)", "loss", "hybrid_loss-weighted"),
    ("hybrid_loss", "weight = tl.where(weight > 0, weight, 0.0)", "weight = weight + 1.0", "hybrid_loss-weighted"),
    ("convolution", "(iy >= 0) & (iy < height) & (ix >= 0)", "(ix >= 0)", "transition"),
    (
        "convolution",
        "value = tl.where(inside, tl.maximum(value.to(tl.float32) * a + b, 0.0), 0.0)",
        "value = tl.maximum(value.to(tl.float32) * a + b, 0.0)",
        "block",
    ),
    (
        "encode_predictions",
        'tl.where(there, values.to(tl.float32), float("-inf"))',
        "values.to(tl.float32)",
        "encode_predictions",
    ),
    ("cross_entropy", "labelled = label != IGNORED", "labelled = label >= 0", "hybrid_loss-finer"),
    ("convolution", "(there & (iy >= 0) & (iy < height)", "(there & (iy < height)", "transition"),
    ("convolution", "mask=there[:, None] & (o < outputs)", "mask=o < outputs", "transition"),
    ("lanes", "== sample, size, 0)", ">= 0, size, 0)", "integrate"),
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
    (
        "integrate",
        "y * gradient_h + z // POOL * gradient_w",
        "z // POOL * gradient_h + y * gradient_w",
        "integrate-pooled",
    ),
    (
        "cross_entropy",
        "(y * stride_h + x * stride_w)[None, :]",
        "(x * stride_h + y * stride_w)[None, :]",
        "hybrid_loss-weighted",
    ),
    ("cross_entropy", "(bottom.to(tl.int64) * stride_h)", "(bottom.to(tl.int64) * stride_w)", "hybrid_loss-finer"),
    (
        "convolution",
        "iy.to(tl.int64) * strides[s][2] + ix.to(tl.int64) * strides[s][3]",
        "ix.to(tl.int64) * strides[s][2] + iy.to(tl.int64) * strides[s][3]",
        "transition",
    ),
    (
        "convolution",
        "(iy.to(tl.int64) * stride_h + ix.to(tl.int64) * stride_w)",
        "(ix.to(tl.int64) * stride_h + iy.to(tl.int64) * stride_w)",
        "block",
    ),
    # A dropped or wrong upstream gradient.
    ("channel_moments", "found = first + second", "found = second", "channel_moments"),
    ("channel_moments", "* 2.0 / count", "* 0.0", "channel_moments"),
    (
        "encode_predictions",
        "g = tl.load(arriving, mask=inside, other=0.0).to(tl.float32)",
        "g = tl.where(inside, 1.0, 0.0)",
        "encode_predictions",
    ),
    (
        "encode_predictions",
        "mask=inside, other=0.0).to(tl.float32), 1)",
        "mask=inside) * 0.0, 1)",
        "encode_predictions",
    ),
    ("hybrid_loss", "(total * losses)", "(1.0 * losses)", "hybrid_loss-weighted"),
    (
        "transition_up",
        "torch.where(out > 0, gradient, 0)",
        "torch.where(out > 0, torch.ones_like(gradient), 0)",
        "transition",
    ),
    ("dense_block", "upstream[0].float().clone()", "torch.zeros_like(upstream[0]).float()", "block"),
    ("dense_block", "arriving[:, new] += channel_moments", "_ = channel_moments", "block"),
    ("dense_block", "of_moments[:, :, : growth * index] +=", "_ =", "block"),
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
    ("dense_block", "arriving[:, : growth * index] += found[len(of_sources)]", "pass", "block"),
    # A wrong denominator, a lost normalisation, a swapped phase.
    ("hybrid_loss", "tl.sum(sums, 0) / by", "tl.sum(sums, 0) / labelled", "hybrid_loss-weighted"),
    ("convolution", "(2 * y + o % 2)", "(2 * y + o // 2 % 2)", "transition"),
    ("convolution", "weight.flip(2, 3)", "weight", "transition"),
    ("encode_predictions", "g - tl.sum(p * g, 0)[None, :]", "g", "encode_predictions"),
    # A race.
    ("lanes", "result + sample.to(tl.int64) * size + index", "result + index", "integrate"),
    (
        "channel_moments",
        "target = (lane * blocks + tl.program_id(1)) * channels + c",
        "target = tl.program_id(1) * channels + c",
        "channel_moments",
    ),
]


def compare(problem: Problem) -> None:
    inputs = problem.arranged(torch.float32)
    with checked(overflow=True):
        found = problems.results(problem, "triton", inputs)
    assert_same(found, exact(problem, inputs), torch.float32)


@pytest.mark.parametrize(
    ("module", "old", "new", "problem"), MUTANTS, ids=[f"{m[0]}-{m[3]}-{i}" for i, m in enumerate(MUTANTS)]
)
def test_mutant_is_caught(module: str, old: str, new: str, problem: str, tmp_path: Path) -> None:
    made = (PROBLEMS | SMALL)[problem]()
    with mutant(tmp_path / "kernels", module, old, new), pytest.raises(Exception) as caught:  # noqa: PT011
        compare(made)
    assert isinstance(caught.value, AssertionError) or "Check" in repr(caught.value) or "overflow" in repr(caught.value)


@pytest.mark.parametrize("problem", ["integrate", "hybrid_loss-weighted", "transition", "block"])
def test_an_unchanged_copy_passes(problem: str, tmp_path: Path) -> None:
    with mutant(tmp_path / "kernels", "lanes", "per_lane", "per_lane"):
        compare((PROBLEMS | SMALL)[problem]())
