"""Every Triton kernel compiles for each GPU family without spills, within its registers, with wide accesses."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.support.pretended_gpu import pretended_gpu

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed: pip install triton", allow_module_level=True)

from ifan.ops import native
from tests.gpu.tools import gpu_compile, records

QUICK = {"sm_90": ["bf16"], "gfx942": ["fp32"]}
KERNELS = 18
CALLS = list(gpu_compile.operations(*gpu_compile.CASES["bf16"]))


@pytest.fixture
def one() -> gpu_compile.Row:
    return next(iter(gpu_compile.survey(["sm_90"], ["bf16"], once=True)))


@pytest.mark.parametrize("family", QUICK)
def test_each_kernel_once(family: str) -> None:
    rows = list(gpu_compile.survey([family], QUICK[family], once=True))
    assert len({row.launched.kernel.__name__ + row.launched.kernel.__module__ for row in rows}) == KERNELS
    assert [fault for row in rows for fault in row.faults()] == []


@pytest.mark.parametrize("classes", [64, 150])
def test_kernels_that_hold_many_classes_do_not_spill(classes: int) -> None:
    target, found = gpu_compile.TARGETS["sm_90"], {}
    calls = gpu_compile.operations(*gpu_compile.CASES["bf16"], classes=classes)
    for op in ("encode_predictions", "hybrid_loss", "hybrid_loss, finer labels"):
        with gpu_compile.recorded("sm_90") as launches:
            calls[op]()
        for launched in launches:
            if launched.started.values.get("channels") == classes and launched.kernel.__name__ not in found:
                found[launched.kernel.__name__] = gpu_compile.build(launched, target)
    assert len(found) == 5
    assert [name for name, made in found.items() if made.spills or made.stack or made.registers > 168] == []


@pytest.mark.full
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("case", gpu_compile.CASES)
@pytest.mark.parametrize("family", gpu_compile.TARGETS)
def test_every_launch(family: str, case: str) -> None:
    assert [fault for row in gpu_compile.survey([family], [case]) for fault in row.faults()] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spills": 3}, "3 spills"),
        ({"stack": 24}, "a stack frame of 24 bytes"),
        ({"registers": 200}, "200 registers, more than 128"),
        ({"wide": 0}, "0 16-byte accesses, fewer than 4"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_the_gate_refuses(one: gpu_compile.Row, change: dict[str, Any], message: str) -> None:
    broken = dataclasses.replace(one, found=dataclasses.replace(one.found, **change))
    assert one.faults() == []
    assert [fault.endswith(message) for fault in broken.faults()] == [True]


def test_a_kernel_short_of_registers_spills(one: gpu_compile.Row) -> None:
    """The machine code is read rightly: too few registers show as spills and a stack frame."""
    launches = iter_launches("sm_90", "bf16", "hybrid_loss")
    launched = next(one for one in launches if one.kernel.__name__ == "cross_entropy_kernel")
    options = (*launched.options, ("maxnreg", 32))
    found = gpu_compile.build(dataclasses.replace(launched, options=options), gpu_compile.TARGETS["sm_90"])
    assert found.registers <= 32
    assert found.spills > 0
    assert found.stack > 0


def test_figures_that_changed_are_a_fault(one: gpu_compile.Row) -> None:
    version, table = gpu_compile.triton.__version__, gpu_compile.table([one])
    if version not in records.read(gpu_compile.KNOWN):
        pytest.skip(f"no figures are kept for Triton {version}")
    ((row, cells),) = table.items()
    changed = cells["sm_90"].replace(f"{one.found.registers} /", "999 /")
    (fault,) = records.differences(gpu_compile.KNOWN, version, {row: {"sm_90": changed}})
    assert fault.startswith(
        f"gpu_compile.yaml says otherwise of {one.name} | {one.case} {one.family}. If that is meant"
    )


def test_figures_are_kept_of_every_kernel_case_and_family_for_two_versions() -> None:
    expected = {
        (f"{op}: {launched.kernel.__name__} | {case}", family)
        for op, case, family, launched in gpu_compile.launches(list(gpu_compile.TARGETS), list(gpu_compile.CASES))
    }
    known = records.read(gpu_compile.KNOWN)
    assert len(known) >= 2
    for table in known.values():
        assert {(row, family) for row, cells in table.items() for family in cells} == expected


@pytest.mark.parametrize("op", CALLS)
def test_host_code_waits_for_nothing(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands around the Triton kernels may be part of a CUDA graph: no wait, no copy from or to the host."""
    monkeypatch.setattr("ifan.kernels.launch.start", lambda *_: launched.append(1))
    monkeypatch.setattr("ifan.kernels.configs.family_of", lambda _: "sm_90")
    launched: list[int] = []
    with torch.device("meta"):
        call = gpu_compile.operations(*gpu_compile.CASES["bf16"])[op]
    with pretended_gpu():
        call()
    assert launched


@pytest.mark.parametrize("op", [op for op in CALLS if op.split(",")[0] in gpu_compile.CUDA])
def test_host_code_of_cuda_waits_for_nothing(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for those in CUDA C++."""
    try:
        native.cuda_module()
    except ImportError as error:
        pytest.skip(f"native module: {error}")
    started: list[str] = []
    for name in gpu_compile.CUDA:
        monkeypatch.setattr(f"ifan.ops.backends.cuda.{name}.call", lambda name, *_: started.append(name))
    with torch.device("meta"):
        call = gpu_compile.operations(*gpu_compile.CASES["bf16"], backend="cuda")[op]
    with pretended_gpu():
        call()
    assert started


def iter_launches(family: str, case: str, op: str) -> Iterator[gpu_compile.Launch]:
    with gpu_compile.recorded(family) as launches:
        gpu_compile.operations(*gpu_compile.CASES[case])[op]()
    yield from launches
