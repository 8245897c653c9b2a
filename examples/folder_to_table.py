"""Analyse all photos of a folder and those below into one table, a row a face.

    python examples/folder_to_table.py photos faces.csv

The same as ``ifan predict photos --recursive --out faces.csv``: it goes on where it was stopped. The columns are in
docs/guides/tables.md.
"""

from __future__ import annotations

import sys

import ifan
from ifan.bulk.flat import predict_table
from ifan.faces.sources import expand


def main(folder: str, table: str = "faces.csv") -> None:
    """Write ``table`` (.csv, .jsonl or .parquet) of the photos and clips in ``folder``."""
    try:
        photos, _ = expand([folder], recursive=True)
    except ValueError as error:
        sys.exit(str(error))
    summary = predict_table(ifan.load(), photos, table)
    for failure in summary.failures:
        print(f"failed: {failure['error']}", file=sys.stderr)
    print(f"{table}: {summary.faces} faces")


if __name__ == "__main__":
    main(*sys.argv[1:])
