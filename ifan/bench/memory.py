"""Extra memory of a call: a fresh process's high-water mark over what it held with inputs and weights made."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ifan.bench.problem import Case, Setting
from ifan.bench.suite import named, suite

TIMEOUT = 180.0


def measured(case: Case, contender: str, setting: Setting, timeout: float = TIMEOUT) -> dict[str, Any]:
    """``extra_mb`` of preparing the contender and two calls, and ``memory_note`` where that could not be measured."""
    if setting.device == "cuda":
        return _on_gpu(case, contender, setting)
    given = json.dumps([case.name, contender, asdict(replace(setting, folder=Path())) | {"folder": ""}])
    command = [sys.executable, "-m", "ifan.bench.memory", given]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=True)
        return {"extra_mb": float(json.loads(done.stdout.splitlines()[-1]))}
    except subprocess.TimeoutExpired:
        return {"extra_mb": None, "memory_note": f"not finished in {timeout:.0f} s"}
    except (subprocess.CalledProcessError, OSError, ValueError, IndexError) as error:
        text = (getattr(error, "stderr", "") or str(error)).strip()
        return {"extra_mb": None, "memory_note": text.splitlines()[-1] if text else type(error).__name__}


def extra_megabytes(case: Case, small: Case | None, contender: str, setting: Setting) -> float:
    """Measure in this process, which should be a fresh one; ``small`` runs first and loads what every call needs."""
    from ifan.allocator import return_freed_memory, trim

    return_freed_memory()
    if small is not None:
        small.build(setting).makers[contender]().run(0)
    problem = case.build(setting)
    trim()
    _reset_peak()
    before = _status("VmRSS")
    run = problem.makers[contender]().run
    for i in range(2):
        run(i)
    return (_status("VmHWM") - before) / 1024


def _reset_peak() -> None:
    """Make the high-water mark what is resident now."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError as error:
        raise ValueError(
            f"memory: the system does not let the peak be reset ({error}); measured on Linux only"
        ) from error


def _status(field: str) -> int:
    """A line of /proc/self/status, in KiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise ValueError(f"memory: /proc/self/status has no {field}; measured on Linux only")


def _on_gpu(case: Case, contender: str, setting: Setting) -> dict[str, Any]:
    import torch

    run = case.build(setting).makers[contender]().run
    run(0)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(1)
    torch.cuda.synchronize()
    return {"extra_mb": (torch.cuda.max_memory_allocated() - before) / 2**20}


def _main(given: str) -> None:
    import torch

    name, contender, settings = json.loads(given)
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(**{**settings, "folder": Path(folder), "compile_modes": ("default",)})
        torch.set_num_threads(setting.threads)
        case = named(name, setting.quick)
        kind = _kind(case)
        small = next((one for one in suite(True) if _kind(one) == kind), None)
        print(extra_megabytes(case, small, contender, setting))


def _kind(case: Case) -> tuple[str, str, str]:
    return case.op, case.work.split()[0], case.dtype


if __name__ == "__main__":
    _main(sys.argv[1])
