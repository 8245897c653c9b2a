"""What would be launched on a GPU, the times predicted from it, and the page that shows them."""

from __future__ import annotations

import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed: pip install triton", allow_module_level=True)

from ifan.bench import cases
from ifan.ops import native
from tests.gpu.tools import gpu_trace, roofline
from tests.gpu.tools.gpu_cost import NOTHING, Cost
from tests.gpu.tools.gpu_trace import Step
from tests.gpu.tools.roofline import GPU

SIMPLE = GPU("simple", "sm_90", bandwidth=10.0, vector=64.0, tensor=1000.0, units=64)
"""10 bytes, 64 FLOP, 1,000 FLOP of products and 64 bytes from caches a second."""
CASES = {f"{case.op} {case.shape} {case.work}": case for case in cases.operations()}


def moved(name: str, backend: str, dtype: torch.dtype = torch.float32) -> Cost:
    return gpu_trace.total(gpu_trace.operation_steps("sm_90", CASES[name], backend, dtype))


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_the_fusion_moves_what_its_benchmark_counts(backend: str) -> None:
    name = "integrate 8x153x128x128 forward"
    work = moved(name, backend)
    assert work.moved == pytest.approx(CASES[name].bytes, rel=1e-3)
    assert moved(name, backend, torch.bfloat16).moved == pytest.approx(CASES[name].bytes / 2, rel=1e-3)
    assert work.launches == (5 if backend == "cuda" else 12)  # one of them numbers the lanes


def test_convolutions_multiply_what_their_benchmark_counts() -> None:
    name = "transition_up 1x304x64x64 forward"
    assert moved(name, "triton").products == CASES[name].flop
    name = "dense_block 1x260x128x128 forward"
    padded = CASES[name].flop * 16 / 12  # outputs
    for backend in ("triton", "cuda"):
        assert padded <= moved(name, backend, torch.bfloat16).products <= 1.2 * padded  # and channels, to whole steps


def test_a_finer_loss_has_no_array_of_upsampled_logits() -> None:
    name = "hybrid_loss 8x11x64x64->512 forward+backward"
    upsampled = 4 * 8 * 11 * 512**2
    for backend in ("triton", "cuda"):
        work = moved(name, backend)
        assert work.moved < upsampled / 3
        assert work.loaded > 4 * upsampled


def test_the_trace_leaves_backends_as_they_were() -> None:
    before = native.cuda_module, torch.Tensor.data_ptr
    with pytest.raises(RuntimeError, match="in the middle"), gpu_trace.traced("sm_90", "cuda"):
        raise RuntimeError("in the middle")
    assert (native.cuda_module, torch.Tensor.data_ptr) == before
    assert torch.ones(1).data_ptr() != 256


def test_operations_of_pytorch_cost_their_inputs_and_outputs() -> None:
    x = torch.empty(4, 8, device="meta")
    with gpu_trace.traced("sm_90", "triton") as steps:
        y = x.t().contiguous()  # a view, a copy
        x.add_(x.expand(2, 4, 8)[0])
        x.zero_()
        torch.mm(x, y)
    moves = [(step.work.read, step.work.written, step.work.products) for step in steps]
    assert moves == [(128, 128, 0), (256, 128, 0), (0, 128, 0), (256, 64, 2 * 4 * 8 * 4)]


def test_a_launch_takes_as_long_as_its_slowest_part() -> None:
    steps = [
        Step("a", Cost(loaded=64, stored=0, read=20, written=0, flop=64, products=1000)),
        Step("a", Cost(loaded=128, stored=64, read=10, written=10, flop=64, products=1000)),
        Step("b", Cost(flop=640)),
        Step("b", Cost(products=5000)),
    ]
    found = roofline.predict(steps, SIMPLE, half=True)
    assert found.by_limit == {"memory": 2.0, "caches": 3.0, "vector units": 10.0, "products": 5.0}
    assert found.limit == "vector units"
    assert found.total == 20.0 + 4 * roofline.OVERHEAD
    assert roofline.predict(steps[-1:], SIMPLE, half=False).by_limit == {"products": 5000 / 64}
    assert gpu_trace.total([]) == NOTHING


def test_three_passes_cost_three_times_one_but_for_the_image() -> None:
    one, three = (gpu_trace.total(gpu_trace.inference_steps("sm_90", "triton", 64, passes)) for passes in (1, 3))
    assert 2.5 < three.launches / one.launches < 3.1
    # The first pass reads one row of planes for all faces, later ones a row each.
    assert 3 < three.products / one.products < 3.3


def test_tables_have_a_line_a_row_and_say_what_binds() -> None:
    lines = {name: make().splitlines() for name, make in roofline.TABLES.items()}
    assert len(lines["network"]) == 2 + 3 * len(roofline.GPUS)
    assert any("| integrate 8x153x128x128 | cuda |" in line for line in lines["operations"])
    assert all(
        line.endswith((" memory |", " caches |", " vector units |", " products |")) for line in lines["operations"][2:]
    )
