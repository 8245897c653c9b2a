"""The cost model of the Triton kernels against the code that Triton's compiler makes of them."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed: pip install triton", allow_module_level=True)

from tests.gpu.tools import gpu_compile, gpu_cost
from tests.gpu.tools.gpu_compile import Launch
from tests.gpu.tools.gpu_cost import Cost
from tests.gpu.tools.launches import Started
from tests.gpu.tools.ttir import cost_of_a_program

BORDER = 0.05
"""What the masks of taps outside the map take off 32 x 32 pixels: 1 - (94 / 96)^2 is 4 %."""
TAPPED = {"convolution.convolution_kernel", "convolution.weight_kernel", "cross_entropy.gather_kernel"}
SMALL_TERMS = 0.01
"""FLOP once a channel or a program, which the formulas leave out."""
FOLDED = {"hybrid_loss.points_kernel": 0.1}
"""Triton 3.6 folds two operations a point less than 3.9."""
TILES = {"channels": "CHANNELS", "pixels": "PIXELS", "outputs": "OUTPUTS"} | dict.fromkeys(
    ("entries", "count", "size"), "BLOCK"
)


def whole_tiles(launch: Started) -> Any:
    """The launch with sizes rounded up to whole tiles, as the compiled code has them before masks."""
    values = launch.values
    for name, tile in TILES.items():
        if isinstance(values.get(name), int) and tile in values:
            values[name] = gpu_cost.cdiv(values[name], values[tile]) * values[tile]
    if launch.name == "channel_moments.join_kernel":
        values |= {name: gpu_cost.cdiv(values[name], n) * n for name, n in (("entries", 64), ("channels", 16))}
    if launch.name == "convolution.convolution_kernel":
        values["channels"] = tuple(gpu_cost.cdiv(c, values["DEPTH"]) * values["DEPTH"] for c in values["channels"])
    return SimpleNamespace(**values, grid=launch.grid)


def first_launches(case: str) -> dict[tuple[str, str], Launch]:
    """The first launch of each kernel on sm_90, by operation and kernel."""
    found = gpu_compile.launches(["sm_90"], [case], once=True)
    return {(op, launched.kernel.__name__): launched for op, _, _, launched in found}


def faults(code: str, launch: Started) -> list[str]:
    """How the code of all programs differs from the formula."""
    program, programs = cost_of_a_program(code, launch), math.prod(launch.grid)
    wanted = gpu_cost.FORMULAS[launch.name](whole_tiles(launch))
    if launch.name == "lanes.collect_kernel":  # every sample's program meets all lanes, and masks those of others
        wanted = replace(wanted, loaded=wanted.loaded + (launch.grid[0] - 1) * launch.values["by_lane"].nbytes)
    if launch.name == "encode_predictions.disc_kernel":  # half of its tile of 2,048 lies outside the plane
        program = replace(program, stored=program.stored // 2, flop=program.flop // 2)
    found = []
    for name, tolerance in (
        ("loaded", BORDER if launch.name in TAPPED else 0),
        ("stored", 0),
        ("flop", FOLDED.get(launch.name, SMALL_TERMS)),
        ("products", 0),
    ):
        actual, expected = getattr(program, name) * programs, getattr(wanted, name)
        if abs(actual - expected) > tolerance * expected:
            found.append(f"{launch.name}: {name} {actual}, not {expected}")
    return found


@pytest.mark.parametrize("case", ["bf16", pytest.param("fp32", marks=pytest.mark.full)])
def test_compiled_code_moves_and_computes_what_the_formulas_say(case: str) -> None:
    launches = first_launches(case).values()
    assert {launch.started.name for launch in launches} == set(gpu_cost.FORMULAS)
    target = gpu_compile.TARGETS["sm_90"]
    assert [f for one in launches for f in faults(gpu_compile.compiled(one, target).asm["ttir"], one.started)] == []


@pytest.mark.parametrize("case", ["bf16", pytest.param("fp32", marks=pytest.mark.full)])
def test_machine_code_moves_whole_maps_by_16_bytes_and_once(case: str) -> None:
    """Of pointwise kernels; labels and a channel's values, up to 2 %, come in smaller pieces."""
    target, checked = gpu_compile.TARGETS["sm_90"], 0
    for name, launch in first_launches(case).items():
        if name in gpu_compile.WIDE:
            found, wanted = gpu_compile.build(launch, target), gpu_cost.FORMULAS[launch.started.name]
            work = wanted(whole_tiles(launch.started))
            threads = math.prod(launch.started.grid) * found.warps * target.warp_size
            assert found.wide * 16 * threads == pytest.approx(work.loaded + work.stored, rel=0.02), launch.started.name
            checked += 1
    assert checked == len(gpu_compile.WIDE)


def test_code_with_one_more_access_is_caught() -> None:
    launch = first_launches("bf16")["integrate", "forward_kernel"]
    code = gpu_compile.compiled(launch, gpu_compile.TARGETS["sm_90"]).asm["ttir"]
    for operation, name in (("tt.load", "loaded"), ("tt.store", "stored"), ("arith.mulf", "flop")):
        line = next(line for line in code.splitlines(True) if operation in line and "tensor" in line)
        (fault,) = faults(code.replace(line, line + line), launch.started)
        assert fault.startswith(f"integrate.forward_kernel: {name} ")


def test_loops_and_products_are_counted_by_their_bounds() -> None:
    code = """
      tt.func public @kernel(%p: !tt.ptr<bf16> {tt.divisibility = 16 : i32} loc("p"(#loc)), %n: i32 loc("n"(#loc))) {
      %c0_i32 = arith.constant 0 : i32
      %c9_i32 = arith.constant 9 : i32
      %start = tt.get_program_id x : i32
      %step = tt.get_num_programs x : i32
      %end = arith.muli %n, %c9_i32 : i32
      %a = scf.for %i = %start to %end step %step iter_args(%b = %c) -> (tensor<4x4xf32>)  : i32 {
        %x = tt.load %p, %mask, %zero : tensor<4x8x!tt.ptr<bf16>> loc(#loc1)
        %y = tt.dot %x, %w, %b : tensor<4x8xbf16> * tensor<8x4xbf16> -> tensor<4x4xf32> loc(#loc1)
        %z = "tt.reduce"(%y) <{axis = 0 : i32}> ({
        ^bb0(%l: f32, %r: f32):
          %s = arith.addf %l, %r : f32
          tt.reduce.return %s : f32
        }) : (tensor<4x4xf32>) -> tensor<4xf32>
      }
      tt.store %q, %v : !tt.ptr<f32>
    """
    found = cost_of_a_program(code, Started(None, (4,), (1.0, (1, None, 2)), {}))
    assert found == Cost(loaded=5 * 64, stored=4, flop=5 * 16, products=5 * 256)
