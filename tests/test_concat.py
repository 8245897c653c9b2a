"""Lanes, and lists of tensors that stand for their concatenation."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ifan import ops
from ifan.concat import Concat, Lanes, joined_moments, pooled_moments
from ifan.config import NetworkConfig

LANES = Lanes(torch.tensor([2, 0, 1, 1, 0]), (2, 1, 2))


def test_lanes_of_named_tasks_come_in_configuration_order() -> None:
    lanes = Lanes.for_tasks(2, NetworkConfig(), ["emotion", "parsing"])
    assert lanes.segments == (2, 0, 2)
    assert lanes.rows.tolist() == [0, 1, 0, 1]
    assert [r.tolist() for r in lanes.split()] == [[0, 1], [], [0, 1]]


def test_kept_lanes_are_a_view_where_they_lie_together() -> None:
    index, lanes = LANES.keep([0, 1])
    assert index == slice(0, 3)
    assert (lanes.rows.tolist(), lanes.segments) == ([2, 0, 1], (2, 1))
    index, lanes = LANES.keep([0, 2])
    assert torch.is_tensor(index)
    assert (lanes.rows.tolist(), lanes.segments) == ([2, 0, 1, 0], (2, 2))


def test_doubled_sources_are_read_once_with_added_weights() -> None:
    a, b, c = (torch.randn(5, n, 4, 4, dtype=torch.float64) for n in (3, 2, 4))
    x = Concat.of(LANES, a) + Concat.of(LANES, b) + Concat.of(LANES, a) + Concat.of(LANES, c)
    weight = torch.randn(6, x.channels, 3, 3, dtype=torch.float64)
    merged, summed = x.unique(weight)
    assert [s.shape[1] for s in merged.tensors] == [3, 2, 4]
    torch.testing.assert_close(F.conv2d(merged.concatenated(), summed), F.conv2d(x.concatenated(), weight))


def test_a_doubled_source_stays_one_tensor_when_lanes_are_dropped() -> None:
    a = Concat.of(LANES, torch.randn(5, 3, 4, 4))
    kept = (a + a).keep([0, 2])
    assert kept.tensors[0] is kept.tensors[1]
    assert kept.tensors[0].shape[0] == 4


def test_rows_of_samples_are_looked_up_by_lane() -> None:
    samples = torch.randn(3, 2, 4, 4)
    x = Concat.of(LANES, samples, per_sample=True)
    assert torch.equal(x.concatenated(), samples[LANES.rows])
    assert torch.equal(x.keep([2]).concatenated(), samples[[1, 0]])


def test_a_pointwise_convolution_is_that_of_the_concatenation() -> None:
    a, samples = (torch.randn(n, 3, 4, 2, dtype=torch.float64, requires_grad=True) for n in (5, 3))
    x = Concat.of(LANES, a) + Concat.of(LANES, samples, per_sample=True)
    weight = torch.randn(2, 6, 1, 1, dtype=torch.float64, requires_grad=True)
    found, expected = x.pointwise(weight), F.conv2d(x.concatenated(), weight)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    inputs = (a, samples, weight)
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, inputs, upstream)
    )


def test_moments_of_other_processes_are_joined() -> None:
    seen = {}

    def reduce(
        mean: torch.Tensor, var: torch.Tensor, counts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        seen["counts"] = counts.tolist()
        return mean + 1, var * 2, counts

    x = torch.randn(5, 3, 4, 4)
    alone = ops.channel_moments(x, list(LANES.segments))
    joined = joined_moments(x, alone, LANES, reduce)
    assert joined_moments(x, alone, LANES, None) is alone
    assert seen["counts"] == [32, 16, 32]
    assert torch.equal(joined[0], alone[0] + 1)
    assert torch.equal(joined[1], alone[1] * 2)


def test_pooled_moments_are_those_of_all_lanes_together() -> None:
    x = torch.randn(7, 5, 4, 4, dtype=torch.float64) * 3 + torch.arange(7)[:, None, None, None]
    mean, var = ops.channel_moments(x, [2, 0, 5])
    mean, var = pooled_moments(mean, var, [2, 0, 5])
    torch.testing.assert_close(mean, x.mean((0, 2, 3))[None])
    torch.testing.assert_close(var, x.var((0, 2, 3), correction=0)[None])
    nothing = pooled_moments(mean.new_zeros(3, 5), var.new_ones(3, 5), [0, 0, 0])
    assert [m.unique().tolist() for m in nothing] == [[0], [1]]
