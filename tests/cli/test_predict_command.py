"""``ifan predict``: what it writes, and one clear line for everything it cannot read."""

from __future__ import annotations

import csv
import json
import os
import struct
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ifan.faces.sources import expand, unique_stems
from ifan.progress import progress
from tests.support.clips import write_clip


def huge(path: Path, width: int = 100_000, height: int = 100_000) -> Path:
    """A PNG of few bytes whose header promises ``width`` x ``height`` pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


def test_writes_three_files_at_the_photos_resolution(run, photo: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    code, text, errors = run("predict", photo, "--out", out, "--weights", weights, "--box", "10,5,30,25")
    assert (code, errors) == (0, "")
    assert str(out / "alpha_overlay.jpg") in text
    assert sorted(p.name for p in out.iterdir()) == ["alpha.json", "alpha_overlay.jpg", "alpha_parsing.png"]
    with Image.open(out / "alpha_parsing.png") as parsing:
        assert parsing.mode == "P"
        ids = np.array(parsing)
    assert ids.shape == (30, 40)
    assert ids.max() < 9
    overlay = cv2.imread(str(out / "alpha_overlay.jpg"))
    assert overlay.shape[1] > overlay.shape[0] >= 300
    tree = json.loads((out / "alpha.json").read_text())
    assert (tree["photo"], tree["width"], tree["height"]) == (str(photo), 40, 30)
    (face,) = tree["faces"]
    assert face["box"] == [10, 5, 30, 25]
    assert face["crop"]["side"] == pytest.approx(29)
    assert face["score"] is None
    assert len(face["landmarks"]) == 5
    assert sum(face["classes"]["emotion"].values()) == pytest.approx(1, abs=1e-4)
    x0, y0, x1, y1 = face["parsing"]["region"]
    assert sum(face["parsing"]["pixels"].values()) == (x1 - x0) * (y1 - y0)
    assert face["parsing"]["pixels"]["skin"] == int((ids == 1).sum())


def test_unusual_photos_are_all_read(run, photos: Path, weights: Path, tmp_path: Path) -> None:
    out, table = tmp_path / "out", tmp_path / "all.json"
    code, _, errors = run("predict", photos, "--crops", "--out", out, "--weights", weights, "--json", table)
    assert (code, errors) == (0, "")
    found = {Path(p["photo"]).name: (p["width"], p["height"]) for p in json.loads(table.read_text())["photos"]}
    assert len(found) == 7
    assert found.pop("turned.jpg") == (30, 40)
    assert found.pop("pixel.png") == (1, 1)
    assert set(found.values()) == {(40, 30)}
    assert len(list(out.iterdir())) == 21


def test_one_bad_photo_does_not_stop_the_others(run, photos: Path, weights: Path, tmp_path: Path) -> None:
    good, bad = [photos / "grey.png", photos / "pixel.png"], [tmp_path / f"bad{i}.png" for i in range(5)]
    whole = (photos / "grey.png").read_bytes()
    for path, data in zip(bad[1:4], (b"", b"hello", whole[:60]), strict=True):
        path.write_bytes(data)
    huge(bad[4])
    out, table = tmp_path / "out", tmp_path / "all.json"
    code, text, errors = run(
        "predict", bad[0], good[0], *bad[1:], good[1], "--crops", "--out", out, "--weights", weights, "--json", table
    )
    assert code == 1
    assert [line.split(":")[0] for line in text.splitlines()] == [str(g) for g in good]
    lines = errors.splitlines()
    assert lines[0] == "5 of 7 photos failed:"
    assert [line.split(": ")[1] for line in lines[1:]] == [str(b) for b in bad]
    for line, reason in zip(
        lines[1:], ("does not exist", "empty", "not a picture", "damaged", "beyond the limit"), strict=True
    ):
        assert reason in line
    assert len(list(out.iterdir())) == 6
    assert [f["photo"] for f in json.loads(table.read_text())["failed"]] == [str(b) for b in bad]


def test_strict_stops_at_once(run, photo: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, text, errors = run("predict", tmp_path / "no.jpg", photo, "--out", out, "--weights", weights, "--strict")
    assert (code, text) == (1, "")
    assert errors == f"error: {tmp_path / 'no.jpg'}: the picture does not exist; check the path\n"
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "nobody"], "nobody"),
        (["--box", "1,2,3"], "expected four numbers"),
        (["--tasks", "age"], "unknown task 'age'"),
        (["--device", "abacus"], "abacus"),
        (["--precision", "half"], "precision: expected 'fp32' or 'bf16'; got 'half'"),
        (["--smooth"], "--smooth: expected a table as --out"),
        (["--plot", "a.png"], "--plot a.png: expected NAME.png, one clip or stream, and a folder"),
    ],
    ids=["weights", "box", "task", "device", "precision", "smooth", "plot"],
)
def test_wrong_options_are_one_line(
    run, photo: Path, weights: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    code, text, errors = run("predict", photo, "--out", tmp_path / "out", "--weights", weights, *options)
    assert (code, text) == (1, "")
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert not (tmp_path / "out").exists()


def test_box_outside_the_photo_fails_that_photo(run, photos: Path, weights: Path, tmp_path: Path) -> None:
    arguments = ("--out", tmp_path / "out", "--weights", weights, "--box", "20,10,38,28")
    code, text, errors = run("predict", photos / "grey.png", photos / "pixel.png", *arguments)
    assert code == 1
    assert "grey.png" in text
    assert "pixel.png: box (20.0, 10.0, 38.0, 28.0) is not a face in a photo of 1 x 1" in errors


def test_several_boxes_and_chosen_tasks(run, photo: Path, weights: Path, tmp_path: Path) -> None:
    boxes = ("--box", "2,2,12,12", "--box", "20,10,38,28")
    code, _, _ = run(
        "predict",
        photo,
        "--out",
        tmp_path,
        "--weights",
        weights,
        *boxes,
        "--tasks",
        "landmarks,emotion",
        "--iterations",
        1,
    )
    assert code == 0
    faces = json.loads((tmp_path / "alpha.json").read_text())["faces"]
    assert len(faces) == 2
    assert all("parsing" not in face and len(face["landmarks"]) == 5 for face in faces)
    assert not (tmp_path / "alpha_parsing.png").exists()


def test_same_names_do_not_overwrite_each_other(run, photo: Path, weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    cv2.imwrite(str(other / "Alpha.bmp"), np.zeros((5, 6, 3), np.uint8))
    code, _, _ = run("predict", photo, other / "Alpha.bmp", "--out", tmp_path / "out", "--weights", weights)
    assert code == 0
    widths = [json.loads((tmp_path / "out" / name).read_text())["width"] for name in ("alpha.json", "Alpha_2.json")]
    assert widths == [40, 6]


def test_photos_are_never_overwritten(run, photos: Path, weights: Path) -> None:
    victim = photos / "grey_overlay.jpg"
    victim.write_bytes((photos / "grey.png").read_bytes())
    before = victim.read_bytes()
    code, _, errors = run("predict", photos / "grey.png", victim, "--out", photos, "--weights", weights)
    assert code == 1
    assert "would overwrite a photo" in errors
    assert victim.read_bytes() == before


def test_out_must_be_a_folder(run, photo: Path, weights: Path) -> None:
    code, _, errors = run("predict", photo, "--out", photo.parent / "grey.png", "--weights", weights)
    assert code == 1
    assert "expected a folder; got a file" in errors


def test_full_disk_stops_with_one_line(
    run, photo: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    code, _, errors = run("predict", photo, "--out", tmp_path / "out", "--weights", weights)
    assert code == 1
    assert errors == f"error: [Errno 28] No space left on device: '{tmp_path / 'out' / 'alpha_overlay.jpg'}'\n"
    assert list((tmp_path / "out").iterdir()) == []


def test_a_table_says_how_many_failed_and_goes_on(run, photos: Path, weights: Path, tmp_path: Path) -> None:
    (photos / "bad.png").write_bytes(b"hello")
    huge(photos / "huge.png")
    out = tmp_path / "faces.csv"
    for _ in range(2):
        code, text, errors = run("predict", photos, "--crops", "--out", out, "--weights", weights, "--shards", 4)
        assert code == 1
        assert text == f"{out}: 9 rows, 7 faces, 3 shards\n"
        assert errors.splitlines()[0] == "2 of 9 rows failed:"
        assert "bad.png: not a picture" in errors.splitlines()[1]
        assert "huge.png: 100000 x 100000 pixels is beyond the limit" in errors.splitlines()[2]
    (photos / "bad.png").unlink()
    (photos / "huge.png").unlink()
    code, text, errors = run("predict", photos, "--crops", "--out", tmp_path / "all.jsonl", "--weights", weights)
    assert (code, errors) == (0, "")
    code, _, errors = run("predict", photos, "--out", out, "--weights", weights, "--box", "1,1,9,9")
    assert code == 1
    assert "tables go without --box" in errors


def test_one_flat_table_is_the_default(run, photos: Path, weights: Path, tmp_path: Path) -> None:
    (photos / "bad.png").write_bytes(b"hello")
    out = tmp_path / "faces.csv"
    code, text, errors = run("predict", photos, "--crops", "--out", out, "--weights", weights)
    assert (code, text) == (1, f"{out}: 7 faces in 8 photos and frames\n")
    assert errors.splitlines()[0] == "1 of 8 rows failed:"
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["photo"]).name for row in rows if row["error"]] == ["bad.png"]
    assert {"box_x0", "left_eye_x", "emotion_happy", "share_hair"} <= set(rows[0])
    code, _, errors = run("predict", photos, "--out", tmp_path / "new.csv", "--weights", weights, "--maps")
    assert code == 1
    assert "--maps only with --shards" in errors


def test_a_table_of_a_clip_has_ids(run, weights: Path, tmp_path: Path) -> None:
    clip, common = write_clip(tmp_path / "a.mp4", 4), ("--crops", "--weights", weights)
    for name, options in (("raw.csv", ()), ("smooth.csv", ("--smooth",))):
        code, text, _ = run("predict", clip, "--out", tmp_path / name, *common, *options)
        assert (code, text) == (0, f"{tmp_path / name}: 4 faces in 4 photos and frames\n")
    raw, smooth = (list(csv.DictReader((tmp_path / name).open())) for name in ("raw.csv", "smooth.csv"))
    assert [(row["id"], row["frame"]) for row in raw] == [("1", str(i)) for i in range(4)]
    assert raw[0]["nose_x"] == smooth[0]["nose_x"]
    assert raw[3]["nose_x"] != smooth[3]["nose_x"]


def test_a_plot_over_time(run, weights: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra plot")
    clip, plot = write_clip(tmp_path / "a.mp4", 4), tmp_path / "plots" / "a.png"
    code, text, _ = run("predict", clip, "--out", tmp_path, "--plot", plot, "--crops", "--weights", weights)
    assert code == 0
    assert text.endswith(f"{plot}: 4 frames over time\n")
    assert cv2.imread(str(plot)).min() < 100


def test_skipped_files_are_named_and_folders_searched_when_asked(
    run, photos: Path, weights: Path, tmp_path: Path
) -> None:
    below = photos / "below"
    below.mkdir()
    (photos / "alpha.png").rename(below / "alpha.png")
    for i in range(7):
        (photos / f"note{i}.txt").write_text("x")
    options = ("--crops", "--out", tmp_path / "out", "--weights", weights)
    code, text, errors = run("predict", photos, *options)
    assert (code, len(text.splitlines())) == (0, 6)
    assert errors.startswith(f"skipped 7 files (neither picture nor clip): {photos / 'note0.txt'}, ")
    assert "and 2 more (named by --verbose); skipped 1 folder (--recursive searches it): " in errors
    code, text, errors = run("predict", photos, *options, "--recursive", "--verbose")
    assert (code, len(text.splitlines())) == (0, 7)
    assert "note6.txt" in errors
    assert "2 iterations of parsing, landmarks, emotion; " in errors
    assert errors.endswith(" s\n")
    assert run("predict", photos, *options, "--quiet") == (0, "", "")


def test_progress_outside_a_terminal_is_a_line_a_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter((0.0, 30.0, 100.0, 130.0, 200.0))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with progress("predict") as report:
        for done, failed in ((500, 0), (530, 0), (600, 1), (650, 1), (700, 2)):
            report(done, 10_000, failed)
    assert capsys.readouterr().err.splitlines() == [
        "predict: 600/10000 images, 1 failed, 1.0 images/s, 2:36:40 left",
        "predict: 700/10000 images, 2 failed, 1.0 images/s, 2:35:00 left",
    ]


def test_expand_takes_paths_folders_and_patterns(photos: Path, tmp_path: Path) -> None:
    (photos / "notes.txt").write_text("x")
    (photos / ".hidden.png").write_bytes(b"")
    found, skipped = expand([str(photos)])
    assert (len(found), skipped) == (7, [str(photos / "notes.txt")])
    assert expand([str(photos / "*.jpg"), str(photos / "cmyk.jpg")]) == (
        [str(photos / n) for n in ("cmyk.jpg", "turned.jpg")],
        [],
    )
    (photos / "odd[1].png").write_bytes(b"")
    assert expand([str(photos / "odd[1].png")]) == ([str(photos / "odd[1].png")], [])
    assert expand(["no/*.jpg"]) == (["no/*.jpg"], [])
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match="no pictures in this folder"):
        expand([str(tmp_path / "bare")])
    (tmp_path / "bare" / "below" / "deep").mkdir(parents=True)
    (tmp_path / "bare" / "below" / "deep" / "a.JPG").write_bytes(b"")
    with pytest.raises(ValueError, match="--recursive for the folders in it"):
        expand([str(tmp_path / "bare")])
    assert expand([str(tmp_path / "bare")], recursive=True) == (
        [str(tmp_path / "bare" / "below" / "deep" / "a.JPG")],
        [],
    )
    (tmp_path / "bare" / "b.png").write_bytes(b"")
    assert expand([str(tmp_path / "bare")])[1] == [str(tmp_path / "bare" / "below" / "_")[:-1]]


def test_odd_file_names_are_read_and_printed(run, photo: Path, weights: Path, tmp_path: Path) -> None:
    names = [b"caf\xe9.png", b"two\nlines.png"]
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(photo.read_bytes())
    code, text, errors = run("predict", tmp_path, "--out", tmp_path / "out", "--weights", weights)
    assert (code, len(text.splitlines())) == (0, 2)
    assert errors == f"skipped 1 folder (--recursive searches it): {tmp_path / 'photos'}/\n"
    assert len(list((tmp_path / "out").glob("*.json"))) == 2


def test_stems_are_unique_whatever_comes() -> None:
    long = unique_stems(["é" * 120 + "1.jpg", "é" * 120 + "2.jpg"])
    assert [len(stem) for stem in long] == [100, 102]
    assert unique_stems(["a/x.jpg", "b/x.png", "x_2.gif", "c/X.jpg", "d/y.jpg"]) == ["x", "x_3", "x_2", "X_4", "y"]
    assert unique_stems(["x_2", "x", "x", "x_2", "x"]) == ["x_2", "x", "x_3", "x_2_2", "x_4"]


def test_thousands_of_equal_names_are_numbered_at_once() -> None:
    began = time.process_time()
    stems = unique_stems([f"{i}/face.jpg" for i in range(20_000)])
    assert time.process_time() - began < 5
    assert stems == ["face", *(f"face_{i}" for i in range(2, 20_001))]


def test_one_impossible_path_does_not_stop_the_others(run, photo: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    odd = ["x" * 300 + ".png", tmp_path / "loop.png", "y" * 300 + ".mp4"]
    code, _, errors = run("predict", *odd, photo, "--out", tmp_path / "out", "--weights", weights, "--crops")
    assert code == 1
    assert errors.splitlines()[0] == "3 of 4 photos failed:"
    assert len(errors.splitlines()) == 4
    assert (tmp_path / "out" / "alpha.json").exists()


def test_too_little_memory_is_one_line(run, photo: Path, weights: Path, tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("ifan.faces.analyzer.FaceAnalyzer.__call__", full)
    code, _, errors = run("predict", photo, "--out", tmp_path / "out", "--weights", weights)
    assert (code, len(errors.splitlines())) == (1, 2)
    assert "not enough memory" in errors
    monkeypatch.setattr("ifan.weights.load_model", full)
    code, _, errors = run("predict", photo, "--out", tmp_path / "out", "--weights", weights)
    assert (code, errors) == (1, "error: not enough memory; close other programs or take smaller inputs\n")


def test_no_input_is_written_over(run, photo: Path, weights: Path, tmp_path: Path) -> None:
    """An overlay has the name of another input, or of one by another spelling."""
    from tests.support.clips import write_clip

    out = tmp_path / "out"
    out.mkdir()
    clips = [write_clip(out / name, 2) for name in ("a.mp4", "a_overlay.mp4")]
    before = clips[1].read_bytes()
    (tmp_path / "link").symlink_to(out)
    for folder in (out, tmp_path / "link", tmp_path / "link" / ".." / "out"):
        code, _, errors = run("predict", *clips, "--out", folder, "--weights", weights, "--crops")
        assert (code, len(errors.splitlines())) == (1, 1)
        assert "would overwrite a photo that is to be read" in errors
        assert clips[1].read_bytes() == before
    by_link = [tmp_path / "link" / clip.name for clip in clips]
    code, _, errors = run("predict", *by_link, "--out", out, "--weights", weights, "--crops")
    assert (code, clips[1].read_bytes()) == (1, before)
    assert "would overwrite a photo that is to be read" in errors


def test_all_results_do_not_go_where_those_of_a_photo_go(run, photo: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "link").symlink_to(out)
    for folder in (out, tmp_path / "link"):
        code, _, errors = run("predict", photo, "--out", out, "--json", folder / "alpha.json", "--weights", weights)
        assert (code, list(out.iterdir())) == (1, [])
        assert "a photo's own results go there" in errors
    code, _, errors = run("predict", photo, "--out", out, "--json", photo, "--weights", weights)
    assert (code, list(out.iterdir())) == (1, [])
    assert "would overwrite a photo" in errors
