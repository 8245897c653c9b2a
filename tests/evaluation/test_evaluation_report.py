"""Tables, JSON and plots of a report."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rich.console import Console

from ifan.evaluation import evaluate
from ifan.evaluation import report as reporting


@pytest.fixture
def report(faces: Any, oracle: Any) -> dict[str, Any]:
    return evaluate(oracle(faces()), {"faces": faces(), "none": faces(0)}, every_iteration=True)


def printed(report: dict[str, Any]) -> str:
    text = io.StringIO()
    reporting.print_report(report, Console(file=text, width=160))
    return text.getvalue()


def test_tables(report: dict[str, Any]) -> None:
    text = printed(report)
    for expected in ("faces  7 images", "iteration 3", "NME %", "upper_lip", "right_eye", "frontal", "surprise"):
        assert expected in text
    assert "predicted + true pixels of these parts" in " ".join(text.split())
    assert "Resolution: network input" in " ".join(text.split())
    row = next(line for line in text.splitlines() if "mean F" in line)
    assert row.rstrip("│ ").endswith("1.0000")


def test_numbers_are_named_by_their_iteration(faces: Any, oracle: Any) -> None:
    text = printed(evaluate(oracle(faces()), {"faces": faces()}))
    assert "iteration 3" in text
    assert "iteration 1" not in text


def test_json_is_all_or_nothing(report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "report.json"
    reporting.write_json(report, path)
    assert json.loads(path.read_text()) == report

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match="No space left on device"):
        reporting.write_json({}, path)
    assert json.loads(path.read_text()) == report
    assert list(path.parent.iterdir()) == [path]


def test_json_refuses_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot write the report"):
        reporting.write_json({}, tmp_path)
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}*"))


def test_plots(report: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = reporting.plots(report, tmp_path / "plots")
    assert [path.name for path in drawn] == ["faces_parsing.png", "faces_landmarks.png", "faces_emotion.png"]
    for path in drawn:
        picture = cv2.imread(str(path))
        assert picture is not None
        assert np.unique(picture).size > 10


def test_plots_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pip install 'ifan\[plot\]'"):
        reporting.plots({"datasets": {}}, tmp_path)
