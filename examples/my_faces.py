"""A dataset of one's own: pictures beside labels.csv, whose lines are SPLIT,FILE,0 or 1.

PYTHONPATH=examples ifan train --config smiles.yaml --data mine=my_faces:MyFaces=photos --out runs/smiles
"""

from pathlib import Path

from ifan.data import FaceSample, Reader, read_image


class MyFaces(Reader):
    """Faces with the label smile."""

    name = "my_faces"
    classes = {"smile": ("no", "yes")}
    layout = "a folder with pictures and labels.csv"

    def __init__(self, root: Path, split: str, split_file: Path | None = None) -> None:
        super().__init__(root, split, split_file)
        self.require("labels.csv")
        lines = [line.split(",") for line in (self.root / "labels.csv").read_text().splitlines()]
        self.keys = [file for part, file, _ in lines if part == split]
        self.smiles = [int(smile) for part, _, smile in lines if part == split]

    def __getitem__(self, index: int) -> FaceSample:
        image = read_image(self.root / self.keys[index])
        return FaceSample(self.keys[index], image, labels=self.labels_of(index))

    def labels_of(self, index: int) -> dict[str, int]:
        return {"smile": self.smiles[index]}
