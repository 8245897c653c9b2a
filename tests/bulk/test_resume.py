"""Bulk prediction goes on when inputs have changed: only these are analysed, and the rows are those of a fresh run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import ifan.bulk.run
from ifan.bulk.folder import COMMITS, MANIFEST, MAPS
from ifan.bulk.run import Summary, predict_bulk
from ifan.bulk.tables import read_rows
from ifan.faces import FaceAnalyzer
from tests.bulk.test_bulk import photos, table
from tests.support.clips import write_clip


@pytest.fixture
def analysed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the photos that were analysed since, and of the clips of frames whose rows were made."""
    seen: list[str] = []
    real, real_rows = ifan.bulk.run.prepare, ifan.bulk.run.clip_rows

    def noted(analyzer: FaceAnalyzer, photo: Any, name: str) -> Any:
        seen.append(name)
        return real(analyzer, photo, name)

    def noted_rows(analyzer: FaceAnalyzer, path: str, *arguments: Any, **options: Any) -> Any:
        for row in real_rows(analyzer, path, *arguments, **options):
            seen.append(path)
            yield row

    monkeypatch.setattr(ifan.bulk.run, "prepare", noted)
    monkeypatch.setattr(ifan.bulk.run, "clip_rows", noted_rows)
    return seen


def contents(out: Path) -> list[tuple[Any, ...]]:
    """Rows in order, each with its map's bytes for the map's name."""
    rows = [row for part in sorted(out.glob("part-*")) for row in read_rows(part.read_bytes(), out.suffix)]
    return [tuple({**row, "map": row["map"] and (out / row["map"]).read_bytes()}.items()) for row in rows]


def check_like_fresh(out: Path, analyzer: FaceAnalyzer, inputs: list[str], **options: Any) -> None:
    """The folder is what a run without a past would have made, file by file."""
    fresh = out.with_name(f"fresh{out.suffix}")
    predict_bulk(analyzer, inputs, fresh, **options)
    assert contents(out) == contents(fresh)
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (out, fresh)]
    assert names[0] == names[1]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_only_what_changed_is_analysed(
    analyzer: FaceAnalyzer, tmp_path: Path, analysed: list[str], suffix: str
) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs the extra bulk")
    paths, out = photos(tmp_path / "in", 12), tmp_path / f"out.{suffix}"
    Path(paths[9]).write_bytes(b"no picture")
    options: dict[str, Any] = {"shard_rows": 4, "maps": True}
    first = predict_bulk(analyzer, paths[1:], out, **options)
    assert first.removed == []
    os.utime(paths[6], ns=(0, 0))
    now = [*paths[:2], *paths[3:]]  # one more in front, one less, one touched
    analysed.clear()
    assert predict_bulk(analyzer, now, out, **options) == Summary(11, 10, 3, first.failures, [paths[2]])
    assert sorted(analysed) == [paths[0], paths[6]]
    check_like_fresh(out, analyzer, now, **options)


def test_shards_of_unchanged_inputs_are_not_touched(
    analyzer: FaceAnalyzer, tmp_path: Path, analysed: list[str]
) -> None:
    paths, out = photos(tmp_path / "in", 9), tmp_path / "out.jsonl"
    predict_bulk(analyzer, paths, out, shard_rows=3)
    before = {path.name: path.stat().st_ino for path in out.glob("part-*")}
    os.utime(paths[4], ns=(0, 0))
    analysed.clear()
    predict_bulk(analyzer, paths, out, shard_rows=3)
    after = {path.name: path.stat().st_ino for path in out.glob("part-*")}
    assert analysed == [paths[4]]
    assert len(before.items() & after.items()) == 2
    analysed.clear()
    predict_bulk(analyzer, paths, out, shard_rows=3)
    assert analysed == []


