"""``ifan demo``: a portrait that ships with the package, and the same face changed in nine ways, analysed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np

TILE = 240
"""Side of one of the nine pictures."""


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures; made if needed.")] = Path("out"),
    weights: Annotated[str | None, typer.Option(help="Packaged name, model folder or run folder.")] = None,
) -> None:
    """Analyse a portrait, and its face nine times, changed; say where the pictures are."""
    from ifan.data.portrait import PORTRAIT, read_portrait
    from ifan.faces import load
    from ifan.faces.jpeg import encode_jpeg
    from ifan.files import write_files

    analyzer = load(weights)
    portrait = read_portrait()
    files = analyzer(portrait).save(out, Path(PORTRAIT).stem)
    nine = out / "nine_overlay.jpg"
    write_files({nine: encode_jpeg(analyzer(nine_of(portrait)).plot())})
    for file, what in zip([*files, nine], _captions(len(files)), strict=True):
        typer.echo(f"{what}: {file}")


def nine_of(portrait: np.ndarray) -> np.ndarray:
    """A photo of nine faces, (H, W, 3) uint8 RGB: the portrait's as it is, mirrored, turned, small, dark ..."""
    import cv2
    import numpy as np

    from ifan.crop import Crop, crop_image
    from ifan.data.portrait import FACE

    x, y, side = FACE

    def tile(larger: float = 1, turned: float = 0, mirrored: bool = False) -> np.ndarray:
        return crop_image(portrait, Crop(x, max(y, side * larger / 2), side * larger, turned, mirrored), TILE)

    plain = tile()
    noise = np.random.default_rng(0).normal(0, 30, plain.shape)
    tiles = [
        plain,
        tile(mirrored=True),
        tile(1.9),
        tile(turned=25),
        tile(turned=-25, mirrored=True),
        cv2.GaussianBlur(plain, (0, 0), 3.5),
        (plain * 0.3).astype(np.uint8),
        cv2.cvtColor(cv2.cvtColor(plain, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB),
        np.clip(plain + noise, 0, 255).astype(np.uint8),
    ]
    return np.concatenate([np.concatenate(tiles[i : i + 3], axis=1) for i in (0, 3, 6)])


def _captions(portrait_files: int) -> list[str]:
    middle = ["class ids of the portrait"] if portrait_files == 3 else []
    return ["portrait with regions, points and emotion", *middle, "the same as JSON", "its face, changed in nine ways"]
