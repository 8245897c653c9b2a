"""A folder of results: which shards there are, which of them count, and whose rows a changed list of inputs keeps.

A shard's name holds its place, the digest of weights and settings, and that of its inputs. The note beside it, written
after it, holds checksums and the key of each input: its path, size and time. A shard of the same settings and other
inputs is superseded: rows whose input has the same key are copied from it, and it goes when the new shards are there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ifan import __version__
from ifan.bulk.rows import spelled
from ifan.bulk.tables import Row, read_rows
from ifan.faces.analyzer import FaceAnalyzer
from ifan.faces.sources import is_clip
from ifan.files import checksum, is_part, remove_parts
from ifan.weights import SavedModel

MANIFEST, COMMITS, MAPS = "_manifest.json", "_commits", "_maps"
_NAME = re.compile(r"(part-\d+-([0-9a-f]{16})[0-9a-f]{16})-\d+")
"""Beginning of the names of a shard, its note and its maps: the job, within it the digest of the settings."""


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """Some photos, or a clip. ``keys`` say of each input whether it changed, ``name`` is unlike that of any other."""

    paths: tuple[str, ...]
    keys: tuple[str, ...]
    name: str

    def shard(self, number: int) -> str:
        """Name of the job's shard of that number, without suffix."""
        return f"{self.name}-{number:04}"


def plan(inputs: Sequence[str], settings: str, shard_rows: int) -> list[Job]:
    """Runs of photos of at most a shard's rows, and clips, each a job, in order."""
    groups: list[list[str]] = []
    for path in inputs:
        if groups and not is_clip(path) and not is_clip(groups[-1][0]) and len(groups[-1]) < shard_rows:
            groups[-1].append(path)
        else:
            groups.append([path])
    jobs = []
    for number, group in enumerate(groups):
        keys = tuple(key_of(path) for path in group)
        jobs.append(Job(tuple(group), keys, f"part-{number:06}-{settings}{_digest(''.join(keys).encode())}"))
    return jobs


def key_of(path: str) -> str:
    """Digest of path, size and time of an input."""
    try:
        facts = os.stat(path)
        state = f"{facts.st_size} {facts.st_mtime_ns}"
    except (OSError, ValueError):
        state = "missing"
    return _digest(os.fsencode(path) + b"\0" + state.encode())


