"""Damaged weights, packed datasets, states of training, notes of bulk runs and clips: read rightly, or one error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load

from ifan.bulk.folder import COMMITS, Job, ResultFolder, plan
from ifan.data import DataError, ShardDataset
from ifan.faces.sources import frames, open_clip
from ifan.files import checksum
from ifan.safetensors_io import CheckpointError, load_floats, read_header
from tests.support.damage import CASES, chance_of, damaged, damaged_anywhere, seeds

SETTINGS = "0" * 16


@pytest.mark.parametrize("name", seeds(".safetensors"))
def test_weights_are_what_the_format_says(name: str, tmp_path: Path) -> None:
    """What is accepted has the values that the reference reader of the format finds."""
    chance, data, path = chance_of(name), seeds(".safetensors")[name], tmp_path / name
    path.write_bytes(data)
    shapes = {key: shape for key, (_, shape) in read_header(path).items()}
    said = []
    for _ in range(CASES):
        path.write_bytes(changed := damaged(data, chance, reach=100))
        try:
            found = load_floats(path, shapes, "these weights")
        except CheckpointError as error:
            said.append(str(error))
            continue
        try:
            expected = load(changed)
        except SafetensorError:  # stricter, as with a name that is there twice
            continue
        for key, array in found.items():
            assert np.array_equal(array, expected[key].astype(np.float32), equal_nan=True)
    assert all(line.startswith(f"{path}: ") and "\n" not in line for line in said)
    assert said


def test_packed_datasets(tmp_path: Path) -> None:
    """Damage behind checksums that were made right again."""
    from ifan.data import ToyFaces
    from ifan.data.packing import pack

    chance = chance_of("shards")
    whole = pack(ToyFaces(3, size=32, split="test"), tmp_path / "whole", "test")
    said = []
    for _ in range(max(20, CASES // 5)):
        folder = tmp_path / "damaged"
        shutil.copytree(whole, folder, dirs_exist_ok=True)
        file = folder / chance.choice(("index.npz", "data.bin", "manifest.json"))
        file.write_bytes(damaged_anywhere(file.read_bytes(), chance))
        if file.suffix != ".json":
            manifest = json.loads((folder / "manifest.json").read_text())
            facts = {"bytes": file.stat().st_size, "sha256": checksum(file.read_bytes())}
            manifest["files"][file.name] = {**manifest["files"][file.name], **facts}
            (folder / "manifest.json").write_text(json.dumps(manifest))
        try:
            dataset = ShardDataset(folder)
            for index in range(len(dataset)):
                sample = dataset[index]
                assert sample.image.dtype == np.uint8
        except DataError as error:
            said.append(str(error))
    assert all("\n" not in line for line in said)
    assert said


def test_states_of_training(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs PyTorch: pip install 'ifan[torch]'")
    import torch

    from ifan.training.checkpoint import read_state, save_checkpoint

    folder = save_checkpoint(tmp_path, 7, {"model": {"x": torch.zeros(3)}}, {"config": {"a": [1, 2.5, None]}})
    chance, data, expected = chance_of("state"), (folder / "state.json").read_bytes(), read_state(folder)
    said = []
    for _ in range(CASES):
        changed = damaged(data, chance, reach=150)
        (folder / "state.json").write_bytes(changed)
        try:
            assert read_state(folder) == expected  # white space
        except CheckpointError as error:
            said.append(str(error))
    assert all("\n" not in line for line in said)
    assert said


def test_notes_of_bulk_runs(tmp_path: Path) -> None:
    """A damaged note makes the shard again; it does not stop, lead elsewhere, or count other rows."""
    (job,) = plan([str(tmp_path / "a.png"), str(tmp_path / "b.png")], SETTINGS, 10)
    note = write_job(tmp_path, job)
    chance, data, inputs = chance_of("notes"), note.read_bytes(), json.loads(note.read_bytes())["inputs"]
    folder, kept = ResultFolder(tmp_path, [job], SETTINGS), 0
    for _ in range(CASES):
        note.write_bytes(damaged(data, chance, reach=200))
        for found in folder.finished(job.name):
            kept += 1
            assert (found["file"], len(found["inputs"])) == (note.stem, len(inputs))
    note.write_bytes(data)
    assert folder.finished(job.name)
    assert kept < CASES


def write_job(out: Path, job: Job) -> Path:
    """Shard and note of a job without faces."""
    shard = out / f"{job.shard(0)}{out.suffix}"
    shard.write_bytes(b"")
    note = {
        "file": shard.name, "bytes": 0, "rows": 2, "faces": 0, "failures": [], "last": True,
        "inputs": [[path, key] for path, key in zip(job.paths, job.keys, strict=True)],
        "sha256": {shard.name: checksum(b"")},
    }  # fmt: skip
    path = out / COMMITS / f"{shard.name}.json"
    path.parent.mkdir()
    path.write_text(json.dumps(note))
    return path


def hidden_frames(path: Path) -> int:
    """Frames of a clip that an edit list hides."""
    with open_clip(str(path)) as clip:
        return sum(packet.is_discard for packet in clip.demux(clip.streams.video[0]))


def cut_short(data: bytes, chance: Any) -> bytes:
    return data[: chance.randrange(len(data) // 3, len(data))]


@pytest.mark.parametrize("damage", [cut_short, damaged_anywhere], ids=["cut short", "damaged"])
@pytest.mark.parametrize("name", [n for suffix in (".mp4", ".avi", ".mkv", ".webm") for n in seeds(suffix)])
def test_clips_with_fewer_frames_have_a_line(name: str, damage: Callable[..., bytes], tmp_path: Path) -> None:
    chance, data = chance_of(name, damage.__name__), seeds(name)[name]
    path = tmp_path / name
    path.write_bytes(data)
    whole, said = len(list(frames(str(path)))), []
    for _ in range(max(10, CASES // 15)):
        path.write_bytes(damage(data, chance))
        count = 0
        try:
            for _, _, image in frames(str(path)):
                assert image.dtype == np.uint8
                count += 1
        except ValueError as error:
            said.append(str(error))
        else:
            # A clip without a frame gets its line from who reads it. Nothing tells that a block of Matroska is missing
            # whose track or time was changed, nor that an edit list hides frames that it was not made to hide.
            assert count >= whole - (path.suffix in (".mkv", ".webm")) - hidden_frames(path) or count == 0
    assert all(line.startswith(f"{path}: ") for line in said)
    assert said
