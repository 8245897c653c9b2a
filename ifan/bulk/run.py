"""Any number of photos and clips: decoding, detection and the network overlap, memory stays flat, a kill costs a shard.

Results are a folder of shards in the order of the inputs::

    results.parquet/part-000000-<digest>-0000.parquet    rows, one a photo or frame
    results.parquet/_commits/part-....json               its counts, written after it: only now the shard counts
    results.parquet/_maps/...png                         class maps, if asked for
    results.parquet/_manifest.json                       written last: the results are complete

Readers of Parquet folders ignore names that start with ``_`` or a dot. A shard's digest is that of its inputs (path,
size, time), the weights and the settings, so a second run keeps what is finished and refuses what is not its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, tee
from pathlib import Path
from typing import Any

import numpy as np

from ifan import __version__
from ifan.bulk.rows import as_row, prepare
from ifan.bulk.tables import Row, Writer, writer
from ifan.faces.analyzer import FaceAnalyzer, Prepared
from ifan.faces.face import compose
from ifan.faces.pipeline import ordered_map, prefetched
from ifan.faces.png import encode_label_png
from ifan.faces.sources import count_frames, frames, is_clip
from ifan.files import FolderLock, checksum, is_part, remove_parts, write_files
from ifan.weights import SavedModel

MANIFEST, COMMITS, MAPS = "_manifest.json", "_commits", "_maps"
WAITING = 4
"""Photos, in batches of faces, that may wait for their batch to fill."""

CROPS_TOGETHER = 8
"""Ready crops that a thread decodes at once."""

Progress = Callable[[int, int, int], None]
"""Called with photos and frames done, expected in all, and failed; first with what an earlier call had finished."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Contents of a folder of results; ``failures`` are the inputs that could not be read, with the reasons."""

    rows: int
    faces: int
    shards: int
    failures: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Job:
    """Some photos, or a clip; ``digest`` stands for all that decides their results."""

    number: int
    paths: tuple[str, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class _Item:
    """A photo or frame on its way to a row; without ``path`` the end of the job."""

    job: _Job
    path: str | None = None
    frame: int | None = None
    time: float | None = None
    image: np.ndarray | None = None
    found: Prepared | None = None
    error: str | None = None


@dataclass(slots=True)
class _Shard:
    """Rows that wait to be written, and the class maps that go with them."""

    rows: list[Row] = field(default_factory=list)
    maps: dict[str, bytes] = field(default_factory=dict)


def predict_bulk(
    analyzer: FaceAnalyzer,
    inputs: Sequence[str],
    out: str | Path,
    *,
    every: int = 1,
    maps: bool = False,
    shard_rows: int = 1000,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Analyse pictures and clips into the folder ``out``, or go on where an earlier call was stopped.

    Args:
        analyzer: what analyses; its ``batch_size`` is the number of faces that run at once.
        inputs: paths of pictures and clips, see `ifan.faces.sources.expand`.
        out: folder named ``.parquet``, ``.jsonl`` or ``.csv``, which is the format of the shards in it.
        every: of a clip, each this many frames.
        maps: also write each photo's class map as PNG.
        shard_rows: rows a shard; what a kill can cost.
        threads: how many photos are decoded and searched at once; ``None`` = as many as processors, 2 to 8.
        progress: see `Progress`.

    Raises:
        ValueError: a folder with other things or results of other inputs or settings, or that another process writes
            to; a format that cannot be written.
        OSError: the results cannot be written, as on a full disk; what is finished stays and counts.
    """
    if every < 1 or shard_rows < 1 or (threads is not None and threads < 1):
        raise ValueError(f"every, shard_rows and threads must be at least 1; got {every}, {shard_rows}, {threads}")
    run = _Run(analyzer, Path(out), every, maps, shard_rows, threads or min(8, max(2, os.cpu_count() or 2)))
    jobs = run.plan(inputs)
    if run.out.exists() and not run.out.is_dir():
        raise ValueError(f"{out}: results become a folder of shards; got a file; choose another name")
    with FolderLock(run.out):
        run.check_folder(jobs)
        if progress:
            run.report = progress
            run.expected = sum(count_frames(path, every) if is_clip(path) else 1 for path in inputs)
        try:
            return run.run(jobs)
        except OSError as error:
            hint = "finished shards are kept; make room and run the same command again"
            raise OSError(error.errno, f"{error.strerror}; {hint}", str(run.out)) from error


class _Run:
    """One call of `predict_bulk`."""

    def __init__(
        self, analyzer: FaceAnalyzer, out: Path, every: int, maps: bool, shard_rows: int, threads: int
    ) -> None:
        self.analyzer, self.out, self.every, self.maps = analyzer, out, every, maps
        self.shard_rows, self.threads = shard_rows, threads
        self.write_rows: Writer = writer(out.suffix.lower(), analyzer.predictor.tasks)
        self.report: Progress | None = None
        self.expected = self.done = self.failed = 0

    def plan(self, inputs: Sequence[str]) -> list[_Job]:
        """Runs of photos of at most a shard's rows, and clips, each a job, in order."""
        settings = _settings(self.analyzer, self.every, self.maps, self.shard_rows)
        groups: list[list[str]] = []
        for path in inputs:
            if groups and not is_clip(path) and not is_clip(groups[-1][0]) and len(groups[-1]) < self.shard_rows:
                groups[-1].append(path)
            else:
                groups.append([path])
        return [_Job(i, tuple(group), _digest(settings, group)) for i, group in enumerate(groups)]

    def check_folder(self, jobs: Sequence[_Job]) -> None:
        """Refuse a folder that holds anything else than these jobs' shards; remove what a kill left half-written."""
        own = {f"part-{job.number:06}-{job.digest}" for job in jobs}
        for path in self.out.iterdir():
            if path.name.startswith("part-") and path.suffix == self.out.suffix:
                if path.stem.rpartition("-")[0] not in own:
                    raise ValueError(
                        f"{self.out}: holds results of other inputs, weights or settings; "
                        "repeat the command they are from, or choose another name"
                    )
            elif path.name not in (MANIFEST, COMMITS, MAPS) and not is_part(path):
                raise ValueError(f"{self.out}: holds {path.name}, not only results; choose another name")
        remove_parts(self.out, self.out / COMMITS, self.out / MAPS)

    def run(self, jobs: Sequence[_Job]) -> Summary:
        commits: list[dict[str, Any]] = []
        todo: list[tuple[_Job, int]] = []
        for job in jobs:
            finished = self.finished(job)
            commits += finished
            if not (finished and finished[-1]["last"]):
                todo.append((job, len(finished)))
        self.count(sum(commit["rows"] for commit in commits), sum(len(commit["failures"]) for commit in commits))
        if todo:
            (self.out / MANIFEST).unlink(missing_ok=True)  # until all is there again
        with ThreadPoolExecutor(self.threads, "ifan-prepare") as pool:
            prepared = ordered_map(pool, self.prepare, self.groups(todo), 2 * self.threads)
            with prefetched(prepared, 2 * self.analyzer.batch_size) as stream:
                commits += self.write(chain.from_iterable(stream), dict(todo))
        return self.finish(sorted(commits, key=lambda commit: commit["file"]))

    def finished(self, job: _Job) -> list[dict[str, Any]]:
        """The commits of the job's first shards that are whole."""
        found: list[dict[str, Any]] = []
        while not (found and found[-1]["last"]):
            name = self.name(job, len(found))
            try:
                commit = _checked(json.loads((self.out / COMMITS / f"{name}.json").read_bytes()), name)
                if any(checksum((self.out / file).read_bytes()) != sum_ for file, sum_ in commit["sha256"].items()):
                    break
            except (OSError, ValueError, RecursionError):
                break
            found.append(commit)
        return found

    def groups(self, todo: Sequence[tuple[_Job, int]]) -> Iterator[list[_Item]]:
        """`items` in the portions in which they are prepared: handing one to a thread costs as much as a ready crop, so
        these go together; what takes long, or holds a picture, goes alone."""
        group: list[_Item] = []
        for item in self.items(todo):
            group.append(item)
            if self.analyzer.detector or item.image is not None or len(group) == CROPS_TOGETHER:
                yield group
                group = []
        if group:
            yield group

    def items(self, todo: Sequence[tuple[_Job, int]]) -> Iterator[_Item]:
        """Photos by path, frames decoded, after each job its end."""
        for job, shards in todo:
            for path in job.paths:
                if is_clip(path):
                    yield from self.clip(job, path, shards * self.shard_rows)
                else:
                    yield _Item(job, path)
            yield _Item(job)

    def clip(self, job: _Job, path: str, skip: int) -> Iterator[_Item]:
        count = skip
        try:
            for number, time, image in frames(path, self.every, skip):
                count += 1
                yield _Item(job, path, number, time, image)
            if count == 0:
                yield _Item(job, path, error=f"{path}: the clip has no frames; check it")
        except ValueError as error:
            yield _Item(job, path, error=str(error))

    def prepare(self, items: Sequence[_Item]) -> list[_Item]:
        """Decode, find and crop; a failure becomes a reason. The pictures themselves are let go."""
        done = []
        for item in items:
            if item.path is not None and not item.error:
                found, reason = prepare(self.analyzer, item.path if item.image is None else item.image, item.path)
                item = replace(item, image=None, found=found, error=reason)
            done.append(item)
        return done

    def write(self, stream: Iterator[_Item], shards: dict[_Job, int]) -> Iterator[dict[str, Any]]:
        """Rows into shards, shards onto the disk; ``shards`` says how many of a job are there already."""
        shard = _Shard()
        for item, row, ids in self.rows(stream):
            number = shards[item.job]
            if item.path is not None:
                if ids is not None:
                    row["map"] = f"{MAPS}/{item.job.number:06}-{number:04}-{len(shard.rows):06}.png"
                    shard.maps[row["map"]] = encode_label_png(ids)
                shard.rows.append(row)
                self.count(1, row["error"] is not None)
            full = len(shard.rows) == self.shard_rows and is_clip(item.job.paths[0])
            if item.path is None or full:
                yield self.commit(item.job, number, shard, last=item.path is None)
                shards[item.job] += 1
                shard = _Shard()

    def rows(self, stream: Iterator[_Item]) -> Iterator[tuple[_Item, Row, np.ndarray | None]]:
        """Each item with its row and class map, in order; the network runs whenever a batch of faces is there."""
        items, ahead = tee(stream)
        predictions = self.analyzer.predict((item.found for item in ahead), WAITING * self.analyzer.batch_size)
        for item in items:
            faces = self.analyzer.faces(item.found, predictions) if item.found else ()
            row = as_row(item.path or "", item.found, faces, item.error, item.frame, item.time)
            yield item, row, compose(item.found.size, faces) if self.maps and item.found else None

    def name(self, job: _Job, shard: int) -> str:
        return f"part-{job.number:06}-{job.digest}-{shard:04}{self.out.suffix}"

    def commit(self, job: _Job, number: int, shard: _Shard, last: bool) -> dict[str, Any]:
        """Write maps and rows, and then the note that makes them count."""
        name, data = self.name(job, number), self.write_rows(shard.rows)
        failures = [{key: row[key] for key in ("input", "error")} for row in shard.rows if row["error"] is not None]
        note = {
            "file": name,
            "bytes": len(data),
            "rows": len(shard.rows),
            "faces": sum(len(row["faces"]) for row in shard.rows),
            "failures": failures,
            "last": last,
            "sha256": {name: checksum(data), **{place: checksum(map_) for place, map_ in shard.maps.items()}},
        }
        write_files({self.out / place: picture for place, picture in shard.maps.items()})
        write_files({self.out / name: data})
        write_files({self.out / COMMITS / f"{name}.json": json.dumps(note).encode()})
        return note

    def finish(self, commits: Sequence[dict[str, Any]]) -> Summary:
        failures = [failure for commit in commits for failure in commit["failures"]]
        summary = Summary(sum(c["rows"] for c in commits), sum(c["faces"] for c in commits), len(commits), failures)
        manifest = {
            "ifan": __version__,
            "rows": summary.rows,
            "faces": summary.faces,
            "failed": len(failures),
            "shards": [{key: commit[key] for key in ("file", "bytes", "rows")} for commit in commits],
        }
        write_files({self.out / MANIFEST: json.dumps(manifest, indent=1).encode()})
        return summary

    def count(self, rows: int, failed: int) -> None:
        self.done, self.failed = self.done + rows, self.failed + failed
        if self.report:
            self.report(self.done, max(self.expected, self.done), self.failed)


def _checked(note: Any, name: str) -> dict[str, Any]:
    """``note`` if it is one that `_Run.commit` wrote of the shard ``name``; else raises ``ValueError``."""
    kinds = {"bytes": int, "rows": int, "faces": int, "failures": list, "last": bool, "sha256": dict}
    sound = isinstance(note, dict) and all(isinstance(note.get(key), kind) for key, kind in kinds.items())
    if not sound or note.get("file") != name or name not in note["sha256"]:
        raise ValueError("not a shard's note")
    failures = all(isinstance(f, dict) and f.keys() == {"input", "error"} for f in note["failures"])
    # Names of maps begin with their folder; nothing else is looked at.
    if not failures or any(file != name and not re.fullmatch(rf"{MAPS}/[\d-]+\.png", file) for file in note["sha256"]):
        raise ValueError("not a shard's note")
    return note


def _settings(analyzer: FaceAnalyzer, every: int, maps: bool, shard_rows: int) -> bytes:
    """All that decides a result beside the inputs: weights, configuration, detector, options, version."""
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
        "options": [analyzer.margin, every, maps, shard_rows],
    }
    return json.dumps(settings, sort_keys=True).encode()


def _identity(thing: object) -> str:
    """Description that an object gives of itself, else its class: an address differs from run to run."""
    kind = type(thing)
    return f"{kind.__module__}.{kind.__qualname__}" if kind.__repr__ is object.__repr__ else repr(thing)


def _digest(settings: bytes, paths: Sequence[str]) -> str:
    digest = hashlib.blake2b(settings, digest_size=8)
    for path in paths:
        try:
            facts = os.stat(path)
            state = f"{facts.st_size} {facts.st_mtime_ns}"
        except (OSError, ValueError):
            state = "missing"
        digest.update(os.fsencode(path) + b"\0" + state.encode() + b"\0")
    return digest.hexdigest()
