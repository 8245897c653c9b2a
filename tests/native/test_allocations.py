from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.native.build import compiler

FOLDER = Path(__file__).parent


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("counts calls of glibc's allocator")
    if "libasan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("the address sanitizer brings its own allocator")
    library = tmp_path_factory.mktemp("allocations") / "allocations.so"
    subprocess.run(
        [compiler(), "-x", "c", "-O1", "-shared", "-fPIC", FOLDER / "allocations.c", "-o", library], check=True
    )
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    command = [sys.executable, "-m", "tests.native.count_allocations"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=FOLDER.parents[1])
    found: dict[str, dict[str, int]] = json.loads(ran.stdout)
    return found


def test_allocations_are_seen(counted: dict[str, dict[str, int]]) -> None:
    assert counted["call 1"]["calls"] > 0
    assert counted["outputs 3"]["large_bytes"] > counted["outputs 1"]["large_bytes"] > 0


@pytest.mark.parametrize("faces", [1, 3])
def test_the_kernels_of_a_plan_allocate_nothing_after_the_first_call(
    counted: dict[str, dict[str, int]], faces: int
) -> None:
    """Less what pybind11 takes to call a plan of no steps."""
    assert counted[f"plan {faces}"] == counted["no steps"]


@pytest.mark.parametrize("faces", [1, 3])
def test_a_call_takes_large_blocks_for_its_results_only(counted: dict[str, dict[str, int]], faces: int) -> None:
    assert counted[f"call {faces}"]["large_bytes"] == counted[f"outputs {faces}"]["large_bytes"]
