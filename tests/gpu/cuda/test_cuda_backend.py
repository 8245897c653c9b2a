"""Backend ``cuda`` where there is no GPU: it imports, says what is missing, and is never chosen unasked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ifan import ops
from ifan.ops import dispatch, gpu, native

ROOT = Path(__file__).resolve().parents[3]


def test_module_loads_without_torch_and_without_a_driver() -> None:
    try:
        module = native.cuda_module()
    except ImportError as error:
        pytest.skip(str(error))
    folder = Path(module.__file__ or "").parent
    code = "import sys, _cuda; print('torch' in sys.modules, _cuda.emulated, _cuda.versions()['runtime'] >= 12000)"
    found = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False", "True"]


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (0, "ifan._cuda loads, but there is no NVIDIA driver; it was built with CUDA 13.0"),
        (12040, "the NVIDIA driver serves CUDA up to 12.4; it was built with CUDA 13.0"),
        (13010, None),
    ],
)
def test_driver_is_named(driver: int, reason: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(emulated=False, versions=lambda: {"runtime": 13000, "driver": driver})
    monkeypatch.setattr("ifan.native._load", lambda name: (module, ""))
    found = native.cuda_refusal()
    assert found == reason if reason is None else reason in str(found)


def test_missing_module_names_the_reason_and_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ifan.native._load", lambda name: (None, "skipped: nvcc is not there"))
    with pytest.raises(ImportError, match="nvcc is not there; it takes an NVIDIA driver"):
        native.cuda_module()
    row = next(row for row in ops.backend_status() if row.name == "cuda")
    assert (row.available, row.reason, row.fix) == (False, "skipped: nvcc is not there", native.CUDA_FIX)


def test_auto_takes_the_kernels_only_after_a_check_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32, shape=(1, 4))
    for name, value in (
        ("RECORD", tmp_path / "check.json"),
        ("cuda_missing", lambda: None),
        ("triton_missing", lambda: None),
    ):
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(dispatch, "_warned", set())
    with pytest.warns(RuntimeWarning, match="'cuda': its kernels have not run on a GPU yet"):
        assert dispatch._automatic("integrate", (on_gpu,)) == "reference"
    assert "not run on a GPU" in {row.name: row.note for row in ops.backend_status()}["cuda"]
    gpu.RECORD.write_text('{"triton": "NVIDIA H100"}')
    assert dispatch._automatic("integrate", (on_gpu,)) == "triton"
    gpu.RECORD.write_text('{"triton": "NVIDIA H100", "cuda": "NVIDIA H100"}')
    assert dispatch._automatic("integrate", (on_gpu,)) == "cuda"


@pytest.mark.parametrize(
    ("tools", "environment", "status", "message"),
    [
        (["false"], {"IFAN_CUDA": "build"}, 0, "skipped: nvcc is neither in $CUDA_HOME/bin nor on the PATH"),
        (["false", "nvcc"], {"IFAN_CUDA": "build"}, 1, "names no toolkit with libcudart_static.a"),
        (["false", "nvcc"], {}, 0, "skipped: IFAN_CUDA=off at installation, IFAN_CUDA=build adds it"),
        (["false", "nvcc"], {"IFAN_CUDA": "off"}, 0, "skipped: IFAN_CUDA=off at installation"),
        (["false"], {"IFAN_CUDA": "require"}, 1, "IFAN_CUDA=require, but skipped: nvcc is neither"),
        (["false"], {"IFAN_CUDA": "maybe"}, 1, "IFAN_CUDA must be build, require or off; got 'maybe'"),
    ],
    ids=["no nvcc", "failing nvcc", "default", "off", "required", "unknown"],
)
def test_missing_or_failing_nvcc(
    tools: list[str], environment: dict[str, str], status: int, message: str, tmp_path: Path
) -> None:
    """Every tool on the PATH is one that fails, so that nothing is compiled."""
    if not (ROOT / "setup.py").exists():
        pytest.skip("the tests run without the source tree")
    path = tmp_path / "bin"
    path.mkdir()
    for tool in tools:
        (path / tool).write_text("#!/bin/sh\nexit 1\n")
        (path / tool).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("IFAN_", "CUDA_"))}
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", tmp_path, "--build-lib", tmp_path / "lib"]
    environment = kept | {"PATH": str(path), "CXX": "false", "IFAN_NATIVE": "off"} | environment
    build = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (build.returncode != 0) == bool(status), build.stderr
    assert message in build.stdout + build.stderr
    if status == 0:
        assert message in (tmp_path / "lib" / "ifan" / "_build.json").read_text()
