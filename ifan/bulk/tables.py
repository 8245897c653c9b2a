"""Rows of results as the bytes of a Parquet, JSON Lines or CSV file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

from ifan.config import TaskConfig
from ifan.optional import require

COLUMNS = ("input", "frame", "time", "width", "height", "faces", "map", "error")
"""A row a photo or frame: its path; number and seconds of a frame; pixels; faces (see `Face.to_dict`), in a CSV file as
JSON; the class map's file, if asked for; and, of what could not be read, why."""

Row = dict[str, Any]
Writer = Callable[[Sequence[Row]], bytes]


def writer(suffix: str, tasks: Sequence[TaskConfig]) -> Writer:
    """Function from rows to a file named ``suffix``; ``tasks`` are those that the faces were analysed for.

    Raises ``ValueError`` for another format, ``ImportError`` for Parquet without pyarrow.
    """
    if suffix == ".parquet":
        return _parquet(tasks)
    if suffix not in (".jsonl", ".csv"):
        raise ValueError(f"results are written as .parquet, .jsonl or .csv; got {suffix!r}; choose one of these")
    return _jsonl if suffix == ".jsonl" else _csv


def _jsonl(rows: Sequence[Row]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _csv(rows: Sequence[Row]) -> bytes:
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, COLUMNS)
    table.writeheader()
    table.writerows({**row, "faces": json.dumps(row["faces"])} for row in rows)
    return text.getvalue().encode()


def schema(tasks: Sequence[TaskConfig]) -> Any:
    """The Arrow schema of rows whose faces were analysed for ``tasks``. Raises ``ImportError`` without pyarrow."""
    pa = require("Parquet (not .jsonl or .csv)", "pyarrow", "pyarrow", "ifan[bulk]")

    def named(names: Sequence[str], kind: Any) -> Any:
        return pa.struct([(name, kind) for name in names])

    real, whole = pa.float64(), pa.int64()
    face: list[tuple[str, Any]] = [
        ("id", whole),
        ("box", pa.list_(real)),
        ("score", real),
        ("crop", named(("cx", "cy", "side", "angle_deg"), real)),
    ]
    for task in tasks:
        if task.kind == "parsing":
            face.append(("parsing", pa.struct([("region", pa.list_(whole)), ("pixels", named(task.classes, whole))])))
        elif task.kind == "landmarks":
            face.append(("landmarks", named(task.classes, pa.list_(real))))
    categories = [(task.name, named(task.classes, real)) for task in tasks if task.kind == "classification"]
    if categories:
        face.append(("classes", pa.struct(categories)))
    kinds = (pa.string(), whole, real, whole, whole, pa.list_(pa.struct(face)), pa.string(), pa.string())
    return pa.schema(list(zip(COLUMNS, kinds, strict=True)))


def _parquet(tasks: Sequence[TaskConfig]) -> Writer:
    columns = schema(tasks)
    import pyarrow as pa
    import pyarrow.parquet as pq

    def write(rows: Sequence[Row]) -> bytes:
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(list(rows), columns), buffer)
        return buffer.getvalue()

    return write


def read_rows(data: bytes, suffix: str) -> list[Row]:
    """Rows of a file that a `writer` for ``suffix`` has made."""
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        return list(pq.read_table(io.BytesIO(data)).to_pylist())
    if suffix == ".jsonl":
        return [json.loads(line) for line in data.splitlines()]
    kinds: dict[str, Callable[[str], Any]] = {
        "frame": int,
        "time": float,
        "width": int,
        "height": int,
        "faces": json.loads,
    }
    return [
        {name: kinds.get(name, str)(text) if text else None for name, text in row.items()}
        for row in csv.DictReader(io.StringIO(data.decode(), newline=""))
    ]
