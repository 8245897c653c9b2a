from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from ifan.ops import native
from tests.support.cases import needs_cpu

ROOT = Path(__file__).resolve().parents[2]


@needs_cpu
def test_features_name_the_processor_and_a_supported_instruction_set() -> None:
    features = native.cpu_module().features()
    assert features["processor"]
    assert features["compiled"][0] == "baseline"
    assert features["isa"] == features["supported"][-1]
    assert set(features["supported"]) <= set(features["compiled"])
    if platform.machine() in ("x86_64", "AMD64"):
        assert features["compiled"] == ["baseline", "avx2", "avx512"]


@needs_cpu
def test_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match="got mmx"):
        native.cpu_module().use_isa("mmx")


@needs_cpu
def test_module_does_not_need_torch() -> None:
    folder = Path(native.cpu_module().__file__ or "").parent
    code = "import sys, _cpu; print('torch' in sys.modules, _cpu.features()['isa'])"
    found = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert found.stdout.split()[0] == "False"


@needs_cpu
def test_note_says_what_was_built() -> None:
    assert native.build_note().get("ifan._cpu") == "built"


@pytest.mark.parametrize(
    ("environment", "status", "message"),
    [
        ({"IFAN_NATIVE": "off"}, 0, "skipped: IFAN_NATIVE=off"),
        ({"CXX": "no-such-compiler"}, 0, "skipped: no C++ compiler found (CXX=no-such-compiler)"),
        ({"CXX": "false"}, 1, "IFAN_NATIVE=off installs without ifan._cpu"),
        ({"CXX": "false", "IFAN_NATIVE": "require"}, 1, "IFAN_NATIVE=require, but the native build failed"),
        ({"CXX": "no-such-compiler", "IFAN_NATIVE": "require"}, 1, "no C++ compiler found"),
        ({"IFAN_NATIVE": "maybe"}, 1, "must be build, require or off"),
    ],
    ids=str,
)
def test_missing_or_failing_compiler(tmp_path: Path, environment: dict[str, str], status: int, message: str) -> None:
    if not (ROOT / "setup.py").exists():
        pytest.skip("the tests run without the source tree")
    kept = {name: value for name, value in os.environ.items() if name not in ("CXX", "IFAN_NATIVE")}
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", tmp_path, "--build-lib", tmp_path / "lib"]
    build = subprocess.run(command, cwd=ROOT, env={**kept, **environment}, capture_output=True, text=True, check=False)
    assert (build.returncode != 0) == bool(status), build.stderr
    assert message in build.stdout + build.stderr
    assert not list(tmp_path.rglob("*.so"))
    if status == 0:
        assert message in (tmp_path / "lib" / "ifan" / "_build.json").read_text()
        assert (tmp_path / "lib" / "ifan" / "ops" / "channel_moments.py").exists()
