"""The package's front door is light, complete and one version."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import ifan

ROOT = Path(__file__).resolve().parents[2]


def test_version_is_that_of_the_project() -> None:
    declared = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert declared is not None
    assert declared[1] == ifan.__version__


def test_import_does_not_import_torch() -> None:
    code = "import sys, ifan; assert 'torch' not in sys.modules and 'cv2' not in sys.modules; print(ifan.__version__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ifan.__version__


def test_public_names_resolve() -> None:
    pytest.importorskip("torch", reason="the figures of PyTorch are looked at")
    for name in ifan.__all__:
        assert getattr(ifan, name) is not None
        assert name in dir(ifan)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ifan.nothing  # noqa: B018
