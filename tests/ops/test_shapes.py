"""Every operation's kernel against its reference in float64, at shapes, dtypes and layouts drawn by hypothesis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ifan.ops import channel_moments, encode_predictions, hybrid_loss
from tests.support.cases import LAYOUTS, VECTOR_ERROR, arrange, gradients, needs_cpu, outputs_of
from tests.support.flat import dense_block, integrate, transition_up
from tests.support.tolerances import assert_close

pytestmark = needs_cpu

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
SIDES = st.sampled_from([1, 2, 3, 7, 16, 17, 33])
COUNTS = st.integers(0, 3)
SEGMENTS = st.lists(st.integers(0, 2), min_size=1, max_size=3)
LAYOUT = st.sampled_from(LAYOUTS)
drawn = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def random(*shape: int, dtype: torch.dtype, layout: str = "contiguous", positive: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    values = torch.randn(shape, generator=generator)
    values = (values.abs() + 0.5 if positive else values).to(dtype)
    return (arrange(values, layout) if len(shape) == 4 else values).requires_grad_()


def compare(run: Callable[..., Any], inputs: Sequence[Tensor]) -> None:
    """Outputs and gradients of the kernel have the reference's dtypes, and its float64 values but for rounding."""
    exact = [value.detach().double().requires_grad_() for value in inputs]
    ways = (("cpu", inputs), ("reference", exact), ("reference", inputs))
    found, truth, usual = (outputs_of(run(backend, *values)) for backend, values in ways)
    low = max((value.dtype for value in inputs), key=lambda dtype: torch.finfo(dtype).eps)
    for actual, expected, eager in zip(found, truth, usual, strict=True):
        assert (actual.shape, actual.dtype) == (expected.shape, eager.dtype)
        assert_close(actual, expected, 1000, low)
    if not any(value.requires_grad for value in found):
        return
    ours, theirs = (gradients(lambda *v, b=b: run(b, *v), values) for b, values in ways[:2])
    for value, actual, expected in zip(inputs, ours, theirs, strict=True):
        assert (actual.shape, actual.dtype) == (value.shape, value.dtype)
        norm = float(expected.norm())
        assert float((actual.double() - expected).norm()) <= 3 * VECTOR_ERROR[low] * norm + 1e-3 * torch.finfo(low).eps


@drawn
@given(SEGMENTS, COUNTS, SIDES, SIDES, DTYPES, LAYOUT)
def test_channel_moments(
    segments: list[int], channels: int, height: int, width: int, dtype: torch.dtype, layout: str
) -> None:
    x = random(sum(segments), channels, height, width, dtype=dtype, layout=layout)
    compare(lambda backend, value: channel_moments(value, segments, backend=backend), [x])


@drawn
@given(SEGMENTS, st.lists(COUNTS, min_size=1, max_size=3), SIDES, SIDES, st.booleans(), DTYPES, LAYOUT)
def test_integrate(
    segments: list[int], channels: list[int], height: int, width: int, pool: bool, dtype: torch.dtype, layout: str
) -> None:
    assume(sum(channels))  # PyTorch does not pool or convolve maps without channels
    sides = (2 * height, 2 * width) if pool else (height, width)
    sources = [random(sum(segments), c, *sides, dtype=dtype, layout=layout) for c in channels]
    values = [random(len(segments), sum(channels), dtype=dtype, positive=i in (0, 3)) for i in range(4)]

    def run(backend: str, *v: Tensor) -> Tensor:
        return integrate(v[:-4], *v[-4:], segments, pool=1 + pool, backend=backend)

    compare(run, [*sources, *values])


