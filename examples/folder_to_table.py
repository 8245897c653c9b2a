"""Analyse all photos of a folder and write a spreadsheet, a row a face.

    python examples/folder_to_table.py photos faces.csv

For millions of photos see `ifan.bulk.run.predict_bulk`, which goes on where it was stopped.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import ifan

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


def rows(analyzer: ifan.FaceAnalyzer, photo: Path) -> Iterator[dict[str, object]]:
    """The faces of a photo: box, points, and the probabilities of each class."""
    for number, face in enumerate(analyzer(photo), 1):
        row: dict[str, object] = {"photo": str(photo), "face": number}
        row |= {name: round(value, 1) for name, value in zip(("x0", "y0", "x1", "y1"), face.box, strict=True)}
        for name, (x, y) in face.landmarks.items():
            row |= {f"{name}_x": round(x, 1), f"{name}_y": round(y, 1)}
        for task, classes in face.classes.items():
            row |= {f"{task}_{name}": round(p, 4) for name, p in classes.items()}
        yield row


def main(folder: str, table: str = "faces.csv") -> None:
    """Write ``table`` of the photos in ``folder`` and below."""
    analyzer, found = ifan.load(), list[dict[str, object]]()
    for photo in sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in ENDINGS):
        try:
            found += rows(analyzer, photo)
        except ValueError as error:  # not a picture, whatever its name says
            print(f"skipped: {error}", file=sys.stderr)
    if not found:
        sys.exit(f"{folder}: no faces; expected photos ending in {', '.join(sorted(ENDINGS))}")
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
    print(f"{table}: {len(found)} faces")


if __name__ == "__main__":
    main(*sys.argv[1:])
