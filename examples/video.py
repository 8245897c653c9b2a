"""Analyse a clip: a line a face and frame, as a table.

python examples/video.py clip.mp4 clip.csv 5
"""

from __future__ import annotations

import csv
import sys

import ifan
from ifan.faces.sources import frames


def main(clip: str, table: str = "clip.csv", every: str = "1") -> None:
    """Write time, nose and strongest emotion of each face in each ``every``-th frame of ``clip`` to ``table``."""
    analyzer = ifan.load(iterations=1)  # a pass a frame is enough for large faces
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["frame", "seconds", "face", "nose_x", "nose_y", "emotion", "probability"])
        for number, seconds, picture in frames(clip, int(every)):
            for index, face in enumerate(analyzer(picture), 1):
                x, y = face.landmarks["nose"]
                emotion, probability = face.best("emotion")
                writer.writerow([number, seconds, index, round(x, 1), round(y, 1), emotion, round(probability, 3)])
    print(table)


if __name__ == "__main__":
    main(*sys.argv[1:])
