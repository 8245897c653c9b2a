"""Fixtures: where the reference material and the real datasets lie, when they are there."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the repository with the reference port, datasets and photos; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no folder {SHARED.name}/ beside the repository: reference material is optional")
    return SHARED


@pytest.fixture(scope="session")
def real_data(shared: Path) -> Path:
    """MTFL/, CelebAMask-HQ/ and fer2013/ in their true layouts, unpacked once into $IFAN_TEST_DATA or a temporary
    folder."""
    folder = Path(os.environ.get("IFAN_TEST_DATA", Path(tempfile.gettempdir()) / "ifan-test-data"))
    script = shared / "data" / "unpack.py"
    if not script.exists():
        pytest.skip(f"no {script.name}: the datasets are optional")
    subprocess.run([sys.executable, str(script), str(folder), "--csv"], check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
