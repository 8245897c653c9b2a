"""What nvcc made of the kernels: no stack frame, no spills, few registers, 16-byte accesses, tensor cores."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ifan.ops import native
from tests.gpu.emulation.build import KERNELS, SOURCES
from tests.gpu.tools import cuda_compile, pages, records
from tests.gpu.tools.cuda_compile import Kernel

SPILLS = """ptxas info    : Compiling entry function '_Z3abcv' for 'sm_90a'
ptxas info    : Function properties for _Z3abcv
    8 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 70 registers, used 1 barriers, 8 bytes cumulative stack size, 256 bytes smem
"""


@pytest.fixture(scope="module")
def kernels() -> list[Kernel]:
    note = native.build_note().get("ifan._cuda", "unknown")
    if note != "built":
        pytest.skip(f"no ptxas report: ifan._cuda was {note}")
    found = cuda_compile.survey()
    if not found:
        pytest.skip("no ptxas report: they are kept by an editable installation")
    for log in cuda_compile.BUILD.glob("*.o.log"):
        name = log.name.split(".")[0]
        read = [SOURCES / file for file in (f"{name}.cu", f"{name}.h", "call.h", "device.h", "launch.h")]
        if max(path.stat().st_mtime for path in read) > log.stat().st_mtime:
            pytest.fail(f"the ptxas report is older than {name}.cu or its headers: run make .venv/.installed")
    return found


def test_every_kernel_passes_the_gate(kernels: list[Kernel]) -> None:
    assert [fault for kernel in kernels for fault in kernel.faults()] == []


def test_every_kernel_is_built_for_every_family(kernels: list[Kernel]) -> None:
    by_family = {
        family: sorted((kernel.op, kernel.name, kernel.variant) for kernel in kernels if kernel.family == family)
        for family in cuda_compile.FAMILIES
    }
    assert by_family["sm_80"] == by_family["sm_90a"] == by_family["sm_100"]
    assert {op for op, _, _ in by_family["sm_80"]} == set(KERNELS)
    assert len(kernels) == sum(map(len, by_family.values()))


def test_dense_layer_multiplies_on_tensor_cores(kernels: list[Kernel]) -> None:
    layers = [kernel for kernel in kernels if kernel.name == "layer_kernel"]
    if any(kernel.products is None for kernel in layers):
        pytest.skip("no cuobjdump: it comes with Triton")
    assert {kernel.products for kernel in layers} == {cuda_compile.PRODUCTS}


def test_the_gate_refuses_spills_registers_and_narrow_access() -> None:
    ((_, kernel),) = cuda_compile.parse(SPILLS, "op")
    assert (kernel.registers, kernel.stack, kernel.spills, kernel.shared) == (70, 8, 20, 256)
    text = " ".join(kernel.faults())
    assert "stack frame of 8 bytes" in text
    assert "20 bytes of spills" in text
    assert "70 registers, more than 64" in text
    narrow = Kernel("integrate", "forward_kernel", ("fp32", "1", "true"), "sm_80", 30, 0, 0, 0, 0, 0, 0)
    assert len(narrow.faults()) == 2
    slow = Kernel("dense_block", "layer_kernel", ("fp16",), "sm_80", 30, 0, 0, 0, 0, 0, 0)
    assert slow.faults() == ["dense_block: layer_kernel<fp16>, sm_80: 0 tensor-core instructions, not 36"]


def test_every_kernel_is_as_recorded(kernels: list[Kernel]) -> None:
    """Where the installed nvcc is one whose figures are kept, and its machine code can be read."""
    if any(kernel.products is None for kernel in kernels):
        pytest.skip("no cuobjdump: it comes with Triton")
    found = cuda_compile.table(kernels)
    assert records.differences(cuda_compile.KNOWN, cuda_compile.compiler_version(), found) == []


def test_figures_that_changed_are_a_fault(tmp_path: Path) -> None:
    ((_, kernel),) = cuda_compile.parse(SPILLS, "op")
    made = cuda_compile.table([dataclasses.replace(kernel, family=family) for family in cuda_compile.FAMILIES])
    file = tmp_path / "known.yaml"
    file.write_text("# Figures.\n")
    records.write(file, "13.0", made)
    assert records.differences(file, "13.0", made) == []
    changed = {row: {**cells, "sm_80": cells["sm_80"].replace("70 /", "71 /")} for row, cells in made.items()}
    assert records.differences(file, "13.1", changed) == []
    (fault,) = records.differences(file, "13.0", changed)
    assert fault.startswith("known.yaml says otherwise of op: ")


def test_a_version_replaces_its_own_figures_only(tmp_path: Path) -> None:
    file = tmp_path / "known.yaml"
    file.write_text("# Figures.\n'1.0': {a: {x: old}}\n'2.0': {a: {x: old, y: kept}}\n")
    records.write(file, "2.0", {"a": {"x": "new"}})
    assert file.read_text().startswith("# Figures.\n")
    assert records.read(file) == {"1.0": {"a": {"x": "old"}}, "2.0": {"a": {"x": "new", "y": "kept"}}}


def test_a_part_of_a_page_is_replaced() -> None:
    page = "text\n<!-- table -->\nold\n<!-- /table -->\nmore\n"
    assert pages.filled(page, {"table": lambda: "new\n"}) == page.replace("old", "new")
    with pytest.raises(ValueError, match="not found"):
        pages.filled(page, {"other": lambda: ""})
