from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ifan import ops
from ifan.ops import BackendError, channel_moments, current_backend, dispatch, gpu, native, set_backend, use_backend
from tests.support import flat
from tests.support.cases import compiled, needs_cpu

X = torch.ones(2, 3, 2, 2)


@pytest.fixture
def no_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where the compiler was missing."""
    monkeypatch.setattr("ifan.native._load", lambda name: (None, "skipped: no C++ compiler found"))
    monkeypatch.setattr(dispatch, "_warned", set())


def test_table_names_every_backend_with_reason_and_fix() -> None:
    table = {row.name: row for row in ops.backend_status()}
    assert tuple(table) == dispatch.BACKENDS
    assert table["reference"].available
    for row in table.values():
        assert bool(row.reason) == bool(row.fix) == (not row.available)


def test_use_backend_nests_and_restores() -> None:
    assert current_backend() == "auto"
    with use_backend("reference"):
        with pytest.raises(RuntimeError, match="inside"), use_backend("triton"):
            raise RuntimeError("inside")
        assert current_backend() == "reference"
    assert current_backend() == "auto"
    set_backend("reference")
    set_backend("auto")


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_missing_backend_asked_for_by_name_raises_with_reason_and_fix(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, f"{name}_missing", lambda: "it is not installed")
    with pytest.raises(BackendError, match=rf"backend '{name}' is not available: .* To fix: "):
        channel_moments(X, [2], backend=name)
    with use_backend(name), pytest.raises(BackendError, match="not available"):
        channel_moments(X, [2])


def test_missing_native_module_raises_by_name_and_warns_once_on_auto(no_native: None) -> None:
    assert not next(row for row in ops.backend_status() if row.name == "cpu").available
    with pytest.raises(BackendError, match=r"no C\+\+ compiler found\. To fix: install"):
        channel_moments(X, [2], backend="cpu")
    with pytest.raises(ImportError, match="no C\\+\\+ compiler found"):
        native.cpu_module()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        channel_moments(X, [2])
        channel_moments(X, [2])
    assert len(seen) == 1
    assert "no C++ compiler found" in str(seen[0].message)


@needs_cpu
def test_input_the_backend_cannot_take_raises_by_name_and_falls_back_on_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"cannot take this input: an input's dtype is torch\.float64"):
        channel_moments(X.double(), [2], backend="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert channel_moments(X.double(), [2])[0].dtype == torch.float64
    monkeypatch.delitem(dispatch._KERNELS, ("encode_predictions", "cpu"))
    with pytest.raises(BackendError, match="has no kernel for it"):
        ops.encode_predictions(torch.ones(1, 2, 8, 8), torch.ones(1, 2, 0), torch.ones(1, 0), [], backend="cpu")


def test_triton_runs_on_a_gpu_only() -> None:
    if gpu.triton_missing():
        pytest.skip("Triton is not installed")
    with pytest.raises(
        BackendError, match=r"cannot take this input: an input lies on cpu, not on a GPU \(TRITON_INTERP"
    ):
        channel_moments(X, [2], backend="triton")


def test_gpu_kernels_are_chosen_by_themselves_only_after_a_check_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    record = tmp_path / "check.json"
    for name, value in (("RECORD", record), ("triton_missing", lambda: None)):
        monkeypatch.setattr(gpu, name, value)
    for text in (None, "{", "[]", '{"triton": 1}', '{"cuda": "H100"}'):
        monkeypatch.setattr(dispatch, "_warned", set())
        if text is not None:
            record.write_text(text)
        with pytest.warns(RuntimeWarning, match="'triton': its kernels have not run on a GPU yet"):
            assert dispatch._automatic("integrate", (on_gpu,)) == "reference"
        assert "not run on a GPU" in {row.name: row.note for row in ops.backend_status()}["triton"]
    record.write_text('{"triton": "NVIDIA H100"}')
    assert dispatch._automatic("integrate", (on_gpu,)) == "triton"
    assert {row.name: row.note for row in ops.backend_status()}["triton"] == "checked on NVIDIA H100"


def test_unknown_backend_is_refused() -> None:
    for call in (lambda: set_backend("gpu"), lambda: channel_moments(X, [2], backend="gpu")):
        with pytest.raises(ValueError, match=r"expected one of .*got 'gpu'"):
            call()
    assert current_backend() == "auto"


def chosen(backend: str | None) -> list[str]:
    """The backend argument of the operation that really ran."""
    with torch.profiler.profile() as profile:
        channel_moments(X, [2], backend=backend)
    return [event.key for event in profile.key_averages() if event.key == "ifan::channel_moments"]


@needs_cpu
def test_auto_takes_the_native_kernel_and_reference_is_plain_pytorch() -> None:
    assert chosen(None) == ["ifan::channel_moments"]
    assert chosen("reference") == []


@needs_cpu
@pytest.mark.parametrize(("side", "recording", "native_runs"), [(4, True, False), (4, False, True), (32, True, True)])
def test_auto_leaves_convolutions_of_few_pixels_to_pytorch_in_training(
    side: int, recording: bool, native_runs: bool
) -> None:
    x, a, b = (torch.zeros(shape, requires_grad=True) for shape in ((1, 2, side, side), (4, 2, 3, 3), (4, 1, 3, 3)))
    with torch.set_grad_enabled(recording), torch.profiler.profile() as profile:
        flat.transition_up([x], a, b)
    assert ("ifan::transition_up" in {event.key for event in profile.key_averages()}) == native_runs


@needs_cpu
def test_compiled_code_follows_the_switch_outside_and_inside() -> None:
    assert current_backend() == "auto"
    graphs: list[str] = []

    def spy(module: torch.fx.GraphModule, _: object) -> object:
        graphs.append(str(module.graph))
        return module.forward

    def inside(x: torch.Tensor) -> torch.Tensor:
        with use_backend("reference"):
            return channel_moments(x, [2])[0]

    outside = compiled(lambda x: channel_moments(x, [2])[0], spy)  # type: ignore[arg-type]
    for name in ("auto", "reference", "cpu", "auto"):
        with use_backend(name):
            outside(X)
    compiled(inside, spy)(X)  # type: ignore[arg-type]
    assert ["ifan.channel_moments" in graph for graph in graphs] == [True, False, True, False]


@pytest.mark.parametrize(("value", "expected"), [("reference", "reference"), ("", "auto")])
def test_environment_variable(value: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IFAN_BACKEND", value)
    assert dispatch.from_environment() == expected


def test_wrong_environment_variable_is_named() -> None:
    code = "import torch; from ifan.ops import channel_moments; channel_moments(torch.ones(1, 1, 1, 1), [1])"
    environment = {**os.environ, "IFAN_BACKEND": "gpu"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert found.returncode != 0
    assert "IFAN_BACKEND: expected one of" in found.stderr