class ResultFolder:
    """The shards in ``path`` of ``jobs``, and what is left there of earlier ones.

    Raises ``ValueError`` for a folder that holds something else, or results of other inputs or settings.
    """

    def __init__(self, path: Path, jobs: Sequence[Job], settings: str) -> None:
        self.path, self.suffix = path, path.suffix
        self._own = {job.name for job in jobs}
        self._last_read: tuple[str, list[Row]] = "", []
        self._check(settings)
        remove_parts(path, path / COMMITS, path / MAPS)
        present = {match[1] for file in self._files() if (match := _NAME.match(file.name))}
        self.superseded = present - self._own
        """Jobs of other inputs that left something."""
        self._kept: dict[str, tuple[list[dict[str, Any]], int | None]] = {}
        before: dict[str, None] = {}
        for name in sorted(self.superseded):
            notes = self.finished(name)
            for row, (spelling, key) in enumerate(notes[0]["inputs"] if notes else ()):
                before[spelling] = None
                self._kept[key] = (notes, None) if is_clip(spelling) else (notes, row)
        names = {spelled(path) for job in jobs for path in job.paths}
        self.removed = [name for name in before if name not in names]
        """Inputs of finished rows that are not asked for any more."""
        if before and present == self.superseded and len(self.removed) == len(before):
            raise ValueError(
                f"{path}: holds results of other inputs; repeat the command they are from, or choose another name"
            )

    def _check(self, settings: str) -> None:
        for path in self.path.iterdir():
            if path.name.startswith("part-") and path.suffix == self.suffix:
                match = _NAME.fullmatch(path.stem)
                if match is None or match[2] != settings:
                    raise ValueError(
                        f"{self.path}: holds results of other weights or settings; "
                        "repeat the command they are from, or choose another name"
                    )
            elif path.name not in (MANIFEST, COMMITS, MAPS) and not is_part(path):
                raise ValueError(f"{self.path}: holds {path.name}, not only results; choose another name")

    def _files(self) -> Iterator[Path]:
        for folder in (self.path, self.path / COMMITS, self.path / MAPS):
            yield from folder.iterdir() if folder.is_dir() else ()

    def finished(self, name: str) -> list[dict[str, Any]]:
        """Notes of the first shards of the job ``name`` that are whole."""
        found: list[dict[str, Any]] = []
        while not (found and found[-1]["last"]):
            file = f"{name}-{len(found):04}{self.suffix}"
            try:
                note = _checked(json.loads((self.path / COMMITS / f"{file}.json").read_bytes()), file)
                if any(checksum((self.path / place).read_bytes()) != sum_ for place, sum_ in note["sha256"].items()):
                    break
            except (OSError, ValueError, RecursionError):
                break
            found.append(note)
        return found

    def kept(self, key: str) -> Iterator[Row]:
        """Rows of an unchanged input that stand in superseded shards."""
        notes, place = self._kept.get(key, ([], None))
        for note in notes:
            rows = self._rows(note["file"])
            for row in rows if place is None else rows[place : place + 1]:
                if row["map"] is not None and row["map"] not in note["sha256"]:
                    raise ValueError(f"{self.path}: {note['file']} names a map that is not its own; remove this shard")
                yield dict(row)

    def is_kept_whole(self, key: str) -> bool:
        """True if `kept` gives all rows of the input."""
        return key in self._kept and self._kept[key][0][-1]["last"]

    def _rows(self, file: str) -> list[Row]:
        """Rows of a shard; the last one read is remembered."""
        if self._last_read[0] != file:
            self._last_read = file, read_rows((self.path / file).read_bytes(), self.suffix.lower())
        return self._last_read[1]

    def remove_superseded(self) -> None:
        """Remove whatever is not of `jobs`: their shards are there now."""
        for path in list(self._files()):
            match = _NAME.match(path.name)
            if match and match[1] not in self._own:
                path.unlink()


def settings_digest(analyzer: FaceAnalyzer, options: Sequence[object]) -> str:
    """Digest of all that decides a result beside the inputs: weights, configuration, detector, options, version."""
    model = analyzer.model
    if not isinstance(model, SavedModel):
        from ifan.weights.networks import model_of

        model = model_of(model)
    weights = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.tensors.items()):
        weights.update(name.encode())
        weights.update(tensor.tobytes())
    settings = {
        "version": __version__,
        "weights": weights.hexdigest(),
        "config": asdict(analyzer.config),
        "tasks": [task.name for task in analyzer.predictor.tasks],
        "iterations": analyzer.iterations,
        "detector": _identity(analyzer.detector),
        "options": [analyzer.margin, *options],
    }
    return _digest(json.dumps(settings, sort_keys=True).encode())


def _identity(thing: object) -> str:
    """Description that an object gives of itself, else its class: an address differs from run to run."""
    kind = type(thing)
    return f"{kind.__module__}.{kind.__qualname__}" if kind.__repr__ is object.__repr__ else repr(thing)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _checked(note: Any, name: str) -> dict[str, Any]:
    """``note`` if it is one of the shard ``name``; else raises ``ValueError``."""
    kinds = {"bytes": int, "rows": int, "faces": int, "failures": list, "last": bool, "inputs": list, "sha256": dict}
    sound = isinstance(note, dict) and all(isinstance(note.get(key), kind) for key, kind in kinds.items())
    if not sound or note.get("file") != name or name not in note["sha256"]:
        raise ValueError("not a shard's note")
    failures = all(isinstance(f, dict) and f.keys() == {"input", "error"} for f in note["failures"])
    inputs = note["inputs"] and all(isinstance(i, list) and [type(v) for v in i] == [str, str] for i in note["inputs"])
    # Names of maps begin with their folder; nothing else is looked at.
    maps = all(file == name or re.fullmatch(rf"{MAPS}/[\da-z-]+\.png", file) for file in note["sha256"])
    if not (failures and inputs and maps):
        raise ValueError("not a shard's note")
    return note
