"""Builds the CUDA kernels for the CPU: ``csrc/cuda`` and its binding by g++, with the headers beside this file."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from ifan.ops import native

ROOT = Path(__file__).resolve().parents[3]
SOURCES = ROOT / "csrc" / "cuda"
KERNELS = ("integrate", "hybrid_loss", "dense_block")
ORDERS = ("fwd", "rev", "rand")
LAGGING = "lag"
"""Another order: the first warp falls behind. What is written again too early is seen in no other."""
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
FLAGS = ("-x", "c++", "-std=c++17", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-g1")
needs_compiler = pytest.mark.skipif(
    COMPILER is None or importlib.util.find_spec("pybind11") is None or not SOURCES.is_dir(),
    reason="the emulation needs the source tree, a C++ compiler and pybind11",
)


def compile_kernel(source: Path, target: Path, *flags: str) -> Path:
    """One file for the CPU; headers beside it go before those of the original kernels."""
    include = (f"-I{SOURCES}", f"-I{Path(__file__).parent}")
    subprocess.run([str(COMPILER), *FLAGS, *flags, *include, "-c", str(source), "-o", str(target)], check=True)
    return target


def build_objects(folder: Path) -> dict[str, Path]:
    """The object files of all kernels and of the binding."""
    import pybind11

    found = {name: compile_kernel(SOURCES / f"{name}.cu", folder / f"{name}.o", "-O1") for name in KERNELS}
    include = (f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}")
    macros = ("-DIFAN_EMULATED=1", "-DIFAN_MODULE=_emu", "-fvisibility=hidden")
    found["bindings"] = compile_kernel(SOURCES / "bindings.cpp", folder / "bindings.o", "-O0", *macros, *include)
    return found


def link(objects: Sequence[Path], folder: Path) -> ModuleType:
    """Link the objects into a module of their own and load it."""
    folder.mkdir(exist_ok=True)
    target = folder / f"_emu{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run([str(COMPILER), "-shared", *map(str, objects), "-o", str(target)], check=True)
    # A name of its own: pybind11 would hand out the module it has already made under this one.
    spec = importlib.util.spec_from_file_location(f"{str(folder).replace('.', '_')}._emu", target)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def link_program(objects: Sequence[Path], target: Path, *flags: str) -> Path:
    """Link the objects into a program."""
    subprocess.run([str(COMPILER), *flags, "-pthread", *map(str, objects), "-o", str(target)], check=True)
    return target


def mutated_sources(folder: Path, name: str, old: str, new: str) -> Path:
    """A copy of ``csrc/cuda`` with ``old``, which must be in file ``name``, replaced."""
    shutil.copytree(SOURCES, folder)
    text = (folder / name).read_text(encoding="utf-8")
    assert old in text, "the mutant's text is not in the kernel any more"
    (folder / name).write_text(text.replace(old, new), encoding="utf-8")
    return folder


@contextmanager
def emulated(module: ModuleType, order: str = "fwd") -> Iterator[None]:
    """Backend ``cuda`` runs on CPU tensors by ``module``; threads and blocks in this order."""
    patch = pytest.MonkeyPatch()
    patch.setattr(native, "cuda_module", lambda: module)
    patch.setattr(native, "cuda_refusal", lambda: None)
    patch.setenv("CUDA_EMU_ORDER", order)
    try:
        yield
    finally:
        patch.undo()
