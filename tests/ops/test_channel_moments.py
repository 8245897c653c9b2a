from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from ifan import reference
from ifan.ops import by_task, channel_moments, native, with_channel_moments
from ifan.ops.channel_moments import _backward, _forward
from tests.support.cases import (
    LAYOUTS,
    NATIVE,
    SEGMENTS,
    arrange,
    assert_compiles,
    assert_double_backward_raises,
    assert_same_gradients,
    needs_cpu,
)
from tests.support.tolerances import assert_close, assert_no_worse

SHAPES = ((5, 3, 7, 9), (5, 1, 1, 1), (5, 70, 2, 2), (5, 2, 65, 67))


def naive(x: Tensor, segments: list[int]) -> tuple[Tensor, Tensor]:
    """Plain loops over tasks and channels in float64."""
    x = x.double()
    mean, var = x.new_zeros(len(segments), x.shape[1]), x.new_ones(len(segments), x.shape[1])
    start = 0
    for task, lanes in enumerate(segments):
        for channel in range(x.shape[1]):
            values = x[start : start + lanes, channel].flatten()
            if lanes:
                mean[task, channel] = values.sum() / values.numel()
                var[task, channel] = (values - mean[task, channel]).pow(2).sum() / values.numel()
        start += lanes
    return mean, var


def formula(x: Tensor, segments: list[int]) -> tuple[Tensor, Tensor]:
    """Differentiable: the moments of each task's slice by torch.var_mean."""
    parts = [torch.var_mean(part, (0, 2, 3), correction=0) for part in x.split(segments) if part.shape[0]]
    present = iter(parts)
    pairs = [next(present) if lanes else (x.new_ones(x.shape[1]), x.new_zeros(x.shape[1])) for lanes in segments]
    return torch.stack([mean for _, mean in pairs]), torch.stack([var for var, _ in pairs])


@pytest.fixture
def threads() -> Iterator[Any]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_equals_naive_loops(backend: str, layout: str, shape: tuple[int, ...]) -> None:
    x = arrange(torch.randn(shape) * 3 + 2, layout)
    for segments in SEGMENTS:
        exact, eager = naive(x, segments), reference.channel_moments(x, segments)
        for actual, eager_value, expected in zip(
            channel_moments(x, segments, backend=backend), eager, exact, strict=True
        ):
            assert actual.dtype == torch.float32
            assert_close(actual, expected)
            assert_no_worse(actual, eager_value, expected)


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_of_random_upstream(backend: str, layout: str) -> None:
    x = arrange(torch.randn(5, 33, 6, 11), layout).requires_grad_()
    for segments in SEGMENTS:
        assert_same_gradients(
            lambda v, s=segments: channel_moments(v, s, backend=backend), lambda v, s=segments: formula(v, s), [x]
        )


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_what_passes_and_of_the_moments_arrive_as_one(
    layout: str, dtype: torch.dtype, backend: str
) -> None:
    x = arrange(torch.randn(5, 33, 6, 11).to(dtype), layout).requires_grad_()
    weight = torch.randn(5, 33, 6, 11).to(dtype)
    uses: tuple[Callable[..., Any], ...] = (
        lambda x, mean, var, _: ((x * weight.to(x.dtype)).flatten(2).transpose(1, 2), mean, var),
        lambda x, mean, var, _: (x.sum() + x.square().sum(), var),
        lambda x, mean, var, _: mean,
        lambda x, mean, var, _: x * 2,
        lambda x, mean, var, parts: (x / 4, var, parts[0] / 4, parts[2] / 8),
        lambda x, mean, var, parts: (mean, parts[2] / 4),
        lambda x, mean, var, parts: (x / 4, parts[0] / 8),
        lambda x, mean, var, parts: parts[2].square(),
    )
    segments = [2, 0, 3]

    def found(x: Tensor, use: Callable[..., Any]) -> Any:
        *values, parts = with_channel_moments(x, segments, backend=backend)
        return use(*values, parts or x.split(segments))

    def expected(x: Tensor, use: Callable[..., Any]) -> Any:
        return use(x, *formula(x, segments), x.split(segments))

    for use in uses:
        assert_same_gradients(lambda v, use=use: found(v, use), lambda v, use=use: expected(v, use), [x])


