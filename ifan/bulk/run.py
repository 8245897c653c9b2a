"""Any number of photos and clips: decoding, detection and the network overlap, memory stays flat, a kill costs a shard.

Results are a folder of shards in the order of the inputs::

    results.parquet/part-000000-<digest>-0000.parquet    rows, one a photo or frame
    results.parquet/_commits/part-....json               its counts, written after it: only now the shard counts
    results.parquet/_maps/...png                         class maps, if asked for
    results.parquet/_manifest.json                       written last: the results are complete

Readers of Parquet folders ignore names that start with ``_`` or a dot. A second run keeps what is finished. Inputs that
are new or changed since are analysed, rows of inputs that are gone go; other weights or settings are refused
(`ifan.bulk.folder`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, islice, tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from ifan import __version__
from ifan.bulk.clips import clip_rows
from ifan.bulk.folder import COMMITS, MANIFEST, MAPS, Job, ResultFolder, plan, settings_digest
from ifan.bulk.rows import as_row, prepare, spelled
from ifan.bulk.tables import Row, Writer, writer
from ifan.faces.analyzer import FaceAnalyzer, Prepared
from ifan.faces.face import compose
from ifan.faces.pipeline import ordered_map, prefetched
from ifan.faces.png import encode_label_png
from ifan.faces.sources import count_frames, is_clip
from ifan.faces.streams import is_address
from ifan.files import FolderLock, checksum, write_files

if TYPE_CHECKING:
    from typing_extensions import Unpack

WAITING = 4
"""Photos, in batches of faces, that may wait for their batch to fill."""

CROPS_TOGETHER = 8
"""Ready crops that a thread decodes at once."""

Progress = Callable[[int, int, int], None]
"""Called with photos and frames done, expected in all, and failed; first with what an earlier call had finished."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Contents of a folder of results.

    ``failures`` are the inputs that could not be read, with the reasons; ``removed`` those whose rows an earlier call
    had left and this one was not asked for.
    """

    rows: int
    faces: int
    shards: int
    failures: list[dict[str, Any]]
    removed: list[str]


@dataclass(frozen=True, slots=True)
class _Item:
    """A photo on its way to a row, or a photo or frame that has its ``row``, perhaps with a new class map as PNG;
    without ``path`` the end of the job."""

    job: Job
    path: str | None = None
    found: Prepared | None = None
    error: str | None = None
    row: Row | None = None
    map: bytes | None = None


@dataclass(slots=True)
class _Shard:
    """Rows that wait to be written, and the class maps that go with them."""

    rows: list[Row] = field(default_factory=list)
    maps: dict[str, bytes] = field(default_factory=dict)


class BulkOptions(TypedDict, total=False):
    """Options of `predict_bulk`, each given by its name."""

    every: int
    """Of a clip, each this many frames; all by default."""
    smooth: bool
    """Filter a clip's points, boxes and probabilities over time; not by default."""
    maps: bool
    """Also write each photo's class map as PNG; not by default."""
    shard_rows: int
    """Rows a shard, which is what a kill can cost; 1000 by default."""
    threads: int | None
    """Photos that are decoded and searched at once; by default as many as processors, 2 to 8."""


