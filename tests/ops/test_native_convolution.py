"""The native kernels of dense_block and transition_up, which share one 3x3 convolution by Winograd's F(4x4, 3x3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from ifan.ops import BackendError, native
from ifan.ops.backends.cpu import convolution as convolution_module
from ifan.ops.dense_block import _forward as dense_block_op
from ifan.ops.transition_up import _forward as transition_up_op
from tests.support.cases import arrange, assert_compiles, gradients, needs_cpu, outputs_of
from tests.support.flat import dense_block, dense_block_arguments, transition_up, transition_up_arguments

pytestmark = needs_cpu

ROWS = torch.tensor([2, 0, 1, 1, 0])
SEGMENTS = [2, 0, 3]
ERROR = 3e-6
"""Largest relative L2 error against float64: about four times that of direct convolution for one layer. Over the whole
network the two are equal, since what dominates there is the rounding of the layers before."""


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    module = native.cpu_module()
    if request.param not in module.features()["supported"]:
        pytest.skip(f"this processor has no {request.param}")
    before = module.features()["isa"]
    module.use_isa(request.param)
    yield request.param
    module.use_isa(before)


def error(actual: Tensor, exact: Tensor) -> float:
    return float((actual.double() - exact).norm() / exact.norm().clamp_min(1e-30))


def block_inputs(
    size: tuple[int, int], layers: int, growth: int = 12, channels: tuple[int, int] = (7, 6)
) -> list[Tensor]:
    """Two sources, then per layer a weight, gammas, betas, means and variances, float32; the second source has a row a
    sample."""
    widths = [sum(channels) + growth * layer for layer in range(layers)]
    sources = [torch.randn(5, channels[0], *size), torch.randn(3, channels[1], *size)]
    weights = [torch.randn(growth, w, 3, 3) / (3 * w**0.5) for w in widths]
    norms = [f(3, w) for f in (torch.randn, torch.randn, torch.randn) for w in widths]
    return [v.requires_grad_() for v in (*sources, *weights, *norms, *(torch.rand(3, w) + 0.5 for w in widths))]


def block(values: Sequence[Tensor], backend: str, batch_statistics: bool = False) -> tuple[Tensor, ...]:
    layers = (len(values) - 2) // 5
    groups = [list(values[2 + layers * i : 2 + layers * (i + 1)]) for i in range(5)]
    means, variances = (group[:1] if batch_statistics else group for group in groups[3:])
    outputs = dense_block(values[:2], *groups[:3], means, variances, SEGMENTS, ROWS, [False, True], backend=backend)
    return outputs if batch_statistics else outputs[:1]


def up_inputs(size: tuple[int, int], channels: tuple[int, int] = (7, 6), outputs: int = 8) -> list[Tensor]:
    sources = [torch.randn(5, channels[0], *size), torch.randn(3, channels[1], *size)]
    weights = [torch.randn(outputs, sum(channels), 3, 3) / 10, torch.randn(outputs, outputs // 4, 3, 3) / 5]
    return [v.requires_grad_() for v in (*sources, *weights)]


def up(values: Sequence[Tensor], backend: str) -> Tensor:
    return transition_up(values[:2], values[2], values[3], ROWS, [False, True], backend=backend)


def values_and_gradients(
    run: Callable[..., Any], values: Sequence[Tensor], dtype: torch.dtype, backend: str
) -> list[Tensor]:
    """The outputs of ``run(values, backend)`` and the gradients of all values that matter, for a random upstream
    gradient."""
    leaves = [v.detach().to(dtype).requires_grad_() for v in values]
    outputs = outputs_of(run(leaves, backend))
    upstream = [torch.randn(o.shape, generator=torch.Generator().manual_seed(1)).to(dtype) for o in outputs]
    found = torch.autograd.grad(outputs, leaves, upstream, allow_unused=True)
    return [*(o.detach() for o in outputs), *(g for g in found if g is not None)]


def assert_equals_reference(run: Callable[..., Any], values: Sequence[Tensor]) -> None:
    exact = values_and_gradients(run, values, torch.float64, "reference")
    for actual, expected in zip(values_and_gradients(run, values, torch.float32, "cpu"), exact, strict=True):
        assert actual.shape == expected.shape
        assert error(actual, expected) < ERROR


@pytest.mark.parametrize("size", [(16, 64), (12, 32), (8, 8), (2, 2), (9, 13)], ids=str)
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("batch_statistics", [False, True], ids=["running", "batch"])
def test_dense_block_equals_the_reference(isa: str, size: tuple[int, int], layers: int, batch_statistics: bool) -> None:
    torch.manual_seed(size[0] + layers)
    assert_equals_reference(lambda v, b: block(v, b, batch_statistics), block_inputs(size, layers))


@pytest.mark.parametrize("size", [(8, 64), (12, 32), (8, 8), (2, 2), (5, 11)], ids=str)
def test_transition_up_equals_the_reference(isa: str, size: tuple[int, int]) -> None:
    torch.manual_seed(size[0])
    assert_equals_reference(up, up_inputs(size))


def test_transition_up_of_inputs_that_are_read_in_parts(isa: str) -> None:
    torch.manual_seed(1)
    assert_equals_reference(up, up_inputs((8, 36), channels=(400, 150), outputs=32))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 21), st.integers(1, 40), st.integers(1, 90), st.integers(1, 30), st.integers(0, 9))
def test_any_shape(height: int, width: int, channels: int, growth: int, lanes: int) -> None:
    torch.manual_seed(height * width)
    x, weight = torch.randn(lanes, channels, height, width), torch.randn(growth, channels, 3, 3) / channels**0.5
    norms = [
        [torch.randn(1, channels)],
        [torch.randn(1, channels)],
        [torch.randn(1, channels)],
        [torch.rand(1, channels)],
    ]

    def run(dtype: torch.dtype, backend: str) -> list[Tensor]:
        leaves = [v.to(dtype).requires_grad_() for v in (x, weight)]
        outputs = dense_block(
            [leaves[0]], [leaves[1]], *[[v.to(dtype) for v in g] for g in norms], [lanes], backend=backend
        )
        return [outputs[0].detach(), *gradients(lambda *_: outputs[0], leaves)]

    for actual, exact in zip(run(torch.float32, "cpu"), run(torch.float64, "reference"), strict=True):
        assert actual.isfinite().all()
        assert error(actual, exact) < ERROR


def test_winograd_error_at_the_networks_width() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(1, 284, 32, 32), torch.randn(12, 284, 3, 3) / 50
    one, zero = torch.ones(1, 284), torch.zeros(1, 284)

    def run(dtype: torch.dtype, backend: str) -> Tensor:
        norms = [[v.to(dtype)] for v in (one, zero, zero, one)]
        return dense_block([x.to(dtype)], [weight.to(dtype)], *norms, [1], backend=backend)[0]

    assert error(run(torch.float32, "cpu"), run(torch.float64, "reference")) < ERROR


@pytest.mark.parametrize("layout", ["channels_last", "slice", "transposed"])
def test_layouts(layout: str) -> None:
    values = block_inputs((12, 16), 1)
    there = [arrange(v, layout) if v.dim() == 4 else v for v in values]
    assert torch.equal(block(there, "cpu")[0], block(values, "cpu")[0])
    values = up_inputs((12, 16))
    assert torch.equal(up([arrange(v, layout) for v in values], "cpu"), up(values, "cpu"))


def test_rows_that_do_not_follow_each_other_in_memory() -> None:
    sources, *weights = up_inputs((4, 4))[1:]
    apart = torch.stack([ROWS, ROWS + 1000], 1)[:, 0]
    weights[0] = weights[0][:, :6].detach()
    expected = transition_up([sources], *weights, ROWS, [True], backend="cpu")
    assert torch.equal(transition_up([sources], *weights, apart, [True], backend="cpu"), expected)


CASES = [
    pytest.param(lambda v, backend: block(v, backend, True), lambda size: block_inputs(size, 1), id="dense_block"),
    pytest.param(up, up_inputs, id="transition_up"),
]


@pytest.mark.parametrize(("run", "inputs"), CASES)
def test_bitwise_the_same_for_any_number_of_threads(run: Callable[..., Any], inputs: Callable[..., Any]) -> None:
    values, before, results = inputs((32, 64)), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append(values_and_gradients(run, values, torch.float32, "cpu"))
    finally:
        torch.set_num_threads(before)
    for later in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], later, strict=True))


@pytest.mark.parametrize(("run", "inputs"), CASES)
def test_every_element_is_written(
    run: Callable[..., Any], inputs: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    values, empty = inputs((9, 13)), torch.Tensor.new_empty
    expected = values_and_gradients(run, values, torch.float32, "cpu")
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: empty(*a, **k).fill_(torch.nan))
    poisoned = values_and_gradients(run, values, torch.float32, "cpu")
    assert all(torch.equal(a, b) for a, b in zip(poisoned, expected, strict=True))


def test_any_number_of_tiles(isa: str) -> None:
    """Under `make sanitize` NaN lies beyond the last tile of a block that is not full."""
    for width in range(1, 70, 3):
        assert_equals_reference(up, up_inputs((1, width)))


def test_no_outputs() -> None:
    norm = [[torch.rand(1, 8)] for _ in range(4)]
    grown = dense_block([torch.randn(2, 8, 32, 64)], [torch.randn(0, 8, 3, 3)], *norm, [2], backend="cpu")
    assert outputs_of(grown)[0].shape == (2, 0, 32, 64)


def test_empty_batch_and_no_channels() -> None:
    x, weight = torch.zeros(0, 4, 8, 8, requires_grad=True), torch.randn(12, 4, 3, 3, requires_grad=True)
    norm = [torch.ones(1, 4)]
    grown, mean, var = dense_block([x], [weight], norm, norm, norm, norm, [0], backend="cpu")
    assert grown.shape == (0, 12, 8, 8)
    assert torch.equal(mean, torch.zeros(1, 12))
    assert torch.equal(var, torch.ones(1, 12))
    assert torch.equal(torch.autograd.grad(grown.sum(), weight)[0], torch.zeros_like(weight))
    nothing = torch.zeros(2, 0, 4, 4)
    assert torch.equal(
        transition_up([nothing], torch.zeros(4, 0, 3, 3), torch.randn(3, 1, 3, 3), backend="cpu"),
        torch.zeros(2, 3, 8, 8),
    )


def test_opcheck_and_one_graph() -> None:
    values = block_inputs((4, 4), 2)
    groups = [list(values[2 + 2 * i : 4 + 2 * i]) for i in range(5)]
    for count in (1, 2):
        statistics = [group[:count] for group in groups[3:]]
        opcheck(
            dense_block_op.registered,
            dense_block_arguments(values[:2], *groups[:3], *statistics, SEGMENTS, ROWS, [False, True], 1e-3, "cpu"),
        )
    ups = up_inputs((4, 4))
    given = transition_up_arguments(ups[:2], ups[2], ups[3], ROWS, [False, True], "cpu")
    opcheck(transition_up_op.registered, given)
    assert_compiles(lambda *v: block(v, "cpu"), values)
    assert_compiles(lambda *v: up(v, "cpu"), ups)


def packings_of(run: Callable[[], Any]) -> int:
    """How often ``run`` packs filters."""
    pack, count = convolution_module.pack, 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        return pack(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution_module, "pack", counted)
        run()
    return count


def test_kept_filters_follow_every_change_of_the_weight() -> None:
    x, weight = torch.randn(1, 6, 8, 8), torch.randn(4, 6, 3, 3)
    second = torch.randn(3, 1, 3, 3)

    def assert_right() -> None:
        exact = transition_up([x.double()], weight.double(), second.double(), backend="reference")
        assert error(transition_up([x], weight, second, backend="cpu"), exact) < ERROR

    def swap(w: Tensor) -> None:
        w.data = torch.randn_like(w)

    def round_trip(w: Tensor) -> None:
        w.data = w.data.bfloat16()
        w.data = w.data.float()

    for change in (lambda w: w, lambda w: w, lambda w: w.mul_(2), lambda w: w, swap, lambda w: w, round_trip):
        change(weight)
        assert_right()
    with torch.inference_mode():  # tensors without a version
        weight = weight.clone()
        for _ in range(3):
            weight *= 2
            assert_right()


def test_filters_are_kept_for_weights_read_again_and_only_as_long_as_they_live() -> None:
    known = convolution_module.filters.kept
    weights = [torch.randn(4, 6, 3, 3), torch.randn(3, 1, 3, 3)]
    before, found = len(known), []

    def run() -> None:
        found.append(transition_up([torch.ones(1, 6, 8, 8)], *weights, backend="cpu"))

    assert [packings_of(run) for _ in range(3)] == [1, 0, 0]
    assert id(weights[0]) in known
    assert torch.equal(found[0], found[2])
    weights.clear()
    assert len(known) == before


@torch.no_grad()
def test_filters_are_kept_for_parameters_until_a_gradient_is_recorded() -> None:
    inputs = up_inputs((8, 36))
    values, read = [v.detach() for v in inputs[:2]] + inputs[2:], lambda: up(values, "cpu")
    assert [packings_of(read) for _ in range(3)] == [1, 0, 0]
    for backend in ("cpu", "reference"):
        with torch.enable_grad():
            up(values, backend)
        assert [packings_of(read) for _ in range(3)] == [1, 1, 1]
        for weight in values[2:]:
            weight.mul_(1.01)  # a version without a gradient
        assert [packings_of(read) for _ in range(3)] == [1, 0, 0]
    for weight in values[2:]:
        weight.requires_grad_(False)
    with torch.enable_grad():
        up([v.clone().requires_grad_() for v in values[:2]] + values[2:], "cpu")
    assert [packings_of(read) for _ in range(2)] == [0, 0]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("side", [4, 36], ids=["reference", "native"])
@pytest.mark.parametrize("kind", ["up", "block"])
def test_a_fused_optimiser_that_leaves_the_version_as_it_was(kind: str, side: int, compiled: bool) -> None:
    """Maps of few pixels are left to PyTorch while gradients are recorded, so that no kernel sees the training."""
    run, values = (up, up_inputs((side, side))) if kind == "up" else (block, block_inputs((side, side), 2))
    weights = [v for v in values[2:] if v.dim() == 4]
    optimizer = torch.optim.AdamW(weights, lr=0.1, fused=True)
    train: Callable[..., Any] = run
    if compiled:
        torch._dynamo.reset()
        train = torch.compile(run, backend="aot_eager")

    def inference() -> Tensor:
        with torch.no_grad():
            return outputs_of(run(values, "cpu"))[0]

    before = inference()
    assert torch.equal(inference(), before)
    for _ in range(2):
        versions = [weight._version for weight in weights]
        outputs_of(train(values, "auto"))[0].square().sum().backward()
        inference()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        assert [weight._version for weight in weights] == versions  # else this test shows nothing
        with torch.no_grad():
            expected = outputs_of(run([value.clone() for value in values], "cpu"))[0]
        found = inference()
        assert torch.equal(found, expected)
        assert not torch.equal(found, before)


def other_isa() -> str:
    """A slower instruction set than the fastest, which is in use."""
    slower = native.cpu_module().features()["supported"][:-1]
    return slower[-1] if slower else pytest.skip("this processor has one instruction set")


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "backward"])
def test_packed_filters_are_run_by_the_kernels_they_were_packed_for(
    gradient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, packed, asked = native.cpu_module(), convolution_module.pack, []
    before, slower = module.isa(), other_isa()
    x, weight = torch.randn(2, 20, 12, 32), torch.randn(8, 20, 3, 3)

    def run() -> list[Tensor]:
        leaves = [v.clone().requires_grad_(gradient) for v in (x, weight, torch.ones(4, 2, 3, 3))]
        out = transition_up([leaves[0]], *leaves[1:], backend="cpu")
        return gradients(lambda *_: out, leaves) if gradient else [out]

    def switch(*arguments: Any, **options: Any) -> Any:
        """What another thread may do between the packing and the convolution."""
        module.use_isa(slower)
        found = packed(*arguments, **options)
        module.use_isa(before)
        asked.append(found.isa)
        return found

    try:
        module.use_isa(slower)
        expected = run()
        module.use_isa(before)
        monkeypatch.setattr(convolution_module, "pack", switch)
        found = run()
    finally:
        module.use_isa(before)
    assert set(asked) == {slower}
    # Elementwise work outside the convolutions is PyTorch's own, so the two runs agree bit for bit.
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_plan_runs_the_instruction_set_it_was_recorded_under() -> None:
    module = native.cpu_module()
    before, slower = module.isa(), other_isa()
    x, weight = torch.randn(1, 5, 16, 32), torch.randn(12, 5, 3, 3)
    out = torch.empty(2, 1, 12, 16, 32)

    def record(plan: Any, target: Tensor) -> Tensor:
        filters = torch.empty(module.packed_filters(12, 5, module.isa()))
        module.pack_filters([(weight.data_ptr(), 12, 5, 0)], False, filters.data_ptr(), module.isa(), 1)
        field, shape = (x.data_ptr(), 5, x.stride(0), x.stride(1), 0), (1, 5, 16, 32)
        plan.convolution([field], 0, [1], shape, 0, 0, filters.data_ptr(), 12, "none", target.data_ptr(), 0)
        return filters

    try:
        module.use_isa(slower)
        plan = module.Plan()
        filters = record(plan, out)
        module.run_plans([plan], 1)
        expected = out[0].clone()
        module.use_isa(before)
        assert plan.isa == slower
        assert filters.isfinite().all()  # they live until the plan has run
        module.run_plans([plan], 1)
        with pytest.raises(RuntimeError, match=f"begun under, {slower}, in use; got {before}. Record a plan anew"):
            record(plan, out)
    finally:
        module.use_isa(before)
    assert torch.equal(out[0], expected)
    assert error(expected, torch.nn.functional.conv2d(x.double(), weight.double(), padding=1)) < ERROR


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected one of features\(\)\['compiled'\]; got mmx"):
        native.cpu_module().packed_filters(12, 5, "mmx")


def test_other_dtypes_are_refused_by_name_and_taken_by_the_reference() -> None:
    values = [v.detach().double() for v in up_inputs((4, 4))]
    with pytest.raises(BackendError, match="float64, not float32"):
        up(values, "cpu")
    assert torch.equal(up(values, "auto"), up(values, "reference"))


def test_few_parts_where_there_are_few_pixels() -> None:
    assert [convolution_module.parts(44, pixels) for pixels in (4096, 64, 4)] == [8, 2, 2]
    assert convolution_module.parts(1, 4096) == 1
