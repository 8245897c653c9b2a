"""One flat table: a row a face, whole or not there, and no photo analysed twice after a stop."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from ifan.bulk import flat
from ifan.bulk.flat import predict_table
from ifan.faces import FaceAnalyzer
from ifan.faces.columns import columns
from tests.bulk.test_bulk import Nobody, photos


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_formats_hold_the_same_faces(analyzer: FaceAnalyzer, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet", reason="Parquet needs the extra bulk")
    paths, folder = photos(tmp_path / "in", 3), tmp_path / "out"
    Path(paths[1]).write_bytes(b"")
    for suffix in ("csv", "jsonl", "parquet"):
        summary = predict_table(analyzer, paths, folder / f"faces.{suffix}")
        assert (summary.rows, summary.faces, len(summary.failures)) == (3, 2, 1)
    assert sorted(path.name for path in folder.iterdir()) == ["faces.csv", "faces.jsonl", "faces.parquet"]
    names = list(columns(analyzer.predictor.tasks))
    lines = [json.loads(line) for line in (folder / "faces.jsonl").read_text().splitlines()]
    assert pq.read_table(folder / "faces.parquet").to_pylist() == lines
    assert all(list(line) == names for line in lines)
    assert [(line["photo"], line["face"]) for line in lines] == list(zip(paths, (1, 0, 1), strict=True))
    assert "the file is empty" in lines[1]["error"]
    face = analyzer(paths[2])[0]
    assert lines[2]["nose_x"] == pytest.approx(face.landmarks["nose"][0], abs=2e-3)
    assert lines[2]["emotion"] == face.best("emotion")[0]
    assert sum(value for name, value in lines[2].items() if name.startswith("share_")) == pytest.approx(1, abs=1e-4)
    for row, line in zip(read(folder / "faces.csv"), lines, strict=True):
        assert list(row) == names
        assert row == {name: "" if value is None else str(value) for name, value in line.items()}


def test_a_photo_without_a_face_is_a_row(analyzer: FaceAnalyzer, tmp_path: Path) -> None:
    paths = photos(tmp_path / "in", 2)
    predict_table(FaceAnalyzer(analyzer.model, detector=Nobody()), paths, tmp_path / "faces.csv")
    assert [(row["face"], row["width"], row["error"]) for row in read(tmp_path / "faces.csv")] == [
        ("0", "24", ""),
        ("0", "25", ""),
    ]


def test_a_stopped_run_goes_on(analyzer: FaceAnalyzer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat, "SHARD_ROWS", 2)
    paths, out = photos(tmp_path / "in", 6), tmp_path / "faces.csv"

    def stop(done: int, *_: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_table(analyzer, paths, out, progress=stop)
    assert not out.exists()
    seen: list[int] = []
    predict_table(analyzer, paths, out, progress=lambda done, *_: seen.append(done))
    assert seen == [4, 5, 6]
    assert [row["photo"] for row in read(out)] == paths
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faces.csv", "in"]


def test_a_full_disk_at_the_end_costs_nothing(
    analyzer: FaceAnalyzer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, out = photos(tmp_path / "in", 2), tmp_path / "faces.csv"
    out.write_text("photo,face,id,frame\nold\n")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", lambda part, target: full() if target == out else part.rename(target))
        with pytest.raises(OSError, match=r"kept in faces\.csv\.unfinished\.jsonl; make room"):
            predict_table(analyzer, paths, out)
    assert out.read_text().endswith("old\n")
    assert not list(tmp_path.glob(".ifan-*"))
    seen: list[int] = []
    predict_table(analyzer, paths, out, progress=lambda done, *_: seen.append(done))
    assert seen == [2]
    assert [row["photo"] for row in read(out)] == paths


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", "name,age\n"), ("a.jsonl", '{"name": 1}\n'), ("a.parquet", "PAR1"), ("a.csv", None), ("a.xlsx", "")],
)
def test_what_is_no_table_is_not_replaced(
    analyzer: FaceAnalyzer, tmp_path: Path, name: str, content: str | None
) -> None:
    pytest.importorskip("pyarrow", reason="Parquet needs the extra bulk")
    out = tmp_path / name
    out.mkdir() if content is None else out.write_text(content)
    with pytest.raises(ValueError, match=r"a\.(csv|jsonl|parquet): |got '\.xlsx'"):
        predict_table(analyzer, photos(tmp_path / "in", 1), out)
    assert out.is_dir() if content is None else out.read_text() == content