@needs_cpu
@pytest.mark.parametrize("side", [256, 259])
def test_gradients_of_maps_larger_than_the_caches(side: int) -> None:
    """From 16 MB on they are stored past the caches, where planes are whole vectors."""
    x, weight = torch.randn(2, 33, side, side, requires_grad=True), torch.randn(2, 33, side, side)
    passing, mean, var, parts = with_channel_moments(x, [1, 1], backend="cpu")
    assert parts is not None
    pixels, uses = side * side, ([passing * weight, parts[1].sum()], [])
    for use in uses:
        (found,) = torch.autograd.grad([*use, mean, var], [x], [torch.ones_like(v) for v in [*use, mean, var]], True)
        value = x.detach().double()
        expected = (1 + 2 * (value - value.mean((2, 3), True))) / pixels
        if use:
            expected += weight
            expected[1:] += 1
        assert_close(found, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_a_whole_and_of_the_lanes_of_tasks_arrive_as_one(layout: str) -> None:
    x, segments = arrange(torch.randn(5, 3, 6, 11), layout).requires_grad_(), [2, 0, 3]
    weight = torch.randn(5, 3, 6, 11)
    for use in (
        lambda x, parts: (x * weight, parts[2].square()),
        lambda x, parts: x.square(),
        lambda x, parts: (parts[0] * 2, parts[2] * 3),
        lambda x, parts: (x.sum(), x.sum() * 2, parts[0].sum()),
    ):
        assert_same_gradients(
            lambda v, use=use: use(*by_task(v, segments)), lambda v, use=use: use(v, v.split(segments)), [x]
        )
    assert by_task(x.detach(), segments)[1] is None


@needs_cpu
@pytest.mark.parametrize("offset", [0, 3, 100, 10000])
def test_native_error_is_at_most_twice_eager(offset: float) -> None:
    x = (torch.randn(6, 5, 65, 66) + offset).requires_grad_()
    exact = naive(x.detach(), [2, 4])
    ours, eager = channel_moments(x, [2, 4], backend="cpu"), reference.channel_moments(x, [2, 4])
    for actual, eager_value, expected in zip(ours, eager, exact, strict=True):
        assert_no_worse(actual.detach(), eager_value.detach(), expected)


@pytest.mark.parametrize("backend", NATIVE)
def test_bfloat16_is_summed_in_float32(backend: str) -> None:
    for layout in LAYOUTS:
        x = arrange((torch.randn(5, 6, 40, 41) + 1).bfloat16(), layout).requires_grad_()
        for actual, expected in zip(
            channel_moments(x, [2, 3], backend=backend), naive(x.detach(), [2, 3]), strict=True
        ):
            assert actual.dtype == torch.float32
            assert_close(actual, expected)
        assert_same_gradients(lambda v: channel_moments(v, [2, 3], backend=backend), lambda v: formula(v, [2, 3]), [x])


@pytest.mark.parametrize("backend", NATIVE)
def test_empty_segments_and_empty_batch(backend: str) -> None:
    x = torch.randn(0, 4, 3, 3, requires_grad=True)
    mean, var = channel_moments(x, [0, 0], backend=backend)
    assert torch.equal(mean, torch.zeros(2, 4))
    assert torch.equal(var, torch.ones(2, 4))
    assert torch.autograd.grad(mean.sum() + var.sum(), x)[0].shape == x.shape
    assert channel_moments(torch.randn(2, 0, 3, 3), [2], backend=backend)[0].shape == (1, 0)


@pytest.mark.parametrize("backend", NATIVE)
def test_constant_channel_has_zero_variance(backend: str) -> None:
    mean, var = channel_moments(torch.full((3, 2, 31, 33), 0.1), [3], backend=backend)
    assert_close(mean, torch.full((1, 2), 0.1))
    assert float(var.min()) >= 0
    assert float(var.max()) < 1e-12


def test_gradcheck() -> None:
    x = torch.randn(4, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: _forward(v, [1, 0, 3], "reference"), x)
    assert torch.autograd.gradcheck(lambda v: channel_moments(v, [1, 0, 3], backend="reference"), x)


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("layout", ["channels_last", "slice"])
def test_opcheck(backend: str, layout: str) -> None:
    opcheck(_forward.registered, (arrange(torch.randn(4, 3, 2, 5), layout).requires_grad_(), [1, 0, 3], backend))


@needs_cpu
def test_opcheck_of_native_backward() -> None:
    moments = [torch.randn(3, 3) for _ in range(3)]
    x = arrange(torch.randn(4, 3, 2, 5), "slice")
    opcheck(_backward.registered, (moments[0], moments[1], x, moments[2], [1, 0, 3], "cpu"))


@pytest.mark.parametrize("backend", NATIVE)
def test_compiles_as_one_graph(backend: str) -> None:
    assert_compiles(
        lambda v: channel_moments(v * 2, [1, 0, 3], backend=backend), [torch.randn(4, 3, 2, 5).requires_grad_()]
    )


@pytest.mark.full
def test_compiles_with_inductor() -> None:
    x = torch.randn(4, 3, 2, 5).requires_grad_()
    assert_compiles(lambda v: channel_moments(v.sin(), [1, 0, 3])[1].exp(), [x], backend="inductor")


@needs_cpu
def test_double_backward_raises() -> None:
    x = torch.randn(4, 3, 2, 5, requires_grad=True)
    assert_double_backward_raises(lambda v: channel_moments(v, [4], backend="cpu"), x)
    assert_double_backward_raises(lambda v: with_channel_moments(v, [4], backend="cpu")[:3], x)
    assert_double_backward_raises(lambda v: by_task(v * 1, [4])[0].square(), x)


@needs_cpu
@pytest.mark.parametrize("layout", LAYOUTS)
def test_native_bits_do_not_depend_on_threads(layout: str, threads: Any) -> None:
    x = arrange(torch.randn(4, 40, 33, 33), layout).requires_grad_()
    seen = []
    for count in (1, 2, 3, 1):
        threads(count)
        moments = channel_moments(x, [1, 3], backend="cpu")
        seen.append([*moments, *torch.autograd.grad([m.square().sum() for m in moments], x)])
    assert all(torch.equal(a, b) for later in seen[1:] for a, b in zip(seen[0], later, strict=True))


@needs_cpu
@pytest.mark.parametrize("layout", LAYOUTS)
def test_native_writes_every_element(layout: str) -> None:
    x, module = arrange(torch.randn(5, 35, 7, 9), layout), native.cpu_module()
    mean, var = torch.full((3, 35), torch.nan), torch.full((3, 35), torch.nan)
    arguments = (x.data_ptr(), "float32", x.shape, x.stride(), [2, 0, 3])
    module.channel_moments_forward(*arguments, mean.data_ptr(), var.data_ptr(), 2)
    assert not mean.isnan().any()
    assert not var.isnan().any()
    gradient = torch.full_like(x, torch.nan)
    values = (mean.data_ptr(), mean.data_ptr(), var.data_ptr(), gradient.data_ptr(), gradient.stride())
    module.channel_moments_backward(*arguments, *values, 0, 2)
    assert not gradient.isnan().any()


@needs_cpu
def test_every_instruction_set_agrees() -> None:
    module, x = native.cpu_module(), torch.randn(5, 40, 65, 66)
    for dtype in (torch.float32, torch.bfloat16):
        for layout in LAYOUTS:
            y = arrange(x.to(dtype), layout).requires_grad_()
            before = module.features()["isa"]
            try:
                for isa in module.features()["supported"]:
                    module.use_isa(isa)
                    for actual, expected in zip(
                        channel_moments(y, [2, 3], backend="cpu"), formula(y.detach().double(), [2, 3]), strict=True
                    ):
                        assert_close(actual.detach(), expected)
            finally:
                module.use_isa(before)


@needs_cpu
def test_callers_at_once_and_forked_children_get_the_same(threads: Any) -> None:
    threads(3)
    x = torch.randn(4, 40, 33, 33)
    expected = channel_moments(x, [4], backend="cpu")
    with ThreadPoolExecutor(4) as executor:
        found = list(executor.map(lambda _: channel_moments(x, [4], backend="cpu"), range(16)))
    assert all(torch.equal(mean, expected[0]) and torch.equal(var, expected[1]) for mean, var in found)
    child = os.fork()
    if child == 0:  # never returns into pytest
        mean, var = torch.empty(1, 40), torch.empty(1, 40)
        arguments = (x.data_ptr(), "float32", x.shape, x.stride(), [4], mean.data_ptr(), var.data_ptr(), 3)
        native.cpu_module().channel_moments_forward(*arguments)
        os._exit(0 if torch.equal(mean, expected[0]) and torch.equal(var, expected[1]) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_bad_input_is_refused() -> None:
    x = torch.randn(4, 3, 2, 2)
    for bad, segments, message in (
        (x[0], [4], "x must be (N, C, H, W)"),
        (x.long(), [4], "floating point"),
        (x, [1, 2], "summing to N = 4"),
        (x, [5, -1], "none negative"),
        (x[..., :0], [4], "H and W of at least 1"),
    ):
        with pytest.raises(ValueError, match=r"^channel_moments: ") as error:
            channel_moments(bad, segments)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
