"""What the emulation finds, on kernels that are wrong on purpose, and that the library's kernels pass all of it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gpu.emulation.build import (
    KERNELS,
    ORDERS,
    SOURCES,
    compile_kernel,
    link_program,
    mutated_sources,
    needs_compiler,
)

pytestmark = needs_compiler
HERE = Path(__file__).parent
ADDRESS = ("-fsanitize=address", "-fno-omit-frame-pointer")
THREAD = ("-fsanitize=thread", "-DCUDA_EMU_THREADS")
FOUND = {
    "correct": "sum 2016",
    "early_exit": "sum 40",
    "missing_barrier": "nan",
    "unset_shared": "nan",
    "divergent_barrier": "threads wait at different barriers",
    "shuffle_without_a_lane": "deadlock in block",
    "shuffle_from_outside_the_mask": "the calling lane is not in the mask",
}

Program = Callable[..., str]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """Run one planted bug; returns what was printed. Compiled once for each set of flags."""
    made: dict[tuple[str, ...], Path] = {}

    def run(case: str, *flags: str, order: str = "fwd") -> str:
        if flags not in made:
            folder = tmp_path_factory.mktemp("planted")
            compiled = compile_kernel(HERE / "planted_bugs.cu", folder / "planted.o", "-O1", *flags)
            made[flags] = link_program([compiled], folder / "planted", *flags)
        return output_of(made[flags], case, order=order)

    return run


def output_of(program: Path, *arguments: str, order: str = "fwd") -> str:
    environment = os.environ | {"CUDA_EMU_ORDER": order, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [program, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", FOUND)
def test_planted_bug_is_found(case: str, order: str, planted: Program) -> None:
    assert FOUND[case] in planted(case, order=order)


@pytest.mark.parametrize("case", ["shared_overrun", "global_overrun"])
def test_address_sanitizer_stops_at_an_overrun(case: str, planted: Program) -> None:
    assert "sum 2016" in planted("correct", *ADDRESS)
    found = planted(case, *ADDRESS)
    assert "heap-buffer-overflow" in found
    assert case in found


def test_thread_sanitizer_names_a_missing_barrier(planted: Program) -> None:
    assert planted("correct", *THREAD).strip() == "sum 2016"
    found = planted("missing_barrier", *THREAD)
    assert "data race" in found
    assert "missing_barrier" in found


def driver(folder: Path, *flags: str, sources: Path = SOURCES) -> Path:
    """A program that runs every kernel once, compiled with these flags from ``sources``."""
    folder.mkdir(exist_ok=True)
    kernels = [compile_kernel(sources / f"{name}.cu", folder / f"{name}.o", "-O1", *flags) for name in KERNELS]
    main = compile_kernel(HERE / "driver.cpp", folder / "driver.o", "-O1", *flags)
    return link_program([main, *kernels], folder / "driver", *flags)


def test_kernels_pass_the_address_sanitizer_in_every_order_of_threads(tmp_path: Path) -> None:
    program = driver(tmp_path, *ADDRESS)
    assert {order: output_of(program, order=order).strip() for order in ORDERS} == dict.fromkeys(ORDERS, "passed")


@pytest.mark.full
def test_kernels_pass_the_undefined_behaviour_sanitizer(tmp_path: Path) -> None:
    assert output_of(driver(tmp_path, "-fsanitize=undefined")).strip() == "passed"


@pytest.mark.full
def test_kernels_pass_the_thread_sanitizer(tmp_path: Path) -> None:
    assert output_of(driver(tmp_path, *THREAD)).strip() == "passed"


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "barrier"),
    [
        ("device.h", "  __syncthreads();\n  if (threadIdx.x == 0)"),
        ("device.h", "  __syncthreads();  // the array may be written again"),
        ("integrate.cu", "  __syncthreads();  // before one thread a channel adds the shares"),
        ("dense_block.cu", "      __syncthreads();\n      multiply"),
        ("dense_block.cu", "      __syncthreads();  // before the next channels overwrite these"),
    ],
    ids=["block_sum-before", "block_sum-after", "norm_gradients", "layer-before", "layer-after"],
)
def test_thread_sanitizer_names_every_barrier_that_is_taken_out(name: str, barrier: str, tmp_path: Path) -> None:
    mutant = mutated_sources(tmp_path / "cuda", name, barrier, barrier.replace("__syncthreads();", ""))
    assert "data race" in output_of(driver(tmp_path / "out", *THREAD, sources=mutant))
