"""What a rival leaves behind in the process that ran it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import faulthandler, gc, signal, sys
import numpy as np, openvino, torch
from openvino import opset13
from ifan.bench import rivals

faulthandler.enable()  # has an alternate signal stack, as pytest has
signal.signal(signal.SIGCHLD, lambda *_: print("handled"))
x = opset13.parameter([1, 3], np.float32)
openvino.save_model(openvino.Model([opset13.relu(x)], [x]), sys.argv[1])
first, second = (rivals.openvino(sys.argv[1], [[torch.ones(1, 3)]], 1) for _ in range(2))
del first
gc.collect()
del second
gc.collect()
signal.raise_signal(signal.SIGCHLD)
"""


def test_signals_are_handled_after_openvino_is_done(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    command = [sys.executable, "-c", PROGRAM, f"{tmp_path}/relu.xml"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "handled\n"), ended.stderr