def predict_bulk(
    analyzer: FaceAnalyzer,
    inputs: Sequence[str],
    out: str | Path,
    *,
    progress: Progress | None = None,
    **options: Unpack[BulkOptions],
) -> Summary:
    """Analyse pictures and clips into the folder ``out``, or go on where an earlier call was stopped.

    Inputs may have changed since: rows of unchanged ones stay, others are made anew, and those of inputs that are not
    given any more go when the rest is done.

    Args:
        analyzer: what analyses; its ``batch_size`` is the number of faces that run at once.
        inputs: paths of pictures and clips, see `ifan.faces.sources.expand`.
        out: folder named ``.parquet``, ``.jsonl`` or ``.csv``, which is the format of the shards in it.
        progress: see `Progress`.
        options: ``every``, ``smooth``, ``maps``, ``shard_rows``, ``threads``, see `BulkOptions`.

    Raises:
        TypeError: an option that there is not.
        ValueError: a number below 1; a folder with other things, with results of other settings or of other inputs
            alone, or that another process writes to; a format that cannot be written.
        OSError: the results cannot be written, as on a full disk; what is finished stays and counts.
    """
    run = _Run(analyzer, Path(out), **options)
    if addresses := [path for path in inputs if is_address(path)]:
        raise ValueError(
            f"{addresses[0]}: expected files; got an address, where nothing can be done again; see stream_table"
        )
    settings = settings_digest(analyzer, [run.every, run.smooth, run.maps, run.shard_rows])
    jobs = plan(inputs, settings, run.shard_rows)
    if run.out.exists() and not run.out.is_dir():
        raise ValueError(f"{out}: results become a folder of shards; got a file; choose another name")
    with FolderLock(run.out):
        run.folder = ResultFolder(run.out, jobs, settings)
        if progress:
            run.report = progress
            run.expected = sum(count_frames(path, run.every) if is_clip(path) else 1 for path in inputs)
        try:
            return run.run(jobs)
        except OSError as error:
            hint = "finished shards are kept; make room and run the same command again"
            raise OSError(error.errno, f"{error.strerror}; {hint}", str(run.out)) from error


