"""Rivals, and their ways to run a function or an exported graph."""

from __future__ import annotations

import contextlib
import functools
import importlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import torch
from torch import Tensor

from ifan.bench.machine import synchronise
from ifan.bench.problem import Missing, Ready, Run, Setting


class TimeLimit(Exception):
    """Raised where the time for preparing a contender is over."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeLimit` inside after so many seconds; without effect outside the main thread.

    Takes effect between two steps of the interpreter, so a long native call ends first.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeLimit(f"not finished in {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def compiled(make: Callable[[str], Run], setting: Setting) -> Ready:
    """The faster of the modes of torch.compile that are ready in ``setting.compile_seconds`` together.

    ``make(mode)`` returns a run whose first call compiles. Raises `Missing` if none is ready in time.
    """
    torch.compiler.reset()
    best: tuple[float, Run, str, list[Tensor]] | None = None
    notes, left = [], setting.compile_seconds
    for mode in setting.compile_modes:
        began = time.perf_counter()
        try:
            with time_limit(left):
                run = make(mode)
                first = [value.clone() for value in run(0)]
                run(1)
            took = time.perf_counter() - began
            alone = len(setting.compile_modes) == 1
            seconds = 0.0 if alone else min(_seconds(run, setting.device) for _ in range(2))
            notes.append(f"{mode} compiled in {took:.0f} s")
            this = (seconds, run, mode, first)
            best = min(best or this, this, key=lambda found: found[0])
        except TimeLimit:
            notes.append(f"{mode} not compiled in {left:.0f} s")
            break
        except Exception as error:  # a compiler's failure is the rival's, not the run's
            if time.perf_counter() - began >= left:  # the compiler wraps what is raised in it
                notes.append(f"{mode} not compiled in {left:.0f} s")
                break
            notes.append(f"{mode} failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        left -= time.perf_counter() - began
        if left <= 0:
            break
    if best is None:
        raise Missing("torch.compile: " + "; ".join(notes))
    return Ready(best[1], f"{best[2]}; " + "; ".join(notes), best[3])


def onnxruntime(graph: Path, inputs: Sequence[Sequence[Tensor]], threads: int) -> Ready:
    """ONNX Runtime on the CPU; ``inputs`` are the sets that rounds alternate between."""
    ort = _optional("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # not while others run
    options.add_session_config_entry("session.set_denormal_as_zero", "1")  # as ours, and as OpenVINO does by itself
    session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    feeds = [{name: value.numpy() for name, value in zip(names, one, strict=True)} for one in inputs]
    return Ready(lambda i: [torch.from_numpy(value) for value in session.run(None, feeds[i % len(feeds)])])


def openvino(graph: Path, inputs: Sequence[Sequence[Tensor]], threads: int, precision: str = "f32") -> Ready:
    """OpenVINO on the CPU in that precision (``f32`` or ``bf16``)."""
    core = openvino_core()
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "ENABLE_HYPER_THREADING": True,
        "ENABLE_CPU_PINNING": False,
    }
    model = core.read_model(graph)
    model.reshape({value: list(example.shape) for value, example in zip(model.inputs, inputs[0], strict=True)})
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    feeds = [[value.numpy() for value in one] for one in inputs]

    def run(i: int) -> list[Tensor]:
        request.infer(feeds[i % len(feeds)], share_inputs=True)
        return [torch.from_numpy(tensor.data) for tensor in request.output_tensors]

    return Ready(run, precision)


@functools.cache
def openvino_core() -> Any:
    """OpenVINO's runtime, one for the whole process.

    Its CPU plugin gives the thread that loads it an alternate signal stack, and puts the one before it back when it
    goes. Of two plugins that overlap, the later one would put back that of the first, no longer mapped by then, and
    the next signal that Python handles (SIGCHLD, where data workers are used) would end the process.
    """
    return _optional("openvino").Core()


def _optional(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise Missing(f"{package} is not installed ({error}); run: pip install 'ifan[export]'") from error


def _seconds(run: Run, device: str) -> float:
    start = time.perf_counter()
    run(0)
    synchronise(device)
    return time.perf_counter() - start
