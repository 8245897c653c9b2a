"""Bulk prediction: every input exactly one row, in order, whatever is broken, killed or full."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from ifan.bulk.run import COMMITS, MANIFEST, MAPS, predict_bulk
from ifan.faces import Detection, FaceAnalyzer
from ifan.files import FolderLock

EXIT_CODE_OF_A_KILL = -signal.SIGKILL


def photos(folder: Path, count: int, side: int = 24) -> list[str]:
    """Pictures of noise, each its own."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        cv2.imwrite(str(folder / f"{i:05}.png"), rng.integers(0, 255, (side, side + i % 3, 3), np.uint8))
    return sorted(str(path) for path in folder.iterdir())


def table(out: Path) -> list[dict[str, Any]]:
    """All rows of a folder of JSON Lines, in the order of the shards."""
    return [json.loads(line) for part in sorted(out.glob("part-*.jsonl")) for line in part.read_text().splitlines()]


def version(path: Path) -> tuple[int, int]:
    """Another one if the file was written again; reading it changes nothing."""
    facts = path.stat()
    return facts.st_ino, facts.st_mtime_ns


def bomb(path: Path, width: int, height: int) -> None:
    """A PNG of few bytes whose header promises ``width`` x ``height`` pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b""))


def spoil(paths: list[str], count: int) -> set[str]:
    """Break ``count`` of the pictures, in ten ways by turns; returns which."""
    chosen = random.Random(1).sample(paths, count)
    for i, name in enumerate(chosen):
        path = Path(name)
        whole = path.read_bytes()
        jpeg = cv2.imencode(".jpg", np.zeros((40, 40, 3), np.uint8))[1].tobytes()
        flipped = whole[:60] + bytes([whole[60] ^ 255]) + whole[61:]
        for turn, data in enumerate((b"", b"hello", whole[:50], flipped, jpeg[:200], whole[8:], b"GIF89a", bytes(99))):
            if i % 10 == turn:
                path.write_bytes(data)
        if i % 10 == 8:
            bomb(path, 100_000, 100_000)
        elif i % 10 == 9:
            bomb(path, 100_000, 1)
    return set(chosen)


def test_formats_hold_the_same_rows(analyzer: FaceAnalyzer, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet", reason="Parquet needs the extra bulk")
    paths = photos(tmp_path / "in", 7)
    Path(paths[3]).write_bytes(b"")
    for suffix in ("jsonl", "csv", "parquet"):
        summary = predict_bulk(analyzer, paths, tmp_path / f"out.{suffix}", maps=True, shard_rows=3)
        assert (summary.rows, summary.faces, summary.shards) == (7, 6, 3)
        assert [failure["input"] for failure in summary.failures] == [paths[3]]
    rows = table(tmp_path / "out.jsonl")
    assert [row["input"] for row in rows] == paths
    assert "the file is empty" in rows[3]["error"]
    assert rows[3]["faces"] == []
    for row, path in zip(rows, paths, strict=True):
        if path != paths[3]:
            single = analyzer(path)
            assert (row["width"], row["height"], row["error"]) == (*single.size, None)
            assert row["faces"][0]["landmarks"]["nose"] == pytest.approx(single[0].landmarks["nose"], abs=2e-3)
            ids = cv2.imread(str(tmp_path / "out.jsonl" / row["map"]), cv2.IMREAD_UNCHANGED)
            assert ids.shape[:2] == single.parsing.shape
    parquet = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert parquet == rows
    texts = [part.read_text() for part in sorted((tmp_path / "out.csv").glob("part-*"))]
    in_csv = [row for text in texts for row in csv.DictReader(text.splitlines())]
    assert [json.loads(row["faces"]) for row in in_csv] == [row["faces"] for row in rows]


def check_broken_among_good(analyzer: FaceAnalyzer, tmp_path: Path, good: int, bad: int) -> None:
    paths = photos(tmp_path / "in", good + bad)
    broken = spoil(paths, bad)
    seen = []
    summary = predict_bulk(
        analyzer, paths, tmp_path / "out.jsonl", shard_rows=50, progress=lambda *counts: seen.append(counts)
    )
    rows = table(tmp_path / "out.jsonl")
    assert [row["input"] for row in rows] == paths
    assert {row["input"] for row in rows if row["error"]} == broken
    assert {failure["input"] for failure in summary.failures} == broken
    assert all(len(row["faces"]) == 1 for row in rows if not row["error"])
    assert all(row["error"].startswith(row["input"]) and "\n" not in row["error"] for row in rows if row["error"])
    assert seen[-1] == (good + bad, good + bad, bad)


def test_broken_among_good(analyzer: FaceAnalyzer, tmp_path: Path) -> None:
    check_broken_among_good(analyzer, tmp_path, 200, 20)


@pytest.mark.full
def test_many_broken_among_very_many_good(analyzer: FaceAnalyzer, tmp_path: Path) -> None:
    check_broken_among_good(analyzer, tmp_path, 2000, 200)


SCRIPT = """
import sys, torch
from ifan.faces import FaceAnalyzer
from ifan.bulk.run import predict_bulk
from ifan.weights import load_network
torch.set_num_threads(1)
analyzer = FaceAnalyzer(load_network(sys.argv[1]), detector=None, batch_size=4)
predict_bulk(analyzer, sys.argv[3:], sys.argv[2], shard_rows=5, progress=lambda *_: print(flush=True))
"""


def check_kills(analyzer: FaceAnalyzer, tmp_path: Path, count: int, kills: int) -> None:
    analyzer.model.save_pretrained(tmp_path / "model")
    paths, out = photos(tmp_path / "in", count), tmp_path / "out.jsonl"
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "model"), str(out), *paths]
    chance, finished, killed = random.Random(3), {}, 0
    for _ in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        for _ in range(chance.randrange(2, 2 * count // kills)):  # lines of progress: kept ones come at once
            process.stdout.readline()
        time.sleep(chance.random() * 0.02)
        process.kill()
        process.communicate()
        killed += process.returncode == EXIT_CODE_OF_A_KILL
        for name, facts in finished.items():
            assert version(out / name) == facts, "a finished shard was touched"
        finished = {p.name.removesuffix(".json"): version(out / p.name[:-5]) for p in out.glob(f"{COMMITS}/part-*")}
    assert killed > 0
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert [row["input"] for row in table(out)] == paths
    manifest = json.loads((out / MANIFEST).read_text())
    assert (manifest["rows"], manifest["failed"]) == (count, 0)
    assert not list(out.rglob("*.part"))


def test_kills_lose_and_repeat_nothing(analyzer: FaceAnalyzer, tmp_path: Path) -> None:
    check_kills(analyzer, tmp_path, 60, 3)


@pytest.mark.full
def test_twenty_kills_lose_and_repeat_nothing(analyzer: FaceAnalyzer, tmp_path: Path) -> None:
    check_kills(analyzer, tmp_path, 600, 20)


def test_full_disk_keeps_what_is_finished(
    analyzer: FaceAnalyzer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, out = photos(tmp_path / "in", 20), tmp_path / "out.jsonl"
    calls, real = Counter(), os.fsync

    def full_after_a_while(descriptor: int) -> None:
        calls["fsync"] += 1
        if calls["fsync"] > 5:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full_after_a_while)
        with pytest.raises(OSError, match=r"No space left on device; finished shards are kept"):
            predict_bulk(analyzer, paths, out, shard_rows=5)
    assert len(list((out / COMMITS).iterdir())) == 2
    assert not (out / MANIFEST).exists()
    assert not list(out.rglob("*.part"))
    before = {path: version(path) for path in out.glob("part-*")}
    predict_bulk(analyzer, paths, out, shard_rows=5)
    assert [row["input"] for row in table(out)] == paths
    assert sum(version(path) == facts for path, facts in before.items()) == 2


def test_a_shard_without_its_commit_or_of_another_size_is_made_again(analyzer: FaceAnalyzer, tmp_path: Path) -> None:
    paths, out = photos(tmp_path / "in", 12), tmp_path / "out.jsonl"
    predict_bulk(analyzer, paths, out, shard_rows=4)
    first, second, third = sorted(out.glob("part-*"))
    expected = table(out)
    (out / COMMITS / f"{first.name}.json").unlink()
    second.write_bytes(second.read_bytes()[:100])
    for folder in (out, out / COMMITS):
        (folder / ".ifan-0123456789abcdef.part").write_bytes(b"left over")
    kept, seen = version(third), []
    predict_bulk(
        analyzer, paths, out, shard_rows=4, progress=lambda *counts: seen.append((*counts, (out / MANIFEST).exists()))
    )
    assert table(out) == expected
    assert version(third) == kept
    assert not list(out.rglob("*.part"))
    assert seen == [(4, 12, 0, True), *((done, 12, 0, False) for done in range(5, 13))]
    assert (out / MANIFEST).exists()


def test_two_processes_do_not_write_to_one_folder(analyzer: FaceAnalyzer, tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="this system has no such locks")
    paths, out = photos(tmp_path / "in", 3), tmp_path / "out.jsonl"
    with FolderLock(out), pytest.raises(ValueError, match="another process is writing there"):
        predict_bulk(analyzer, paths, out)
    assert predict_bulk(analyzer, paths, out).rows == 3


class Nobody:
    """A detector that says nothing of itself."""

    def detect(self, images: list[np.ndarray]) -> list[list[Detection]]:
        return [[] for _ in images]


def test_a_detector_of_ones_own_can_go_on_too(analyzer: FaceAnalyzer, tmp_path: Path) -> None:
    paths, out = photos(tmp_path / "in", 3), tmp_path / "out.jsonl"
    for _ in range(2):
        found = predict_bulk(FaceAnalyzer(analyzer.model, detector=Nobody()), paths, out)
        assert (found.rows, found.faces) == (3, 0)
    with pytest.raises(ValueError, match="results of other weights or settings"):
        predict_bulk(analyzer, paths, out)


LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))" + SCRIPT


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not limit the size of files")
def test_what_the_system_refuses_to_write_is_one_error(analyzer: FaceAnalyzer, tmp_path: Path) -> None:
    """Real refusals, not simulated ones: no file beyond 9 kB, which a shard with a long name in its rows needs."""
    analyzer.model.save_pretrained(tmp_path / "model")
    paths, out = photos(tmp_path / "in", 10), tmp_path / "out.jsonl"
    paths[7] = str(tmp_path / ("no/" * 1200) / "where.png")
    arguments = [str(tmp_path / "model"), str(out), *paths]
    stopped = subprocess.run([sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True, check=False)
    assert stopped.returncode == 1
    assert stopped.stderr.splitlines()[-1] == (
        "OSError: [Errno 27] File too large; finished shards are kept; make room and run the same command again: "
        f"{str(out)!r}"
    )
    assert [row["input"] for row in table(out)] == paths[:5]
    assert not list(out.rglob("*.part"))
    predict_bulk(analyzer, paths, out, shard_rows=5)
    assert [row["input"] for row in table(out)] == paths


OTHER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "margin": ({"margin": 2.0}, {}),
    "iterations": ({"iterations": 1}, {}),
    "tasks": ({"tasks": ["landmarks"]}, {}),
    "detector": ({"detector": Nobody()}, {}),
    "every": ({}, {"every": 2}),
    "maps": ({}, {"maps": True}),
    "shard_rows": ({}, {"shard_rows": 7}),
}


@pytest.mark.parametrize("name", OTHER)
def test_results_of_other_settings_are_not_mixed_with_these(analyzer: FaceAnalyzer, tmp_path: Path, name: str) -> None:
    paths, out = photos(tmp_path / "in", 2), tmp_path / "out.jsonl"
    predict_bulk(analyzer, paths, out)
    before, (made, asked) = table(out), OTHER[name]
    with pytest.raises(ValueError, match="results of other weights or settings"):
        predict_bulk(FaceAnalyzer(analyzer.model, **{"detector": None, **made}), paths, out, **asked)
    assert table(out) == before
    (part,) = out.glob("part-*")
    kept = version(part)
    predict_bulk(FaceAnalyzer(analyzer.model, detector=None, batch_size=5), paths, out, threads=3)
    assert version(part) == kept


def test_results_of_another_configuration_are_not_mixed_with_these(analyzer: FaceAnalyzer, tmp_path: Path) -> None:
    paths, out = photos(tmp_path / "in", 2), tmp_path / "out.jsonl"
    predict_bulk(analyzer, paths, out)
    other = type(analyzer.model)(dataclasses.replace(analyzer.config, image_scale=0.5))
    other.load_state_dict(analyzer.model.state_dict())
    with pytest.raises(ValueError, match="results of other weights or settings"):
        predict_bulk(FaceAnalyzer(other, detector=None), paths, out)


def test_every_photo_and_frame_has_a_map_of_its_own(analyzer: FaceAnalyzer, tmp_path: Path) -> None:
    """Of clips longer than a shard, and with photos between them."""
    from tests.support.clips import write_clip

    clips = [str(write_clip(tmp_path / f"{name}.mp4", count)) for name, count in (("a", 5), ("b", 3))]
    paths, out = photos(tmp_path / "in", 3), tmp_path / "out.jsonl"
    predict_bulk(analyzer, [clips[0], *paths, clips[1]], out, maps=True, shard_rows=2)
    rows = table(out)
    assert len({row["map"] for row in rows}) == len(rows) == len(list((out / MAPS).iterdir())) == 11
    first, second = ([frame.result for frame in analyzer.video(clip)] for clip in clips)
    for row, result in zip(rows, [*first, *analyzer(paths), *second], strict=True):
        with Image.open(out / row["map"]) as picture:
            found = np.array(picture)
        expected = result.parsing
        assert found.shape == expected.shape
        assert np.mean(found != expected) < 1e-3  # another batch rounds otherwise


def test_other_results_are_refused(analyzer: FaceAnalyzer, tmp_path: Path) -> None:
    paths, out = photos(tmp_path / "in", 4), tmp_path / "out.jsonl"
    predict_bulk(analyzer, paths, out)
    with pytest.raises(ValueError, match="results of other weights or settings"):
        predict_bulk(analyzer, paths, out, shard_rows=7)
    analyzer.model.landmark_head.bias.data += 1
    with pytest.raises(ValueError, match="results of other weights or settings"):
        predict_bulk(analyzer, paths, out)
    (tmp_path / "photos.csv").mkdir()
    (tmp_path / "photos.csv" / "diary.txt").write_text("dear")
    for name, message in (
        ("photos.csv", "holds diary.txt"),
        ("in/00000.png", r"got '.png'"),
        ("none.xlsx", r"\.parquet, \.jsonl or \.csv; got '\.xlsx'"),
    ):
        with pytest.raises(ValueError, match=message):
            predict_bulk(analyzer, paths, tmp_path / name)


def test_damaged_weights_stop_instead_of_filling_rows(analyzer: FaceAnalyzer, tmp_path: Path) -> None:
    paths = photos(tmp_path / "in", 4)
    analyzer.model.landmark_head.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        predict_bulk(FaceAnalyzer(analyzer.model, detector=None), paths, tmp_path / "out.jsonl")
    assert not list((tmp_path / "out.jsonl").iterdir())


def test_odd_names_are_told_apart(analyzer: FaceAnalyzer, tmp_path: Path) -> None:
    data = Path(photos(tmp_path / "in", 1)[0]).read_bytes()
    names = [b"two\nlines.png", b"caf\xe9.png", 'café,"quoted".png'.encode()]
    paths = [os.fsdecode(os.fsencode(tmp_path) + b"/" + name) for name in names]
    for path in paths:
        Path(path).write_bytes(data)
    missing = str(tmp_path / "no\nwhere.png")
    for suffix in ("jsonl", "csv"):
        summary = predict_bulk(analyzer, [*paths, missing], tmp_path / f"out.{suffix}")
        assert (summary.rows, len(summary.failures)) == (4, 1)
    rows = table(tmp_path / "out.jsonl")
    assert [row["input"].rpartition("/")[2] for row in rows] == [
        "two\nlines.png",
        "caf\\xe9.png",
        'café,"quoted".png',
        "no\nwhere.png",
    ]
    (part,) = (tmp_path / "out.csv").glob("part-*")
    with part.open(newline="") as file:
        assert [row["input"] for row in csv.DictReader(file)] == [row["input"] for row in rows]


def test_clips_are_cut_into_shards_and_go_on_where_they_stopped(analyzer: FaceAnalyzer, tmp_path: Path) -> None:
    from tests.support.clips import write_clip

    paths = photos(tmp_path / "in", 2)
    clip, cut = str(write_clip(tmp_path / "a.mp4", 20)), tmp_path / "cut.mp4"
    cut.write_bytes(b"hello")
    inputs, out = [paths[0], clip, str(cut), paths[1]], tmp_path / "out.jsonl"
    summary = predict_bulk(analyzer, inputs, out, every=3, shard_rows=2)
    assert (summary.rows, len(summary.failures)) == (10, 1)
    rows = table(out)
    frames = [(clip, 3 * i, pytest.approx(0.3 * i)) for i in range(7)]
    expected = [(paths[0], None, None), *frames, (str(cut), None, None), (paths[1], None, None)]
    assert [(row["input"], row["frame"], row["time"]) for row in rows] == expected
    assert "the clip cannot be read" in rows[8]["error"]
    commits = sorted((out / COMMITS).glob("part-000001-*"))
    assert len(commits) == 4
    for commit in commits[2:]:
        commit.unlink()
    kept = version(sorted(out.glob("part-000001-*"))[1])
    predict_bulk(analyzer, inputs, out, every=3, shard_rows=2)
    assert table(out) == rows
    assert version(sorted(out.glob("part-000001-*"))[1]) == kept


def test_a_damaged_shard_or_map_of_the_same_size_is_made_again(analyzer: FaceAnalyzer, tmp_path: Path) -> None:
    paths, out = photos(tmp_path / "in", 6), tmp_path / "out.jsonl"
    predict_bulk(analyzer, paths, out, shard_rows=3, maps=True)
    first, second = sorted(out.glob("part-*"))
    for damaged in (first, sorted((out / "_maps").iterdir())[-1]):
        good = damaged.read_bytes()
        damaged.write_bytes(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])
        kept = version(second if damaged == first else first)
        predict_bulk(analyzer, paths, out, shard_rows=3, maps=True)
        assert damaged.read_bytes() == good
        assert version(second if damaged == first else first) == kept


@pytest.mark.parametrize("note", ["{}", "null", "[]", '{"bytes": 1, "last": true}', "{" * 5000, "[" * 100_000])
def test_a_note_that_is_none_makes_the_shard_again(analyzer: FaceAnalyzer, tmp_path: Path, note: str) -> None:
    paths, out = photos(tmp_path / "in", 2), tmp_path / "out.jsonl"
    predict_bulk(analyzer, paths, out)
    expected, (commit,) = table(out), (out / COMMITS).iterdir()
    commit.write_text(note)
    assert predict_bulk(analyzer, paths, out).rows == 2
    assert table(out) == expected


def test_a_note_does_not_lead_out_of_the_folder(analyzer: FaceAnalyzer, tmp_path: Path) -> None:
    paths, out = photos(tmp_path / "in", 2), tmp_path / "out.jsonl"
    predict_bulk(analyzer, paths, out)
    (commit,) = (out / COMMITS).iterdir()
    note = json.loads(commit.read_text())
    os.mkfifo(tmp_path / "pipe")  # whoever reads it waits for ever
    note["sha256"]["../pipe"] = ""
    commit.write_text(json.dumps(note))
    assert predict_bulk(analyzer, paths, out).rows == 2


def test_files_of_others_are_not_removed(analyzer: FaceAnalyzer, tmp_path: Path) -> None:
    paths, out = photos(tmp_path / "in", 2), tmp_path / "mine.csv"
    out.mkdir()
    (out / ".thesis.part").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds \.thesis\.part, not only results"):
        predict_bulk(analyzer, paths, out)
    assert (out / ".thesis.part").read_text() == "years of work"
    (out / ".thesis.part").unlink()
    (out / "diary.txt").write_text("dear")
    (out / ".ifan-0123456789abcdef.part").write_text("of another run")
    with pytest.raises(ValueError, match="not only results"):
        predict_bulk(analyzer, paths, out)
    assert (out / ".ifan-0123456789abcdef.part").exists()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_memory_is_flat(analyzer: FaceAnalyzer, tmp_path: Path) -> None:
    """From photo 1,000 to photo 20,000 within 5 %; shards of 250 rows."""
    paths, sizes = photos(tmp_path / "in", 50) * 400, {}

    def note(done: int, *_: int) -> None:
        if done % 1000 == 0:
            sizes[done] = resident()

    predict_bulk(analyzer, paths, tmp_path / "out.jsonl", shard_rows=250, progress=note)
    later = [size for done, size in sizes.items() if done >= 1000]
    assert len(later) == 20
    assert max(later) <= 1.05 * sizes[1000]
