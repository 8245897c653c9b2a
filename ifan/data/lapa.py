"""LaPa (Liu et al., A New Dataset and Boundary-Attention Semantic Segmentation for Face Parsing, AAAI 2020).

``{train,val,test}/{images,labels,landmarks}/<id>.{jpg,png,txt}``: index maps of eleven classes and 106 points, the
number of points on the first line of a text file.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np

from ifan.crop import box_around
from ifan.data.dataset import DataError, Reader, choose
from ifan.data.images import read_image, read_label_image
from ifan.data.labels import LANDMARKS, LAPA, PARSING, POINTS_106, Classes, five_points, parsing_table
from ifan.data.pts import read_points
from ifan.data.sample import FaceSample


class LaPa(Reader):
    """Official splits. Labels parsing and landmarks; the box frames the points."""

    name = "lapa"
    classes: ClassVar[Classes] = {**PARSING, **LANDMARKS}
    layout = "the LaPa folder with train, val and test, each with images, labels and landmarks"

    def __init__(self, root: Path, split: str, split_file: Path | None = None) -> None:
        super().__init__(root, split, split_file)
        self.require(*(f"{split}/{part}" for part in ("images", "labels", "landmarks")))
        self.folder = self.root / split
        records = {path.stem: path for path in sorted((self.folder / "images").glob("*.jpg"))}
        if not records:
            raise self.wrong_path()
        self.keys = list(choose(records, split_file) if split_file else records)
        self.table = parsing_table(LAPA)

    def __getitem__(self, index: int) -> FaceSample:
        key = self.keys[index]
        image = read_image(self.folder / "images" / f"{key}.jpg")
        path = self.folder / "labels" / f"{key}.png"
        ids = read_label_image(path)
        if ids.shape != image.shape[:2] or ids.max() >= len(LAPA):
            raise DataError(
                f"{path}: expected ids 0..{len(LAPA) - 1} in {image.shape[:2]} pixels; got up to {ids.max()} "
                f"in {ids.shape}; restore the file"
            )
        points = five_points(read_points(self.folder / "landmarks" / f"{key}.txt", 106), POINTS_106)
        return FaceSample(key, image, box_around(points), np.asarray(cv2.LUT(ids, self.table)), points)
