"""Offsets are counted in 64 bits: take any kernel's cast away, and tensors with far strides fail.

Tensors lie 2^30 elements apart along one axis, so the third entry's offset does not fit into 32 bits; the memory
between them is never touched. Where what is counted is contiguous a cast cannot be reached without that much memory.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import ifan.kernels
import pytest
import torch
from torch import Tensor

from ifan.concat import Concat, Lanes, Norm
from tests.gpu.triton.checker import checked
from tests.gpu.triton.mutated import changed

FAR = 2**30
CAST = re.compile(r"\.to\(tl\.int64\)|tl\.cast\((\w+), tl\.int64\)")
CONTIGUOUS = ("at = ", "sums = partial", "tl.store(partial", "entry = (start", "index = tl.program_id(1)")
"""Beginnings of lines whose offset is into contiguous memory of the kernels' own."""
AXES = range(4)


def far(axis: int, *shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    """Random values, 2^30 elements apart along one axis, side by side along the others."""
    strides, step = [0] * len(shape), 1
    for index in reversed(range(len(shape))):
        strides[index] = FAR if index == axis else step
        step *= 1 if index == axis else shape[index]
    x = torch.empty((shape[axis] - 1) * FAR + step, dtype=dtype).as_strided(shape, strides)
    return x.copy_(torch.randint(0, 3, shape) if dtype == torch.uint8 else torch.randn(shape))


def _norm() -> Norm:
    return Norm.from_flat([torch.rand(1, 3) + 0.5 for _ in range(4)])


def _partial(m: ModuleType, axis: int) -> Any:
    return m.forward(far(axis, 3, 3, 3, 3), [3])


def _moments_backward(m: ModuleType, axis: int) -> Any:
    return m.backward(*torch.rand(2, 1, 3), far(axis, 3, 3, 3, 3), torch.rand(1, 3), [3])


def _join(m: ModuleType, axis: int) -> Any:
    parts, found = far(0, 3, 16), torch.zeros(2, 16)
    m.launch(m.join_kernel, (1,), parts, parts, *found, FAR, 3, 1, 1, PIXELS=16, num_warps=4)
    return found


def _fusion(m: ModuleType, axis: int) -> Any:
    return m.forward(Concat.of(Lanes.ordered([3]), far(axis, 3, 3, 6, 6)), _norm(), 2)


def _fusion_backward(m: ModuleType, axis: int) -> Any:
    x, gradient = far(axis, 3, 3, 3, 3), far(axis, 3, 3, 3, 3)
    return m.backward(gradient, Concat.of(Lanes.ordered([3]), x), _norm(), 1)


def _collect(m: ModuleType, axis: int) -> Any:
    by_lane, result = far(0, 3, 16), far(0, 3, 16)
    m.launch(m.collect_kernel, (3, 1), by_lane, torch.arange(3), result, 3, FAR, BLOCK=16, num_warps=4)
    return result


def _softmax(m: ModuleType, axis: int) -> Any:
    planes = far(axis, 3, 3, 3, 3)
    m._softmax(far(axis, 3, 3, 3, 3), planes)
    return planes


def _softmax_backward(m: ModuleType, axis: int) -> Any:
    target = far(axis, 3, 3, 3, 3)
    m._softmax_backward(far(axis, 3, 3, 3, 3), far(axis, 3, 3, 3, 3), target)
    return target


def _disc(m: ModuleType, axis: int) -> Any:
    points, planes = far(min(axis, 2), 3, 2, 3), far(0, 3, 3, 4, 4)
    rest = (3, 4, 1, *points.stride(), planes.stride(0))
    m.launch(m.disc_kernel, (9, 1), points, planes, *rest, PIXELS=16, num_warps=4)
    return planes


def _plane_sum(m: ModuleType, axis: int) -> Any:
    return m._plane_sums(far(axis, 3, 3, 3, 3))


def _cross_entropy(m: ModuleType, axis: int) -> Any:
    labels, gradient = far(max(axis - 1, 0), 3, 3, 3, dtype=torch.uint8), far(axis, 3, 3, 3, 3)
    return m.cross_entropy(far(axis, 3, 3, 3, 3), labels, None, 0.1, 255, gradient), gradient


def _finer(m: ModuleType, axis: int) -> Any:
    labels = far(max(axis - 1, 0), 3, 6, 6, dtype=torch.uint8)
    gradient = torch.empty(3, 3, 3, 3)
    return m.upsampled_cross_entropy(far(axis, 3, 3, 3, 3), labels, None, 0.1, gradient), gradient


def _points(m: ModuleType, axis: int) -> Any:
    axis = 0 if axis == 0 else 2
    gradient = torch.empty(3, 2, 3)
    weight = far(axis // 2, 3, 3).abs_()
    return m._points(far(axis, 3, 2, 3), far(axis, 3, 2, 3), weight, 0, 0.1, 0.02, gradient), gradient


def _scale(m: ModuleType, axis: int) -> Any:
    target = far(0, 3, 4)
    m._scale(far(0, 3, 4), torch.tensor(2.0), target)
    return target


def _convolution(m: ModuleType, axis: int) -> Any:
    x, out, shifted = far(axis, 3, 3, 3, 3), far(axis, 3, 3, 3, 3), far(axis, 3, 3, 6, 6)
    m.convolve([x], torch.rand(3, 3, 3, 3), out)
    m.convolve([x], torch.rand(12, 3, 3, 3), shifted, phase_shift=True)
    return out, shifted


def _convolution_weight(m: ModuleType, axis: int) -> Any:
    return m.weight_gradient([far(axis, 3, 3, 3, 3)], far(axis, 3, 3, 3, 3))


CALLS: dict[tuple[str, str], Callable[[ModuleType, int], Any]] = {
    ("channel_moments", "partial_kernel"): _partial,
    ("channel_moments", "join_kernel"): _join,
    ("channel_moments", "backward_kernel"): _moments_backward,
    ("integrate", "forward_kernel"): _fusion,
    ("integrate", "backward_kernel"): _fusion_backward,
    ("lanes", "collect_kernel"): _collect,
    ("encode_predictions", "softmax_kernel"): _softmax,
    ("encode_predictions", "softmax_backward_kernel"): _softmax_backward,
    ("encode_predictions", "disc_kernel"): _disc,
    ("encode_predictions", "plane_sum_kernel"): _plane_sum,
    ("cross_entropy", "cross_entropy_kernel"): _cross_entropy,
    ("cross_entropy", "fine_kernel"): _finer,
    ("cross_entropy", "gather_kernel"): _finer,
    ("cross_entropy", "_upsampled"): _finer,
    ("hybrid_loss", "points_kernel"): _points,
    ("hybrid_loss", "scale_kernel"): _scale,
    ("convolution", "convolution_kernel"): _convolution,
    ("convolution", "weight_kernel"): _convolution_weight,
}


def source_of(module: str) -> str:
    return (Path(ifan.kernels.__file__).parent / f"{module}.py").read_text(encoding="utf-8")


def casts() -> Iterator[Any]:
    """(module, function, position of a cast that strides can reach); the first of each function in the quick set."""
    for module in sorted({module for module, _ in CALLS}):
        text, quick = source_of(module), set[str]()
        for found in CAST.finditer(text):
            line = text[text.rindex("\n", 0, found.start()) : found.start()].strip()
            if line.startswith(CONTIGUOUS):
                continue
            function = re.findall(r"(?m)^def (\w+)\(", text[: found.start()])[-1]
            name = f"{module}-{function}-{line.split(' ')[0]}-{found.start()}"
            marks = [pytest.mark.full] if function in quick else []
            quick.add(function)
            yield pytest.param(module, function, found.start(), id=name, marks=marks)


def run(module: str, function: str, axis: int) -> list[Tensor]:
    torch.manual_seed(0)
    with checked(overflow=True):
        return tensors(CALLS[module, function](importlib.import_module(f"ifan.kernels.{module}"), axis))


def tensors(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else [x for part in found for x in tensors(part)]


@pytest.mark.parametrize("axis", [pytest.param(a, marks=pytest.mark.full) if a % 3 else a for a in AXES])
@pytest.mark.parametrize(("module", "function"), {call: name for name, call in CALLS.items()}.values())
def test_far_strides_give_the_same_bits(module: str, function: str, axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    apart = run(module, function, axis)
    monkeypatch.setattr(sys.modules[__name__], "FAR", 4096)
    near = run(module, function, axis)
    assert apart
    assert all(torch.equal(a, b) for a, b in zip(apart, near, strict=True))


@pytest.mark.parametrize(("module", "function", "position"), casts())
def test_a_cast_taken_away_is_caught(module: str, function: str, position: int, tmp_path: Path) -> None:
    text = source_of(module)
    found = CAST.match(text, position)
    assert found is not None
    broken = text[:position] + (found[1] or "") + text[found.end() :]
    with changed(tmp_path / "kernels", module, broken), pytest.raises(Exception, match=r"(?i)overflow|outside"):  # noqa: PT012
        for axis in AXES:
            run(module, function, axis)
