"""The tests of the Triton kernels, in a process of their own whose environment chooses Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed: pip install triton")
@pytest.mark.timeout(600)
def test_triton_kernels_in_the_interpreter() -> None:
    folder = Path(__file__).parent / "kernels"
    command = [sys.executable, "-m", "pytest", str(folder), "-x", "-p", "no:cacheprovider"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, cwd=folder.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
