"""Layers of the network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ifan.concat import Lanes
from ifan.config import NetworkConfig, TaskConfig
from ifan.layers import DenseBlock, ForwardContext, ReEncoder, centres, convolution
from ifan.ops.take_rows import take_rows

FIVE = TaskConfig("mood", "classification", ("a", "b", "c", "d", "e"))

STEP = """
import torch
from ifan.layers import ReEncoder
from tests.test_layers import FIVE

encoder = ReEncoder(FIVE)
planes = torch.rand(2, 5, 64, 64).to(memory_format=torch.channels_last)
for _ in range(3):
    sum(x.sum() for x in encoder(planes)).backward()
print("done")
"""


class Convolutions(TorchDispatchMode):
    """Kernel and stride of every convolution, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, list[int], list[int]]] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):  # type: ignore[no-untyped-def]
        name = function.__name__.split(".")[0]
        if name == "convolution":
            self.found.append((name, list(arguments[1].shape[2:]), list(arguments[3])))
        elif name == "convolution_backward":
            self.found.append((name, list(arguments[2].shape[2:]), list(arguments[4])))
        return function(*arguments, **(options or {}))


def test_channels_last_planes_of_few_classes_can_be_trained_on() -> None:
    """In a process of its own: where oneDNN runs a strided 1x1 convolution backward, this one damages the heap."""
    with Convolutions() as seen:
        planes = torch.rand(1, 5, 32, 32).to(memory_format=torch.channels_last)
        sum(x.sum() for x in ReEncoder(FIVE)(planes)).backward()
    assert len(seen.found) == 6
    assert all(stride == [1, 1] for _, kernel, stride in seen.found if kernel == [1, 1])
    command = [sys.executable, "-c", STEP]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr


def test_maps_of_a_classification_are_those_of_convolutions_at_stride_2() -> None:
    torch.manual_seed(0)
    encoder, planes = ReEncoder(FIVE), torch.rand(2, 5, 32, 32)
    weights = [c.weight for c in encoder.convolutions]
    expected = F.max_pool2d(F.relu(F.conv2d(planes, weights[0], stride=2)), 2)
    for found, weight in zip(encoder(planes), [*weights[1:], None], strict=True):
        torch.testing.assert_close(found, expected)
        if weight is not None:
            expected = F.max_pool2d(F.relu(F.conv2d(expected, weight)), 2)


def test_points_are_the_means_of_what_all_levels_draw_together() -> None:
    maps = [torch.zeros(2, 3, 64 >> i, 64 >> i, dtype=torch.float64) for i in range(4)]
    assert float(centres(maps).abs().max()) < 1e-12  # flat: the middle
    maps[0][1, 2, 10, 50] = 1e3
    torch.testing.assert_close(centres(maps)[1, :, 2], torch.tensor([50.5, 10.5]).double() / 64 - 0.5)
    maps[0][0, 0, 10, 50] = maps[0][0, 0, 10, 8] = maps[0][0, 0, 60, 50] = 5e2  # of three places a coarse map chooses
    maps[2][0, 0, 15, 12] = 1e2
    torch.testing.assert_close(
        centres(maps)[0, :, 0], torch.tensor([50.5, 60.5]).double() / 64 - 0.5, rtol=1e-3, atol=1e-3
    )


class Operations(TorchDispatchMode):
    """Names of the operations on four dimensions, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):  # type: ignore[no-untyped-def]
        if any(isinstance(a, torch.Tensor) and a.dim() == 4 for a in arguments):
            self.found.add(function.__name__.split(".")[0])
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("task_norm", [True, False])
def test_layers_of_a_block_go_through_one_operation_or_one_each(task_norm: bool) -> None:
    """One each where their moments are joined over processes, which here is only this one."""
    config, lanes, found = NetworkConfig(task_norm=task_norm), Lanes(torch.arange(4), (1, 2, 1)), []
    for reduce in (None, lambda *moments: moments):
        torch.manual_seed(0)
        block, x = DenseBlock((8, 20, 32), 3, config), torch.randn(4, 8, 32, 32, requires_grad=True)
        context = ForwardContext(lanes, True, reduce)
        grown = block(context.fresh(x), context)
        whole, moments = grown.concatenated(), grown.moments_of(36)
        upstream = [torch.randn_like(whole), *(torch.randn_like(value) for value in moments)]
        gradients = torch.autograd.grad([whole, *moments], [x, *block.parameters()], upstream)
        found.append([whole, *block.state_dict().values(), *gradients])
    for together, apart in zip(*found, strict=True):
        torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)


def test_lanes_are_laid_out_by_an_operation_that_compilers_leave_whole() -> None:
    rows = torch.tensor([1, 0, 1])
    context = ForwardContext(Lanes(rows, (2, 1)), True, None)
    x = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    upstream = torch.rand(3, 3, 4, 4)
    with Operations() as seen:
        laid_out = context.shared(x, 2).tensors[0]
        laid_out.backward(upstream)
    assert {"take_rows", "take_rows_backward"} <= seen.found
    assert not {"index", "index_select", "index_add", "index_add_", "index_put", "index_put_"} & seen.found
    assert torch.equal(laid_out, x[rows])
    torch.testing.assert_close(x.grad, torch.stack([upstream[1], upstream[0] + upstream[2]]))


def test_rows_are_taken_as_an_operation_should() -> None:
    rows = torch.tensor([1, 0, 1])
    x = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(torch.ops.ifan.take_rows.default, (x, rows))
    assert torch.autograd.gradcheck(lambda x: take_rows(x, rows), (x,))
    assert take_rows(x, rows[:0]).shape == (0, 3)


@pytest.mark.parametrize(("glorot", "bound"), [(False, (6 / (24 * 9)) ** 0.5), (True, (6 / ((24 + 40) * 9)) ** 0.5)])
def test_convolutions_begin_with_uniform_weights(glorot: bool, bound: float) -> None:
    """Within He's bound, or Glorot's, for 24 channels in and 40 out."""
    layer = convolution(24, 40, 3, glorot)
    assert layer.bias is None
    assert layer(torch.zeros(1, 24, 7, 5)).shape == (1, 40, 7, 5)
    assert 0.99 * bound < float(layer.weight.detach().abs().max()) <= bound
    assert float(layer.weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.05)
