"""Rivals have the settings their own users would choose; what one leaves behind in the process that ran it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ifan.bench import rivals
from ifan.bench.problem import Ready, Setting
from ifan.bench.suite import choose, suite

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


INPUTS = [[torch.ones(1, 3)], [torch.zeros(1, 3)]]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_onnx_runtime_runs_as_its_users_would_run_it(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many threads as all others; zeros for subnormal numbers, and nothing that spins while others run."""
    options, entries, fed = SimpleNamespace(), {}, []
    options.add_session_config_entry = entries.__setitem__

    class Session:
        def __init__(self, graph: str, given: object, providers: list[str]) -> None:
            assert (graph, given, providers) == ("a.onnx", options, ["CPUExecutionProvider"])

        def get_inputs(self) -> list[SimpleNamespace]:
            return [SimpleNamespace(name="x")]

        def run(self, wanted: None, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
            fed.append(feed["x"][0, 0])
            return [feed["x"]]

    fake = SimpleNamespace(SessionOptions=lambda: options, InferenceSession=Session)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    ready = rivals.onnxruntime(Path("a.onnx"), INPUTS, threads)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (threads, 1)
    assert entries == {"session.force_spinning_stop": "1", "session.set_denormal_as_zero": "1"}
    for i in range(3):
        ready.run(i)
    assert fed == [1, 0, 1]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_openvino_runs_as_its_users_would_run_it(threads: int, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[dict[str, object]] = []
    model = SimpleNamespace(inputs=["x"], reshape=lambda shapes: None)

    def compile_model(given: object, device: str, settings: dict[str, object]) -> SimpleNamespace:
        assert (given, device) == (model, "CPU")
        compiled.append(settings)
        return SimpleNamespace(create_infer_request=lambda: None)

    core = SimpleNamespace(read_model=lambda path: model, compile_model=compile_model)
    monkeypatch.setattr(rivals, "openvino_core", lambda: core)
    rivals.openvino(Path("a.onnx"), INPUTS, threads, precision)
    assert compiled == [
        {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "ENABLE_HYPER_THREADING": True,
            "ENABLE_CPU_PINNING": False,
        }
    ]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_row_gives_its_rivals_the_threads_it_gives_us(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[tuple[str, str], int] = {}

    def spy(name: str, case: str) -> Callable[..., Ready]:
        def rival(graph: Path, inputs: object, threads: int, *precision: str) -> Ready:
            told[case, name] = threads
            return Ready(lambda i: [])

        return rival

    for module in ("network", "cases"):
        monkeypatch.setattr(f"ifan.bench.{module}._exported", lambda *_: Path("a.onnx"))
    rows = suite(quick=True)
    for case in (*choose(rows, "network 1*inference*float32"), choose(rows, "dense_block*forward float32")[-1]):
        for name in ("onnxruntime", "openvino"):
            monkeypatch.setattr(rivals, name, spy(name, case.name))
        problem = case.build(Setting(tmp_path, threads=threads))
        for name in ("onnxruntime", "openvino"):
            problem.makers[name]()
    assert len(told) == 4
    assert set(told.values()) == {threads}


def test_a_time_limit_ends_what_is_in_it_and_nothing_after_it() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with rivals.time_limit(30):
        assert 25 < signal.getitimer(signal.ITIMER_REAL)[0] <= 30
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert signal.getsignal(signal.SIGALRM) is before
    with pytest.raises(rivals.TimeLimit, match="not finished in 0 s"), rivals.time_limit(0.01):
        time.sleep(10)
    assert signal.getsignal(signal.SIGALRM) is before


def test_signals_are_handled_after_openvino_is_done(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    command = [sys.executable, "-c", PROGRAM, f"{tmp_path}/relu.xml"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "handled\n"), ended.stderr
