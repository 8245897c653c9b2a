"""The command line in-process, saved weights of a tiny untrained network, and photos of every kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ifan.cli.main import main
from ifan.config import EMOTIONS, PARSING_CLASSES, POINT_NAMES, NetworkConfig, TaskConfig

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """``run("predict", path, ...)`` -> exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model folder."""
    pytest.importorskip("torch", reason="the fixture's network is made by PyTorch")
    from ifan.network import IFAN

    tasks = (
        TaskConfig("parsing", "parsing", PARSING_CLASSES),
        TaskConfig("landmarks", "landmarks", POINT_NAMES),
        TaskConfig("emotion", "classification", EMOTIONS),
    )
    config = NetworkConfig(32, tasks, iterations=2, growth=4, block_layers=1, stem_channels=8, up_channels=16)
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    IFAN(config).save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of unusual photos that are all fine, 40 wide and 30 high, the single pixel and the turned one apart."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rgb = (np.mgrid[0:30, 0:40].sum(0)[..., None] * [1, 2, 3]).astype(np.uint8)
    cv2.imwrite(str(folder / "grey.png"), rgb[..., 0])
    cv2.imwrite(str(folder / "deep.png"), rgb.astype(np.uint16) * 257)
    Image.fromarray(rgb).convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(rgb).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(rgb).convert("P").save(folder / "palette.gif")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgb).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(rgb[:1, :1]).save(folder / "pixel.png")
    return folder


@pytest.fixture
def photo(photos: Path) -> Path:
    return photos / "alpha.png"
