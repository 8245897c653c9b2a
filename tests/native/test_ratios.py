"""The native kernels against plain PyTorch in the same process, in turns. The floors are far below what a quiet machine
shows (`make bench`): they notice a kernel that is no longer taken or has lost its vectors, not a few per cent."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ifan import ops
from ifan.config import NetworkConfig
from ifan.engine.engine import Engine
from ifan.network import IFAN
from ifan.ops import backend_status
from tests.support import flat

pytestmark = [
    pytest.mark.skipif(
        not any(row.available for row in backend_status() if row.name == "cpu"), reason="the native module is missing"
    ),
    pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="times under a sanitizer say nothing"),
]
Run = Callable[[str], Any]
"""Runs the work on a backend."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ratio(run: Run, pairs: int = 5) -> float:
    """Median over pairs of calls, one after the other, of the reference's time over the kernels'."""
    run("cpu"), run("reference")
    ratios = []
    for _ in range(pairs):
        times = []
        for backend in ("cpu", "reference"):
            start = time.perf_counter()
            run(backend)
            times.append(time.perf_counter() - start)
        ratios.append(times[1] / times[0])
    return statistics.median(ratios)


def work(run: Run, inputs: list[Tensor]) -> Run:
    """``run``, and the gradients of those inputs that want one."""
    leaves = [x for x in inputs if x.requires_grad]

    def both(backend: str) -> None:
        out = run(backend)
        if leaves:
            torch.autograd.grad(out, leaves, torch.ones_like(out))

    return both


def leaf(gradient: bool, *shape: int) -> Tensor:
    return torch.rand(shape).add(0.5).requires_grad_(gradient)


def integrate(gradient: bool) -> Run:
    x = [leaf(gradient, 8, c, 64, 64) for c in (48, 36, 48, 21)]
    norm = [leaf(gradient, 2, 153) for _ in range(4)]
    return work(lambda backend: flat.integrate(x, *norm, [3, 5], pool=2, backend=backend), [*x, *norm])


def channel_moments(gradient: bool) -> Run:
    x = leaf(gradient, 8, 153, 64, 64)
    return work(lambda backend: ops.channel_moments(x, [3, 5], backend=backend)[1], [x])


def dense_block(gradient: bool) -> Run:
    x, weight, norm = leaf(gradient, 2, 260, 48, 48), leaf(gradient, 12, 260, 3, 3), [leaf(False, 1, 260)]
    return work(lambda b: flat.dense_block([x], [weight], norm, norm, norm, norm, [2], backend=b)[0], [x, weight])


def transition_up(gradient: bool) -> Run:
    x, a, b = leaf(gradient, 2, 152, 24, 24), leaf(gradient, 128, 152, 3, 3), leaf(gradient, 128, 32, 3, 3)
    return work(lambda backend: flat.transition_up([x], a, b, backend=backend), [x, a, b])


@pytest.mark.parametrize(
    ("make", "forward", "with_gradient"),
    [(integrate, 3, 3), (channel_moments, 1.5, 2.5), (dense_block, 1.2, 0.8), (transition_up, 1.1, 0.5)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_kernels_are_no_slower(make: Callable[[bool], Run], forward: float, with_gradient: float) -> None:
    assert ratio(make(False)) > forward
    assert ratio(make(True)) > with_gradient


def test_engine_is_faster_than_the_network() -> None:
    network = IFAN(NetworkConfig(size=64)).eval()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    engine = Engine.from_network(network, iterations=2)

    @torch.inference_mode()
    def run(backend: str) -> Any:
        if backend == "cpu":
            return engine(images.numpy())
        with ops.use_backend("reference"):
            return network(images, None, 2)

    assert ratio(run) > 1.6
