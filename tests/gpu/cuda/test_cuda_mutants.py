"""CUDA kernels broken on purpose: each must fail the comparison with the reference in some order of threads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.gpu.comparison import check
from tests.gpu.emulation.build import (
    LAGGING,
    ORDERS,
    SOURCES,
    compile_kernel,
    emulated,
    link,
    mutated_sources,
    needs_compiler,
)
from tests.gpu.problems import PROBLEMS, hybrid_loss
from tests.support import flat
from tests.support.tolerances import assert_no_worse

pytestmark = needs_compiler
MUTANTS = [
    # A missing barrier.
    (
        "hybrid_loss",
        "device.h",
        "  __syncthreads();\n  if (threadIdx.x == 0)",
        "  if (threadIdx.x == 0)",
        "hybrid_loss-finer",
    ),
    ("hybrid_loss", "device.h", "  __syncthreads();  // the array may be written again", "", "hybrid_loss-many"),
    ("dense_block", "dense_block.cu", "      __syncthreads();\n      multiply", "      multiply", "dense_block"),
    (
        "dense_block",
        "dense_block.cu",
        "      __syncthreads();  // before the next channels overwrite these",
        "",
        "dense_block",
    ),
    # A missing mask: of unlabelled points and pixels, of values the ReLU stopped, of pixels outside the map.
    ("hybrid_loss", "hybrid_loss.cu", "if (weight > 0.f) {", "{", "hybrid_loss-weighted"),
    ("hybrid_loss", "hybrid_loss.cu", "if (label == kUnlabelled) continue;", "", "hybrid_loss-finer"),
    ("integrate", "integrate.cu", "by.shift > 0.f ?", "by.shift < INFINITY ?", "integrate"),
    ("dense_block", "dense_block.cu", "if (y >= 0 && y < call.height", "if (y < call.height", "dense_block"),
    # A swapped stride.
    (
        "integrate",
        "integrate.cu",
        "row * call.stride[0] + channel * call.stride[1]",
        "row * call.stride[1] + channel * call.stride[0]",
        "integrate",
    ),
    (
        "hybrid_loss",
        "hybrid_loss.cu",
        "base += y * call.stride[2] + x * call.stride[3]",
        "base += y * call.stride[3] + x * call.stride[2]",
        "hybrid_loss-weighted",
    ),
    # A dropped or wrong upstream gradient.
    (
        "hybrid_loss",
        "hybrid_loss.cu",
        "call.task_weights[task] + call.of_losses[task]",
        "call.task_weights[task]",
        "hybrid_loss-weighted",
    ),
    ("integrate", "integrate.cu", "? arriving[j / POOL] *", "?", "integrate-pooled"),
    # A wrong denominator, lanes lost by a sample's gradient, a fragment's halves exchanged.
    (
        "hybrid_loss",
        "hybrid_loss.cu",
        "call.denominators ? call.denominators[task] : sums.b",
        "sums.b",
        "hybrid_loss-weighted",
    ),
    ("integrate", "integrate.cu", "gradient[k][i][j] += d", "gradient[k][i][j] = d", "integrate"),
    (
        "dense_block",
        "dense_block.cu",
        "{from[0], later[0], from[4], later[4]}",
        "{from[0], from[4], later[0], later[4]}",
        "dense_block",
    ),
]


def compare(problem: str) -> None:
    """The comparison with the reference; in half precision for a dense layer, which takes no other."""
    if problem == "hybrid_loss-many":  # more blocks than a warp has threads
        return check(hybrid_loss(16))
    if problem != "dense_block":
        return check(PROBLEMS[problem]())
    torch.manual_seed(0)
    channels = 41  # three times as many as are multiplied at once
    x, weight = torch.randn(2, channels, 9, 7).half(), torch.randn(5, channels, 3, 3).half()
    norm = [[torch.rand(1, channels) + 0.5] for _ in range(4)]
    found = flat.dense_block([x], [weight], *norm, [2], backend="cuda")[0]
    eager = flat.dense_block([x], [weight], *norm, [2], backend="reference")[0]
    return assert_no_worse(
        found, eager, flat.dense_block([x.double()], [weight.double()], *norm, [2], backend="reference")[0]
    )


def fails(module: Path, order: str, problem: str) -> bool:
    """Whether the comparison does, in a process of its own: a broken kernel may write anywhere, or die."""
    child = os.fork()
    if child == 0:  # never returns into pytest
        code = 2
        try:
            torch.set_num_threads(1)  # PyTorch's other threads do not survive the fork
            with emulated(module, order):
                compare(problem)
            code = 0
        except AssertionError:
            code = 1
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code < 2, "the comparison itself is broken"
    return code != 0  # negative: killed by a signal


@pytest.mark.parametrize(
    ("kernel", "name", "old", "new", "problem"),
    MUTANTS,
    ids=[f"{mutant[0]}-{index}" for index, mutant in enumerate(MUTANTS)],
)
def test_mutant_is_caught(
    kernel: str, name: str, old: str, new: str, problem: str, emulation_objects: dict[str, Path], tmp_path: Path
) -> None:
    sources = mutated_sources(tmp_path / "cuda", name, old, new)
    broken = compile_kernel(sources / f"{kernel}.cu", tmp_path / "broken.o", "-O0", "-Wno-error")
    # First, so that its copy of an inline function is the one that is linked.
    module = link([broken, *(made for of, made in emulation_objects.items() if of != kernel)], tmp_path / "module")
    assert any(fails(module, order, problem) for order in (*ORDERS, LAGGING))


@pytest.mark.parametrize("problem", ["integrate", "hybrid_loss-many", "dense_block"])
def test_an_unchanged_copy_passes(problem: str, emulation_objects: dict[str, Path], tmp_path: Path) -> None:
    kernel = problem.split("-")[0]
    copied = compile_kernel(SOURCES / f"{kernel}.cu", tmp_path / "copied.o", "-O0")
    module = link([*(made for of, made in emulation_objects.items() if of != kernel), copied], tmp_path / "module")
    for order in ("fwd", LAGGING):
        with emulated(module, order):
            compare(problem)
