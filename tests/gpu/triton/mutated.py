"""The Triton kernels with another text, in place of the package's for as long as a block lasts."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import ifan.kernels


@contextmanager
def mutant(folder: Path, module: str, old: str, new: str) -> Iterator[None]:
    """``ifan.kernels`` with every ``old`` in one module replaced."""
    text = (Path(ifan.kernels.__file__).parent / f"{module}.py").read_text(encoding="utf-8")
    assert old in text, "the mutant's text is not in the kernel any more"
    with changed(folder, module, text.replace(old, new)):
        yield


@contextmanager
def changed(folder: Path, module: str, text: str) -> Iterator[None]:
    """``ifan.kernels`` with another text of one module, from a copy in ``folder``."""
    shutil.copytree(Path(ifan.kernels.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / f"{module}.py").write_text(text, encoding="utf-8")
    path, kept = ifan.kernels.__path__, unloaded()
    ifan.kernels.__path__ = [str(folder)]
    try:
        yield
    finally:
        ifan.kernels.__path__ = path
        unloaded()
        for name, found in kept.items():
            sys.modules[f"ifan.kernels.{name}"] = found
            setattr(ifan.kernels, name, found)


def unloaded() -> dict[str, ModuleType]:
    """Forget the modules of ``ifan.kernels``, and that the package has them, which ``from . import`` would take."""
    names = [name for name in sys.modules if name.startswith("ifan.kernels.")]
    found = {name.rsplit(".", 1)[1]: sys.modules.pop(name) for name in names}
    for name in found:
        delattr(ifan.kernels, name)
    return found
