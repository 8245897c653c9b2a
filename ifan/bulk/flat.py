"""One flat table of any number of photos and clips: a row a face, in one file that is whole or not there.

Until it is whole, results gather beside it in a folder of shards (``faces.csv.unfinished.jsonl``, see `ifan.bulk.run`).
So the same call goes on where an earlier one was stopped. The folder goes when the table is there.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ifan.bulk.clips import clip_rows
from ifan.bulk.run import MANIFEST, BulkOptions, Progress, Summary, predict_bulk
from ifan.config import TaskConfig
from ifan.faces.analyzer import FaceAnalyzer
from ifan.faces.columns import PLACE, Row, columns, flat_rows
from ifan.faces.video import Source
from ifan.files import FolderLock, replacing
from ifan.optional import require

SHARD_ROWS = 250
"""Photos that a kill can cost."""

GROUP_ROWS = 10_000
"""Rows of a Parquet file that are written together."""

TableWriter = Callable[[Path, Iterator[Row]], None]


def predict_table(
    analyzer: FaceAnalyzer,
    inputs: Sequence[str],
    out: str | Path,
    *,
    every: int = 1,
    smooth: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Analyse pictures and clips into the file ``out``, or go on where an earlier call was stopped.

    Args:
        analyzer: what analyses; the columns are those of its tasks (`ifan.faces.columns.columns`).
        inputs: paths of pictures and clips, see `ifan.faces.sources.expand`.
        out: a name ending in ``.csv``, ``.jsonl`` or ``.parquet``. A table that is there is replaced at the end.
        every: of a clip, each this many frames.
        smooth: filter a clip's points, boxes and probabilities over time.
        progress: see `ifan.bulk.run.Progress`.

    Raises:
        ValueError: another format; a file there that is no such table; and as `predict_bulk`.
        OSError: the results cannot be written, as on a full disk; what is finished stays and counts.
        ImportError: Parquet without pyarrow.
    """
    out = Path(out)
    write = table_writer(out.suffix.lower(), analyzer.predictor.tasks)
    _check_target(out)
    folder = out.with_name(f"{out.name}.unfinished.jsonl")
    options: BulkOptions = {"every": every, "smooth": smooth, "shard_rows": SHARD_ROWS}
    summary = predict_bulk(analyzer, inputs, folder, progress=progress, **options)
    try:
        with FolderLock(folder):
            with replacing(out) as part:
                write(part, _rows(folder))
            shutil.rmtree(folder)
    except OSError as error:
        hint = f"the results are kept in {folder.name}; make room and run the same command again"
        raise OSError(error.errno, f"{error.strerror or error}; {hint}", str(out)) from error
    return summary


def stream_table(
    analyzer: FaceAnalyzer, source: Source, out: str | Path, *, every: int = 1, smooth: bool = False
) -> Summary:
    """Follow the faces of a camera or stream into the file ``out``, until it ends or its `Stream.stop` is called.

    Rows of a stream that breaks off are kept; the last row says why. Arguments are those of `predict_table`.

    Raises:
        ValueError: a stream that gives no frame; another format; a file there that is no such table.
        OSError: the table cannot be written.
        ImportError: Parquet without pyarrow.
    """
    out = Path(out)
    write = table_writer(out.suffix.lower(), analyzer.predictor.tasks)
    _check_target(out)
    frames = faces = 0
    failures: list[dict[str, Any]] = []

    def rows() -> Iterator[Row]:
        nonlocal frames, faces
        for row, _ in clip_rows(analyzer, source, every, smooth=smooth):
            if row["error"] is not None:
                if not frames:
                    raise ValueError(row["error"])
                failures.append({key: row[key] for key in ("input", "error")})
            frames, faces = frames + 1, faces + len(row["faces"])
            yield from _flat(row)

    with replacing(out) as part:
        write(part, rows())
    return Summary(frames, faces, 1, failures, [])


def table_writer(suffix: str, tasks: Sequence[TaskConfig]) -> TableWriter:
    """Function that writes rows of faces analysed for ``tasks`` to a file named ``suffix``.

    Raises ``ValueError`` for another format, ``ImportError`` for Parquet without pyarrow.
    """
    if suffix not in (".csv", ".jsonl", ".parquet"):
        raise ValueError(f"a table is written as .csv, .jsonl or .parquet; got {suffix!r}; choose one of these")
    names = columns(tasks)
    return {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}[suffix](names)


def _rows(folder: Path) -> Iterator[Row]:
    """Flat rows of the shards in ``folder``, in the order of the inputs."""
    for shard in json.loads((folder / MANIFEST).read_bytes())["shards"]:
        with (folder / shard["file"]).open(encoding="utf-8") as lines:
            for line in lines:
                yield from _flat(json.loads(line))


def _flat(row: Mapping[str, Any]) -> list[Row]:
    about = {name: row[name] for name in ("frame", "time", "width", "height", "error")}
    return flat_rows({"photo": row["input"], **about}, row["faces"])


def _csv(names: Mapping[str, type]) -> TableWriter:
    def write(path: Path, rows: Iterator[Row]) -> None:
        with path.open("x", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(names))
            table.writeheader()
            table.writerows(rows)

    return write


def _jsonl(names: Mapping[str, type]) -> TableWriter:
    def write(path: Path, rows: Iterator[Row]) -> None:
        with path.open("x", encoding="utf-8") as file:
            file.writelines(json.dumps({name: row.get(name) for name in names}) + "\n" for row in rows)

    return write


def _parquet(names: Mapping[str, type]) -> TableWriter:
    pa = require("Parquet (not .csv or .jsonl)", "pyarrow", "pyarrow", "ifan[bulk]")
    import pyarrow.parquet as pq

    kinds: dict[type, Any] = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in names.items()])

    def write(path: Path, rows: Iterator[Row]) -> None:
        with pq.ParquetWriter(path, schema) as file:
            while group := list(islice(rows, GROUP_ROWS)):
                file.write_table(pa.Table.from_pylist(group, schema))

    return write


def _check_target(out: Path) -> None:
    """Refuse to replace what is no table of faces."""
    if out.is_dir():
        raise ValueError(f"{out}: expected the name of a file; got a folder; choose another name, or --shards")
    if not out.exists() or out.stat().st_size == 0:
        return
    with out.open("rb") as file:
        head = file.read(20)
    ours = {
        ".csv": head.startswith(b"photo,face,id,frame"),
        ".jsonl": head.startswith(b'{"photo": '),
        ".parquet": head.startswith(b"PAR1") and _parquet_names(out)[: len(PLACE)] == list(PLACE),
    }
    if not ours[out.suffix.lower()]:
        raise ValueError(f"{out}: there is a file that is no table of faces; choose another name, or remove it")


def _parquet_names(path: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return list(pq.read_schema(path).names)
    except (OSError, pa.ArrowException):
        return []
