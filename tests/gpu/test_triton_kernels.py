"""The tests of the Triton kernels, in a process of their own whose environment chooses Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LEAST_COVERAGE = 95

TESTS = ["-m", "pytest", "-x", "-p", "no:cacheprovider"]
MUTANTS = "tests/gpu/triton/test_mutants.py"


def needs(module: str, name: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(missing, reason=f"{name} is not installed: pip install {module}")


def run(arguments: list[str], **variables: str) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"} | variables
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]


@needs("triton", "Triton")
@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("tests", [["tests/gpu/triton", f"--ignore={MUTANTS}"], [MUTANTS]], ids=["kernels", "mutants"])
def test_triton_kernels_in_the_interpreter(tests: list[str]) -> None:
    run([*TESTS, *tests])


@needs("triton", "Triton")
@needs("coverage", "coverage")
@pytest.mark.full
@pytest.mark.timeout(3600)
def test_coverage_of_the_triton_kernels(tmp_path: Path) -> None:
    """Interpreted kernels are Python, so their lines and branches are counted like any other's."""
    file, tests = str(tmp_path / "coverage"), [*TESTS, "tests/gpu/triton", f"--ignore={MUTANTS}"]
    run(["-m", "coverage", "run", "--branch", "--source=kernels", *tests], COVERAGE_FILE=file)
    run(["-m", "coverage", "report", "--show-missing", f"--fail-under={LEAST_COVERAGE}"], COVERAGE_FILE=file)