@drawn
@given(SEGMENTS, st.lists(COUNTS, min_size=1, max_size=2), SIDES, SIDES, DTYPES, LAYOUT)
def test_dense_block(
    segments: list[int], channels: list[int], height: int, width: int, dtype: torch.dtype, layout: str
) -> None:
    assume(sum(channels))
    widths = [sum(channels), sum(channels) + 4]
    sources = [random(sum(segments), c, height, width, dtype=dtype, layout=layout) for c in channels]
    weights = [random(4, width_of, 3, 3, dtype=dtype) for width_of in widths]
    norms = [random(len(segments), w, dtype=dtype, positive=i in (0, 3)) for i in range(4) for w in widths]
    count = len(sources)

    def run(backend: str, *v: Tensor) -> tuple[Tensor, ...]:
        rest = [v[i : i + 2] for i in range(count, len(v), 2)]
        return dense_block(v[:count], *rest, segments, backend=backend)[:1]

    compare(run, [*sources, *[w.detach().mul(0.2).requires_grad_() for w in weights], *norms])


@drawn
@given(st.integers(0, 2), st.lists(COUNTS, min_size=1, max_size=2), SIDES, SIDES, DTYPES, LAYOUT)
def test_transition_up(
    lanes: int, channels: list[int], height: int, width: int, dtype: torch.dtype, layout: str
) -> None:
    assume(sum(channels))
    sources = [random(lanes, c, height, width, dtype=dtype, layout=layout) for c in channels]
    weights = [random(8, sum(channels), 3, 3, dtype=dtype), random(5, 2, 3, 3, dtype=dtype)]

    def run(backend: str, *v: Tensor) -> Tensor:
        return transition_up(v[:-2], *v[-2:], backend=backend)

    compare(run, [*sources, *[w.detach().mul(0.2).requires_grad_() for w in weights]])


@drawn
@given(COUNTS, COUNTS, COUNTS, st.lists(st.integers(1, 3), max_size=2), SIDES, DTYPES, LAYOUT)
def test_encode_predictions(
    batch: int, classes: int, count: int, sizes: list[int], side: int, dtype: torch.dtype, layout: str
) -> None:
    parsing = random(batch, classes, side, side, dtype=dtype, layout=layout)
    points, heads = random(batch, 2, count, dtype=dtype).detach(), random(batch, sum(sizes), dtype=dtype)

    def run(backend: str, a: Tensor, *b: Tensor) -> Tensor:
        return encode_predictions(a, points, b[0] if b else heads, sizes, 2, backend=backend)

    compare(run, [parsing, heads] if sizes else [parsing])


@drawn
@given(
    COUNTS, COUNTS, SIDES, SIDES, SIDES, SIDES, COUNTS, COUNTS, st.lists(st.integers(1, 3), max_size=2), DTYPES, LAYOUT
)
def test_hybrid_loss(
    images: int, classes: int, height: int, width: int, tall: int, wide: int, rows: int, count: int, sizes: list[int],
    dtype: torch.dtype, layout: str,
) -> None:  # fmt: skip
    tasks = int(classes > 0) + int(count > 0) + len(sizes)
    assume(tasks)
    generator = torch.Generator().manual_seed(images + height)
    target = torch.randint(0, classes + 1, (images, tall, wide), generator=generator, dtype=torch.uint8)
    labels = [torch.randint(-1, size, (rows,), generator=generator) for size in sizes]
    places, weight = torch.rand(rows, 2, count, generator=generator), torch.rand(rows, count, generator=generator)
    everything = [
        random(images, classes, height, width, dtype=dtype, layout=layout),
        random(rows, 2, count, dtype=dtype),
        random(rows, sum(sizes), dtype=dtype),
        random(tasks, dtype=dtype),
    ]

    present = [i for i, there in enumerate((classes, count, sizes, tasks)) if there]

    def run(backend: str, *values: Tensor) -> list[Tensor]:
        given = dict(zip(present, values, strict=True))
        parsing, points, heads, task_weights = (given.get(i, value) for i, value in enumerate(everything))
        return list(
            hybrid_loss(
                parsing, torch.where(target == classes, 255, target), points, places, weight, heads,
                torch.stack(labels, 1) if labels else torch.zeros(rows, 0, dtype=torch.int64), sizes, task_weights,
                parsing_smoothing=0.1, backend=backend,
            )[:2]
        )  # fmt: skip

    compare(run, [everything[i] for i in present])
