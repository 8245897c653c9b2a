"""The checker finds a planted bug of each kind and lets correct kernels pass."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from tests.gpu.triton.checker import checked


@triton.jit
def add(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n) + tl.load(y + i, mask=i < n), mask=i < n)


@triton.jit
def without_mask(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i), mask=i < n)


@triton.jit
def store_outside(out, n, BLOCK: tl.constexpr):
    tl.store(out + n + tl.arange(0, BLOCK), 1.0)


@triton.jit
def same_place(out, BLOCK: tl.constexpr):
    tl.store(out + tl.arange(0, BLOCK), tl.program_id(0).to(tl.float32))


@triton.jit
def read_of_a_neighbour(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + tl.program_id(0) * BLOCK + i, tl.load(out + (1 - tl.program_id(0)) * BLOCK + i) + tl.load(x + i))


@triton.jit
def store_beside_atomic(out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.atomic_add(out + i, 1.0, mask=i >= tl.program_id(0) * BLOCK)
    tl.store(out + i, 1.0, mask=i < tl.program_id(0) * BLOCK)


@triton.jit
def twice(out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i // 2, i.to(tl.float32))


@triton.jit
def twice_the_same(out, BLOCK: tl.constexpr):
    tl.store(out + tl.arange(0, BLOCK) // 2, 1.0)


@triton.jit
def off_by_bytes(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load((x.to(tl.pointer_type(tl.int8)) + 2).to(tl.pointer_type(tl.float32)) + i))


@triton.jit
def promise(x, BLOCK: tl.constexpr):
    tl.device_assert(tl.load(x + tl.arange(0, BLOCK)) > 0, "positive")


@triton.jit
def wraps(out, stride, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, (i + 3) * stride)


X, Y = torch.ones(16), torch.zeros(16)
PLANTED = [
    ("outside every tensor", without_mask, (2,), (torch.ones(12), torch.empty(12), 12)),
    ("outside every tensor", store_outside, (1,), (torch.empty(12), 12)),
    ("race", same_place, (2,), (torch.empty(8),)),
    ("race", read_of_a_neighbour, (2,), (X, Y)),
    ("race", store_beside_atomic, (2,), (Y,)),
    ("different values", twice, (1,), (Y,)),
    ("not aligned", off_by_bytes, (1,), (X, Y)),
    ("positive", promise, (1,), (-X,)),
    ("overflow", wraps, (1,), (torch.zeros(8, dtype=torch.int64), 2**30)),
]


@pytest.mark.parametrize(
    ("message", "kernel", "grid", "arguments"), PLANTED, ids=lambda v: getattr(v, "__name__", None)
)
def test_planted_bug_is_found(message: str, kernel, grid: tuple[int], arguments: tuple) -> None:
    with checked(overflow=True), pytest.raises(Exception, match=message):
        kernel[grid](*arguments, BLOCK=8)


def test_correct_kernels_pass_and_the_interpreter_is_left_as_it_was() -> None:
    before = dict(vars(triton.runtime.interpreter.InterpreterBuilder))
    out = torch.empty(12)
    with checked(overflow=True):
        add[(2,)](torch.ones(12), torch.ones(12), out, 12, BLOCK=8)
        twice_the_same[(1,)](out, BLOCK=8)
        add[(2,)](out, out, out, 12, BLOCK=8)  # in place: each program its own elements
    assert out.tolist() == [2.0] * 4 + [4.0] * 8
    assert dict(vars(triton.runtime.interpreter.InterpreterBuilder)) == before


def test_far_strides_cost_nothing() -> None:
    far: Tensor = torch.empty(2**31 + 8, dtype=torch.bfloat16)[:: 2**31]
    assert far.stride(0) == 2**31
    with checked():
        add[(1,)](X, X, Y, 8, BLOCK=8)
