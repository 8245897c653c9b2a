"""The emulation of the CUDA kernels, compiled once a session."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from tests.gpu.emulation.build import build_objects, link


@pytest.fixture(scope="session")
def emulation_objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Object files of the kernels and their binding."""
    return build_objects(tmp_path_factory.mktemp("emulation"))


@pytest.fixture(scope="session")
def emulation(emulation_objects: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The module with the same functions as ``ifan._cuda``, running on the CPU."""
    return link(list(emulation_objects.values()), tmp_path_factory.mktemp("module"))
