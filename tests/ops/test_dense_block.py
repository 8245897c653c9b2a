from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from ifan.concat import DenseLayer, Norm
from ifan.ops import dense_block as with_nouns
from ifan.ops.dense_block import _forward as registered
from tests.support.cases import arrange, assert_compiles, assert_double_backward_raises, assert_same_gradients, leaf
from tests.support.flat import concat, dense_block, dense_block_arguments
from tests.support.flat import dense_block_op as _forward
from tests.support.tolerances import assert_close

ROWS = torch.tensor([2, 0, 1, 1, 0])
FLAGS = [False, True]
SEGMENTS = [2, 0, 3]


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """3x3, padding 1, as nine shifted products."""
    n, _, h, w = x.shape
    padded = x.new_zeros(n, x.shape[1], h + 2, w + 2)
    padded[:, :, 1:-1, 1:-1] = x
    out = x.new_zeros(n, weight.shape[0], h, w)
    for i in range(3):
        for j in range(3):
            out = out + torch.einsum("gc,nchw->nghw", weight[:, :, i, j], padded[:, :, i : i + h, j : j + w])
    return out


def naive(
    sources: list[Tensor],
    weights: list[Tensor],
    gammas: list[Tensor],
    betas: list[Tensor],
    statistics: tuple[list[Tensor], list[Tensor]] | None,
    segments: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Task by task with torch's batch norm; ``statistics`` None = batch statistics, including those of the sources."""
    joined = torch.cat([s[ROWS] if s.shape[0] == 3 else s for s in sources], 1)
    tasks: list[Tensor] = []
    for t, x in enumerate(joined.split(segments)):
        if not x.shape[0]:
            continue
        for layer, weight in enumerate(weights):
            if statistics is None:
                y = torch.nn.functional.batch_norm(x, None, None, gammas[layer][t], betas[layer][t], True, 0, 1e-3)
            else:
                mean, var = (group[layer][t].detach() for group in statistics)
                y = torch.nn.functional.batch_norm(x, mean, var, gammas[layer][t], betas[layer][t], False, 0, 1e-3)
            x = torch.cat([x, convolve(y.relu(), weight)], 1)
        tasks.append(x[:, joined.shape[1] :])
    grown = torch.cat(tasks)
    parts = grown.split(segments)
    c = grown.shape[1]
    mean = torch.stack([p.mean((0, 2, 3)) if len(p) else p.new_zeros(c) for p in parts])
    var = torch.stack([p.var((0, 2, 3), correction=0) if len(p) else p.new_ones(c) for p in parts])
    return grown, mean, var


def inputs(dtype: torch.dtype = torch.float64, size: int = 4, layers: int = 3) -> list[list[Tensor]]:
    """Sources, weights, gammas, betas: 5 channels in, 2 grown a layer."""
    widths = [5 + 2 * layer for layer in range(layers)]
    sources = [leaf(5, 3, size, size, dtype=dtype), leaf(3, 2, size, size, dtype=dtype)]
    weights = [(torch.randn(2, width, 3, 3, dtype=dtype) / 4).requires_grad_() for width in widths]
    return [sources, weights, [leaf(3, w, dtype=dtype) for w in widths], [leaf(3, w, dtype=dtype) for w in widths]]


def statistics(layers: int = 3, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[Tensor]]:
    widths = [5 + 2 * layer for layer in range(layers)]
    return [leaf(3, w, dtype=dtype) for w in widths], [leaf(3, w, dtype=dtype, positive=True) for w in widths]


def run(groups: list[list[Tensor]], means: list[Tensor], variances: list[Tensor], op: bool) -> tuple[Tensor, ...]:
    if op:
        return _forward(*groups, means, variances, SEGMENTS, ROWS, FLAGS, 1e-3, "reference")
    return dense_block(*groups, means, variances, SEGMENTS, ROWS, FLAGS, backend="reference")


def with_batch_statistics(groups: list[list[Tensor]], op: bool) -> tuple[Tensor, ...]:
    joined = torch.cat([groups[0][0], groups[0][1][ROWS]], 1)
    parts = joined.split(SEGMENTS)
    mean = torch.stack([p.mean((0, 2, 3)) if len(p) else p.new_zeros(5) for p in parts])
    var = torch.stack([p.var((0, 2, 3), correction=0) if len(p) else p.new_ones(5) for p in parts])
    return run(groups, [mean], [var], op)


def regroup(values: tuple[Tensor, ...], layers: int = 3) -> list[list[Tensor]]:
    flat = list(values)
    return [flat[:2], flat[2 : 2 + layers], flat[2 + layers : 2 + 2 * layers], flat[2 + 2 * layers : 2 + 3 * layers]]


@pytest.mark.parametrize("op", [False, True], ids=["eager", "op"])
def test_batch_statistics_equal_torch_batch_norm(op: bool) -> None:
    groups = inputs()
    for actual, expected in zip(with_batch_statistics(groups, op), naive(*groups, None, SEGMENTS), strict=True):
        assert_close(actual, expected, 64)
    flat = [tensor for group in groups for tensor in group]
    assert_same_gradients(
        lambda *v: with_batch_statistics(regroup(v), op),
        lambda *v: naive(*regroup(v), None, SEGMENTS),
        flat,
        terms=1000,
    )


@pytest.mark.parametrize("op", [False, True], ids=["eager", "op"])
def test_running_statistics_equal_torch_batch_norm(op: bool) -> None:
    groups, (means, variances) = inputs(), statistics()
    grown, mean, var = run(groups, means, variances, op)
    assert mean.shape == var.shape == (3, 0)
    assert_close(grown, naive(*groups, (means, variances), SEGMENTS)[0], 64)
    flat = [tensor for group in groups for tensor in group]

    def fixed(*v: Tensor) -> Tensor:
        return naive(*regroup(v), (means, variances), SEGMENTS)[0]

    assert_same_gradients(lambda *v: run(regroup(v), means, variances, op)[0], fixed, flat, terms=1000)


def test_one_layer_gives_the_same_in_both_modes() -> None:
    groups, (means, variances) = inputs(layers=1), statistics(layers=1)
    grown, mean, _ = run(groups, means, variances, op=False)
    assert_close(grown, naive(*groups, (means, variances), SEGMENTS)[0], 64)
    assert mean.shape == (3, 2)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slice"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layouts_and_dtypes(layout: str, dtype: torch.dtype) -> None:
    groups, (means, variances) = inputs(torch.float32), statistics(dtype=torch.float32)
    low = [arrange(source.detach().to(dtype), layout) for source in groups[0]]
    grown, mean, _ = run([low, *groups[1:]], means, variances, op=False)
    assert grown.dtype == dtype
    assert mean.dtype == torch.float32
    exact = [[t.detach().double() for t in group] for group in (low, *groups[1:])]
    expected = naive(*exact, ([m.double() for m in means], [v.double() for v in variances]), SEGMENTS)[0]
    if dtype == torch.float32:
        assert_close(grown, expected, 64)
    else:  # every layer rounds its activations and its result to 8 bits
        assert float((grown.detach().double() - expected).norm() / expected.norm()) < 1.6e-2
    op = run([low, *groups[1:]], means, variances, op=True)[0]
    assert op.is_contiguous()
    assert torch.equal(op, grown)


def test_empty_batch() -> None:
    groups, (means, variances) = inputs(), statistics()
    empty = [groups[0][0][:0], groups[0][1]]
    for count in (1, 3):
        for op in (False, True):
            call, extra = (_forward, (1e-3, "reference")) if op else (dense_block, ())
            grown, mean, var = call(
                empty, *groups[1:], means[:count], variances[:count], [0, 0, 0], ROWS[:0], FLAGS, *extra
            )
            assert grown.shape == (0, 6, 4, 4)
            assert torch.equal(mean, torch.zeros(3, 6 if count == 1 else 0, dtype=mean.dtype))
            assert torch.equal(var, torch.ones_like(mean))


def test_gradcheck_with_moments_as_inputs() -> None:
    groups, (means, variances) = inputs(size=2, layers=2), statistics(layers=2)
    for count in (1, 2):
        flat = [t for group in groups for t in group] + means[:count] + variances[:count]

        def call(*v: Tensor, n: int = count) -> tuple[Tensor, ...]:
            outputs = run(regroup(v, 2), list(v[8 : 8 + n]), list(v[8 + n :]), op=True)
            return outputs if n == 1 else outputs[:1]

        assert torch.autograd.gradcheck(call, flat, fast_mode=True)


def test_opcheck_and_one_graph() -> None:
    groups, (means, variances) = inputs(torch.float32, layers=2), statistics(2, torch.float32)
    for count in (1, 2):
        opcheck(
            registered.registered,
            dense_block_arguments(*groups, means[:count], variances[:count], SEGMENTS, ROWS, FLAGS, 1e-3, "reference"),
        )
    flat = [t for group in groups for t in group]
    assert_compiles(lambda *v: run(regroup(v, 2), means[:1], variances[:1], op=True), flat)
    assert_compiles(lambda *v: run(regroup(v, 2), means[:1], variances[:1], op=False), flat)


def test_double_backward_of_the_op_raises() -> None:
    groups, (means, variances) = inputs(), statistics()
    assert_double_backward_raises(
        lambda x: run([[x, groups[0][1]], *groups[1:]], means, variances, op=True)[0], groups[0][0]
    )


def test_autocast_leaves_the_dtype_alone() -> None:
    groups, (means, variances) = inputs(torch.float32), statistics(dtype=torch.float32)
    outside = run(groups, means, variances, op=False)[0]
    with torch.autocast("cpu", torch.bfloat16):
        for op in (False, True):
            assert torch.equal(run(groups, means, variances, op)[0], outside)


def test_bad_input_is_refused() -> None:
    (sources, weights, gammas, betas), (means, variances) = inputs(), statistics()
    x = concat(sources, SEGMENTS, ROWS, FLAGS)
    norms = [Norm(*values) for values in zip(gammas, betas, means, variances, strict=True)]
    block = [DenseLayer(weight, norm) for weight, norm in zip(weights, norms, strict=True)]
    bare = [DenseLayer(weight, norm._replace(mean=None, var=None)) for weight, norm in block]
    for layers, message in (
        ([], "at least one layer"),
        ([*bare[:1], *block[1:]], "layers[0].norm must have mean and var"),
        ([*block[:1], *bare[1:2], *block[2:]], "layers[1].norm must have mean and var"),
        ([*block[:2], *bare[2:]], "layers[1].norm must have no mean and var"),
        ([DenseLayer(weights[0], norms[0]._replace(var=None))], "layers[0].norm must have mean and var"),
        ([*block[:2], *block[:1]], "layers[2].weight must be"),
        ([block[0]._replace(norm=norms[0]._replace(bias=betas[1]))], "layers[0].norm.bias must be (T, C) = (3, 5)"),
        ([block[0], block[1]._replace(norm=norms[1]._replace(eps=1e-5))], "norms must share eps; got 0.001 and 1e-05"),
    ):
        with pytest.raises(ValueError, match=r"^dense_block: ") as error:
            with_nouns(x, layers)
        assert message in str(error.value)


def test_a_direct_call_of_the_registered_operation_is_checked() -> None:
    groups, (means, variances) = inputs(torch.float32), statistics(dtype=torch.float32)
    given = dense_block_arguments(*groups, means, variances, SEGMENTS, ROWS, FLAGS, 1e-3, "cpu")
    for index, value, message in (
        (1, groups[1][:2], "norms must hold 4 tensors a layer"),
        (2, given[2][::-1], "layers[0].norm.weight must be"),
        (3, ROWS + 1, "rows must be in 0..2"),
        (4, [0, 1, 2, 0, 4], "segments must be non-negative and sum to the number of rows"),
    ):
        arguments = [value if i == index else x for i, x in enumerate(given)]
        with pytest.raises(ValueError, match=re.escape(message)):
            torch.ops.ifan.dense_block(*arguments)
