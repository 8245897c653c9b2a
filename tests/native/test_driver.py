"""The kernels without Python: on each instruction set, on another processor, and watched by the thread sanitizer."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from ifan.ops import native
from tests.native.build import X86, build_driver, needs

CASES = 17


def run(command: Sequence[str | Path], **environment: str) -> str:
    """What the driver prints; a failing case or a sanitizer's report fails the test."""
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    return ran.stdout


def assert_all_right(output: str) -> None:
    assert output.count(" error ") == CASES
    assert "WRONG" not in output


def test_kernels_equal_scalar_arithmetic_in_double_precision() -> None:
    isa = "avx2" if X86 else "baseline"
    if isa not in native.cpu_module().features()["supported"]:
        pytest.skip(f"this processor has no {isa}")
    driver = build_driver("counted", isa)
    one, three = (run([driver, "--threads", threads]) for threads in ("1", "3"))
    assert_all_right(one)
    assert one == three


def test_on_aarch64_under_an_emulator() -> None:
    compiler, emulator = needs("aarch64-linux-gnu-g++"), needs("qemu-aarch64")
    driver = build_driver("aarch64", "baseline", "-static", compiler)
    assert_all_right(run([emulator, driver, "--threads", "2"]))


def test_no_data_race() -> None:
    """Two callers, three threads each; the values are compared above, where arithmetic is fast."""
    driver = build_driver("threads", "baseline", "-O0 -fsanitize=thread")
    command = [driver, "--threads", "3", "--callers", "2", "--only-run"]
    assert_all_right(run(command, TSAN_OPTIONS="halt_on_error=1"))
