"""Outputs of the page: pictures and downloads of a photo or a clip."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ifan.config import TaskConfig
from ifan.crop import Crop, covered
from ifan.faces.analyzer import FaceAnalyzer
from ifan.faces.clip import save_clip
from ifan.faces.columns import columns, flat_rows
from ifan.faces.draw import draw_faces, enlargement, label_of, labelled
from ifan.faces.face import Face
from ifan.faces.palette import palette
from ifan.faces.result import PhotoResult
from ifan.faces.sources import count_frames
from ifan.faces.timeline import draw_timeline
from ifan.files import write_files

FRAMES = 300
"""Of a longer clip frames are left out, so that about this many remain."""


class Shelf:
    """Folders for downloads, removed when they are older than ``seconds``, and all when the program ends."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._root = tempfile.TemporaryDirectory(prefix="ifan-page-")

    def folder(self) -> Path:
        """A new folder."""
        for old in Path(self._root.name).iterdir():
            if time.time() - old.stat().st_mtime > self.seconds:
                shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(dir=self._root.name))


class Outputs:
    """Values of the page's components, in order: slider, clip, plot over time, legend, faces, line, three downloads."""

    def __init__(self, gr: Any, shelf: Shelf) -> None:
        self.gr, self.shelf = gr, shelf

    def nothing(self, line: str = "") -> list[Any]:
        """Of a page without a photo; the ``line`` says why."""
        return self._outputs(line=line)

    def photo(self, results: Sequence[PhotoResult], tasks: Sequence[TaskConfig]) -> list[Any]:
        """The first of ``results``, beside the second one or the photo."""
        result, folder = results[0], self.shelf.folder()
        right = labelled(result.image, result.faces)
        left = labelled(result.image, results[1].faces) if results[1:] else cv2.resize(result.image, right.shape[1::-1])
        files = result.files(folder)
        overlay, *_, numbers = files
        table = numbers.with_suffix(".csv")
        write_files({**files, table: _csv([result.to_dict()], tasks)})
        scale = enlargement(result.image, result.faces)
        alone = draw_faces(result.image, result.faces, scale)
        return self._outputs(
            pictures=(left, right),
            legend=_legend(result),
            tiles=[_tile(alone, scale, face, number) for number, face in enumerate(result, 1)],
            line=f"{len(result)} face{'' if len(result) == 1 else 's'}",
            files=(overlay, numbers, table),
        )

    def clip(self, analyzer: FaceAnalyzer, path: str) -> list[Any]:
        """The clip with overlays, and its faces over time where matplotlib is installed."""
        folder, name = self.shelf.folder(), Path(path).name
        every = max(1, round(count_frames(path) / FRAMES))
        (film, lines), frames, faces = save_clip(analyzer, path, folder, Path(path).stem, every)
        table = lines.with_suffix(".csv")
        rows = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
        write_files({table: _csv([{**row, "photo": name} for row in rows], analyzer.config.tasks)})
        plot: Path | None = lines.with_suffix(".png")
        try:
            write_files({lines.with_suffix(".png"): draw_timeline(rows)})
        except (ImportError, ValueError):  # no matplotlib, or no face
            plot = None
        found = f"{faces} faces in {frames} frames"
        return self._outputs(film=film, plot=plot, line=found, files=(film, lines, table))

    def _outputs(
        self,
        pictures: tuple[np.ndarray, np.ndarray] | None = None,
        film: Path | None = None,
        plot: Path | None = None,
        legend: str = "",
        tiles: Sequence[tuple[np.ndarray, str]] = (),
        line: str = "",
        files: Sequence[Path] = (),
    ) -> list[Any]:
        gr = self.gr
        return [
            gr.ImageSlider(pictures, visible=film is None),
            gr.Video(film and str(film), visible=film is not None),
            gr.Image(plot and str(plot), visible=plot is not None),
            legend,
            gr.Gallery(list(tiles), visible=bool(tiles)),
            line,
            *(gr.DownloadButton(value=str(file), visible=True) for file in files),
            *[gr.DownloadButton(visible=False)] * (3 - len(files)),
        ]


def _tile(picture: np.ndarray, scale: float, face: Face, number: int) -> tuple[np.ndarray, str]:
    """A face of the drawn picture alone, and its label."""
    crop = Crop(face.crop.cx * scale, face.crop.cy * scale, face.crop.side * scale)
    x0, y0, x1, y1 = covered(crop, picture.shape)
    return picture[y0:y1, x0:x1], label_of(face, number)


def _legend(result: PhotoResult) -> str:
    """The colours' names as HTML."""
    names = next((face.parsing_classes for face in result if face.parsing is not None), ())
    colours = palette(max(len(names), 1))
    parts = [
        f'<span><i style="background: rgb({r}, {g}, {b})"></i>{name.replace("_", " ")}</span>'
        for name, (r, g, b) in list(zip(names, colours, strict=True))[1:]
    ]
    return "".join(parts)


def _csv(pictures: Sequence[dict[str, Any]], tasks: Sequence[TaskConfig]) -> bytes:
    """A row for each face of ``pictures``, which are as `PhotoResult.to_dict` has them."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns(tasks)), lineterminator="\n")
    writer.writeheader()
    for picture in pictures:
        faces = picture.pop("faces")
        writer.writerows(flat_rows(picture, faces))
    return text.getvalue().encode()