class _Run:
    """One call of `predict_bulk`."""

    def __init__(
        self,
        analyzer: FaceAnalyzer,
        out: Path,
        every: int = 1,
        smooth: bool = False,
        maps: bool = False,
        shard_rows: int = 1000,
        threads: int | None = None,
    ) -> None:
        if every < 1 or shard_rows < 1 or (threads is not None and threads < 1):
            raise ValueError(f"every, shard_rows and threads must be at least 1; got {every}, {shard_rows}, {threads}")
        self.analyzer, self.out, self.every, self.smooth, self.maps = analyzer, out, every, smooth, maps
        self.shard_rows, self.threads = shard_rows, threads or min(8, max(2, os.cpu_count() or 2))
        self.write_rows: Writer = writer(out.suffix.lower(), analyzer.predictor.tasks)
        self.folder: ResultFolder
        self.report: Progress | None = None
        self.expected = self.done = self.failed = 0

    def run(self, jobs: Sequence[Job]) -> Summary:
        commits: list[dict[str, Any]] = []
        todo: list[tuple[Job, int]] = []
        for job in jobs:
            finished = self.folder.finished(job.name)
            commits += finished
            if not (finished and finished[-1]["last"]):
                todo.append((job, len(finished)))
        self.count(sum(commit["rows"] for commit in commits), sum(len(commit["failures"]) for commit in commits))
        if todo or self.folder.superseded:
            (self.out / MANIFEST).unlink(missing_ok=True)  # until all is there again
        with ThreadPoolExecutor(self.threads, "ifan-prepare") as pool:
            prepared = ordered_map(pool, self.prepare, self.groups(todo), 2 * self.threads)
            with prefetched(prepared, 2 * self.analyzer.batch_size) as stream:
                commits += self.write(chain.from_iterable(stream), dict(todo))
        self.folder.remove_superseded()
        return self.finish(sorted(commits, key=lambda commit: commit["file"]))

    def groups(self, todo: Sequence[tuple[Job, int]]) -> Iterator[list[_Item]]:
        """`items` in the portions in which they are prepared: handing one to a thread costs as much as a ready crop, so
        these go together; what takes long goes alone."""
        group: list[_Item] = []
        for item in self.items(todo):
            group.append(item)
            if self.analyzer.detector or len(group) == CROPS_TOGETHER:
                yield group
                group = []
        if group:
            yield group

    def items(self, todo: Sequence[tuple[Job, int]]) -> Iterator[_Item]:
        """Photos by path, frames with their rows, after each job its end."""
        for job, shards in todo:
            for path, key in zip(job.paths, job.keys, strict=True):
                if is_clip(path):
                    yield from self.clip(job, path, shards * self.shard_rows)
                else:
                    yield _Item(job, path, row=next(self.folder.kept(key), None))
            yield _Item(job)

    def clip(self, job: Job, path: str, skip: int) -> Iterator[_Item]:
        count, (key,) = skip, job.keys
        for row in islice(self.folder.kept(key), skip, None):
            count += 1
            yield _Item(job, path, row=row)
        if not self.folder.is_kept_whole(key):
            made = clip_rows(self.analyzer, path, self.every, smooth=self.smooth, maps=self.maps, skip=count)
            yield from (_Item(job, path, row=row, map=map_) for row, map_ in made)

    def prepare(self, items: Sequence[_Item]) -> list[_Item]:
        """Decode, find and crop; a failure becomes a reason. The pictures themselves are let go."""
        done = []
        for item in items:
            if item.path is not None and not item.row:
                found, reason = prepare(self.analyzer, item.path, item.path)
                item = replace(item, found=found, error=reason)
            done.append(item)
        return done

    def write(self, stream: Iterator[_Item], shards: dict[Job, int]) -> Iterator[dict[str, Any]]:
        """Rows into shards, shards onto the disk; ``shards`` says how many of a job are there already."""
        shard = _Shard()
        for item, row, map_ in self.rows(stream):
            number = shards[item.job]
            if item.path is not None:
                if map_ is not None:
                    row["map"] = f"{MAPS}/{item.job.shard(number)}-{len(shard.rows):06}.png"
                    shard.maps[row["map"]] = map_
                shard.rows.append(row)
                self.count(1, row["error"] is not None)
            full = len(shard.rows) == self.shard_rows and is_clip(item.job.paths[0])
            if item.path is None or full:
                yield self.commit(item.job, number, shard, last=item.path is None)
                shards[item.job] += 1
                shard = _Shard()

    def rows(self, stream: Iterator[_Item]) -> Iterator[tuple[_Item, Row, bytes | None]]:
        """Each item with its row and class map, in order; the network runs whenever a batch of faces is there."""
        items, ahead = tee(stream)
        predictions = self.analyzer.predict((item.found for item in ahead), WAITING * self.analyzer.batch_size)
        for item in items:
            if item.row:
                kept = item.row["map"]
                yield item, item.row, (self.out / kept).read_bytes() if kept else item.map
                continue
            found = item.found
            faces = self.analyzer.faces(found, predictions) if found else ()
            ids = compose(found.size, faces) if self.maps and found else None
            row = as_row(item.path or "", found.size if found else None, faces, item.error)
            yield item, row, None if ids is None else encode_label_png(ids)

    def commit(self, job: Job, number: int, shard: _Shard, last: bool) -> dict[str, Any]:
        """Write maps and rows, and then the note that makes them count."""
        name, data = job.shard(number) + self.out.suffix, self.write_rows(shard.rows)
        failures = [{key: row[key] for key in ("input", "error")} for row in shard.rows if row["error"] is not None]
        note = {
            "file": name,
            "bytes": len(data),
            "rows": len(shard.rows),
            "faces": sum(len(row["faces"]) for row in shard.rows),
            "failures": failures,
            "last": last,
            "inputs": [[spelled(path), key] for path, key in zip(job.paths, job.keys, strict=True)],
            "sha256": {name: checksum(data), **{place: checksum(map_) for place, map_ in shard.maps.items()}},
        }
        write_files({self.out / place: picture for place, picture in shard.maps.items()})
        write_files({self.out / name: data})
        write_files({self.out / COMMITS / f"{name}.json": json.dumps(note).encode()})
        return note

    def finish(self, commits: Sequence[dict[str, Any]]) -> Summary:
        failures = [failure for commit in commits for failure in commit["failures"]]
        rows, faces = (sum(commit[count] for commit in commits) for count in ("rows", "faces"))
        summary = Summary(rows, faces, len(commits), failures, self.folder.removed)
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
