"""The folder that ``ifan export`` writes of the default weights, once."""

from __future__ import annotations

from pathlib import Path

import pytest

from ifan.export.folder import export_folder
from ifan.weights import DEFAULT


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graphs, detector and ifan.json."""
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("examples") / "face"
    export_folder(DEFAULT, folder)
    return folder