def test_a_photo_that_is_given_twice_keeps_both_rows(
    analyzer: FaceAnalyzer, tmp_path: Path, analysed: list[str]
) -> None:
    paths, out = photos(tmp_path / "in", 3), tmp_path / "out.jsonl"
    predict_bulk(analyzer, [*paths, paths[0]], out, maps=True)
    analysed.clear()
    now = [paths[1], paths[0], paths[0]]
    predict_bulk(analyzer, now, out, maps=True)
    assert analysed == []
    check_like_fresh(out, analyzer, now, maps=True)


def test_clips_move_and_go_on(analyzer: FaceAnalyzer, tmp_path: Path, analysed: list[str]) -> None:
    paths = photos(tmp_path / "in", 3)
    whole, begun = (str(write_clip(tmp_path / name, 7)) for name in ("a.mp4", "b.mp4"))
    out, options = tmp_path / "out.jsonl", {"shard_rows": 2, "maps": True}
    predict_bulk(analyzer, [paths[0], whole, begun], out, **options)
    for note in sorted((out / COMMITS).glob("part-000002-*"))[2:]:
        note.unlink()
    analysed.clear()
    now = [paths[0], paths[1], paths[2], whole, begun]
    assert predict_bulk(analyzer, now, out, **options).rows == 17
    assert sorted(analysed) == [begun, begun, begun, paths[1], paths[2]]
    check_like_fresh(out, analyzer, now, **options)


def test_a_stop_between_two_changes_loses_nothing(
    analyzer: FaceAnalyzer, tmp_path: Path, analysed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are copied from shards of two earlier lists; a shard that is damaged meanwhile gives none."""
    paths, out = photos(tmp_path / "in", 12), tmp_path / "out.jsonl"
    predict_bulk(analyzer, paths, out, shard_rows=3)
    calls, write = [], ifan.bulk.run.write_files

    def full_after_a_while(files: dict[Path, bytes]) -> None:
        calls.append(files)
        if len(calls) > 5:
            raise OSError(28, "No space left on device")
        write(files)

    with monkeypatch.context() as patched:
        patched.setattr(ifan.bulk.run, "write_files", full_after_a_while)
        with pytest.raises(OSError, match="No space left"):
            predict_bulk(analyzer, paths[1:], out, shard_rows=3)
    assert not (out / MANIFEST).exists()
    last = sorted(out.glob("part-*"))[-1]
    last.write_bytes(last.read_bytes()[:-9] + bytes(9))
    analysed.clear()
    now = [*paths[2:], paths[0]]
    assert predict_bulk(analyzer, now, out, shard_rows=3).removed == [paths[1]]
    assert sorted(analysed) == paths[9:]
    check_like_fresh(out, analyzer, now, shard_rows=3)


def test_results_of_other_inputs_alone_are_refused(analyzer: FaceAnalyzer, tmp_path: Path) -> None:
    paths, out = photos(tmp_path / "in", 4), tmp_path / "out.jsonl"
    predict_bulk(analyzer, paths[:2], out)
    before = table(out)
    with pytest.raises(
        ValueError, match=r"holds results of other inputs; repeat the command .+ or choose another name"
    ):
        predict_bulk(analyzer, paths[2:], out)
    assert table(out) == before
    assert (out / MANIFEST).exists()


def test_rows_do_not_lead_out_of_the_folder(analyzer: FaceAnalyzer, tmp_path: Path) -> None:
    """A shard whose note fits it, and whose row names a file of somebody else as its map."""
    paths, out = photos(tmp_path / "in", 2), tmp_path / "out.jsonl"
    predict_bulk(analyzer, paths, out, maps=True)
    ((part,), (note,)) = out.glob("part-*"), (out / COMMITS).iterdir()
    (tmp_path / "secret").write_text("mine")
    old = ifan.bulk.run.checksum(part.read_bytes())
    part.write_text(part.read_text().replace(f"{MAPS}/{part.stem}-000000.png", "../secret"))
    note.write_text(note.read_text().replace(old, ifan.bulk.run.checksum(part.read_bytes())))
    with pytest.raises(ValueError, match="names a map that is not its own"):
        predict_bulk(analyzer, paths[:1], out, maps=True)
