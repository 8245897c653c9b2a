"""CelebAMask-HQ (Lee et al., MaskGAN, CVPR 2020): parsing of aligned faces, 19 source classes.

Two layouts: index maps ``mask/<id>.png``, or the authors' release with one PNG a part,
``CelebAMask-HQ-mask-anno/<id // 2000>/<id:05d>_<part>.png``.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np

from ifan.data.dataset import DataError, Reader, choose, numbers, read_lines, three_way
from ifan.data.images import read_image, read_label_image
from ifan.data.labels import CELEBAMASK, PARSING, parsing_table
from ifan.data.sample import FaceSample

IMAGES, INDEX_MAPS, PARTS = "CelebA-HQ-img", "mask", "CelebAMask-HQ-mask-anno"
MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"
DRAWING_ORDER = (
    # Parts overlap: later ones cover earlier ones, as in the authors' own merging script.
    *("skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear"),
    *("mouth", "u_lip", "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth"),
)
FIRST_VAL, FIRST_TEST = 162_770, 182_637
"""CelebA's own partition by original (0-based) image number."""


class CelebAMaskHQ(Reader):
    """CelebA's partition where the mapping file is there, else a seeded 80 / 10 / 10 %, or the ids of a list."""

    name = "celebamask"
    classes = PARSING
    layout = f"the CelebAMask-HQ folder with {IMAGES} and {INDEX_MAPS} or {PARTS}"

    def __init__(self, root: Path, split: str, split_file: Path | None = None) -> None:
        super().__init__(root, split, split_file)
        self.require(IMAGES)
        images = {path.stem: path for path in sorted((self.root / IMAGES).glob("*.jpg"), key=_by_number)}
        maps = self._maps()
        records = {key: (path, maps[key]) for key, path in images.items() if key in maps}
        if not records:
            raise self.wrong_path()
        chosen = choose(records, split_file) if split_file else self._split(records)
        self.keys, self.records = list(chosen), list(chosen.values())
        self.table = parsing_table(CELEBAMASK)

    def __getitem__(self, index: int) -> FaceSample:
        picture, parts = self.records[index]
        image = read_image(picture)
        ids = self._merge(parts)
        if ids.max() >= len(CELEBAMASK):
            raise DataError(
                f"{parts['index']}: expected ids 0..{len(CELEBAMASK) - 1}; got {ids.max()}; use the index maps"
            )
        parsing = cv2.LUT(ids, self.table)
        if parsing.shape != image.shape[:2]:
            # The release has photos of 1024 px and maps of 512 px.
            parsing = cv2.resize(parsing, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        return FaceSample(self.keys[index], image, parsing=np.asarray(parsing))

    def _maps(self) -> dict[str, dict[str, Path]]:
        """Id -> part name -> file; the part ``index`` is a whole map."""
        if (self.root / INDEX_MAPS).is_dir():
            return {path.stem: {"index": path} for path in (self.root / INDEX_MAPS).glob("*.png")}
        maps: dict[str, dict[str, Path]] = defaultdict(dict)
        for path in (self.root / PARTS).glob("*/*.png"):
            number, _, part = path.stem.partition("_")
            if part not in DRAWING_ORDER or not number.isdigit():
                raise DataError(
                    f"{path}: expected <id>_<part>.png with a part of {', '.join(DRAWING_ORDER)}; rename it"
                )
            maps[str(int(number))][part] = path
        return maps

    def _merge(self, parts: dict[str, Path]) -> np.ndarray:
        if "index" in parts:
            return read_label_image(parts["index"])
        ids, numbering = None, list(CELEBAMASK)
        for part in DRAWING_ORDER:
            if part in parts:
                drawn = read_label_image(parts[part]) > 0
                ids = np.zeros(drawn.shape, np.uint8) if ids is None else ids
                if drawn.shape != ids.shape:
                    raise DataError(
                        f"{parts[part]}: {drawn.shape} pixels, other parts have {ids.shape}; restore the file"
                    )
                ids[drawn] = numbering.index(part)
        return np.zeros((1, 1), np.uint8) if ids is None else ids

    def _split(self, records: dict[str, tuple[Path, dict[str, Path]]]) -> dict[str, tuple[Path, dict[str, Path]]]:
        mapping = self.root / MAPPING
        if not mapping.exists():
            return three_way(records, self.split)
        part = {}
        for number, line in enumerate(read_lines(mapping)[1:], 2):
            own, original = numbers(line.split()[:2], f"{mapping}:{number}")
            part[str(int(own))] = "train" if original < FIRST_VAL else "val" if original < FIRST_TEST else "test"
        return {key: value for key, value in records.items() if part.get(key) == self.split}


def _by_number(path: Path) -> tuple[int, str]:
    return (int(path.stem) if path.stem.isdigit() else 0, path.stem)
