"""``ifan demo``: a portrait that ships with the package and a sheet of drawn faces, analysed."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np

    from ifan.data.sample import FaceSample
    from ifan.faces import FaceAnalyzer, PhotoResult

PORTRAIT = "astronaut.png"
"""The NASA portrait of Eileen Collins (public domain)."""

DRAWN_FACES, DRAWN_SIDE = 4, 192


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures; made if needed.")] = Path("out"),
    weights: Annotated[str | None, typer.Option(help="Packaged name, model folder or run folder.")] = None,
) -> None:
    """Analyse a portrait and four drawn faces, and say where the pictures are."""
    from ifan.faces import load
    from ifan.faces.png import encode_png
    from ifan.files import write_files

    analyzer = load(weights)
    portrait = (resources.files("ifan") / "assets" / PORTRAIT).read_bytes()
    result = analyzer(portrait)
    files = result.save(out, Path(PORTRAIT).stem)
    sheet = out / "drawn_faces.png"
    write_files({sheet: encode_png(_drawn_faces(analyzer))})
    for file, what in zip([*files, sheet], _captions(len(files)), strict=True):
        typer.echo(f"{what}: {file}")


def _captions(portrait_files: int) -> list[str]:
    middle = ["class ids of the portrait"] if portrait_files == 3 else []
    return [
        "portrait with parsing, points and emotion",
        *middle,
        "the same as JSON",
        "drawn faces, exact labels, network",
    ]


def _drawn_faces(analyzer: FaceAnalyzer) -> np.ndarray:
    """A sheet with a row a face: the drawing, its exact labels, what the network says."""
    from ifan.data.toy import ToyFaces
    from ifan.faces import FaceAnalyzer
    from ifan.faces.draw import contact_sheet

    faces = ToyFaces(DRAWN_FACES, seed=0, size=DRAWN_SIDE)
    samples = [faces[i] for i in range(len(faces))]
    results = FaceAnalyzer(analyzer.model, detector=None)([sample.image for sample in samples])
    rows = [
        [_tile(sample.image), _labelled(sample), _predicted(result)]
        for sample, result in zip(samples, results, strict=True)
    ]
    return contact_sheet(rows, ["drawn face", "exact labels", "network"])


def _labelled(sample: FaceSample) -> np.ndarray:
    from ifan.config import EMOTIONS

    emotion = sample.labels.get("emotion", -1)
    return _tile(sample.image, sample.parsing, sample.points, EMOTIONS[emotion] if emotion >= 0 else "")


def _predicted(result: PhotoResult) -> np.ndarray:
    import numpy as np

    face = result[0]
    caption = "{} {:.0%}".format(*face.best("emotion")) if face.emotion else ""
    return _tile(result.image, result.parsing, np.array(list(face.landmarks.values())), caption)


def _tile(
    image: np.ndarray, labels: np.ndarray | None = None, points: np.ndarray | None = None, caption: str = ""
) -> np.ndarray:
    """A square picture with what is known about it drawn in, and a line of text below."""
    import numpy as np

    from ifan.faces.draw import PAPER, paint, rings, write

    side = image.shape[0]
    tile = np.full((side + side // 8, side, 3), PAPER, np.uint8)
    tile[:side] = image if labels is None else paint(image, labels)
    if points is not None:
        rings(tile, points, side)
    write(tile, caption, (side // 24, side + side // 12), side / 14)
    return tile
