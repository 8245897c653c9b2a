"""Whatever comes in, 8-bit RGB comes out, or one line with the file and the way out."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ifan.data.images import MAX_BYTES, ImageError, check_header, read_image, read_label_image
from tests.support.dataset_layouts import palette_png, picture

RGB = picture(0)
FORMATS = ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def error_of(data: bytes | Path) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(data, "photo.x") if isinstance(data, bytes) else read_image(data)
    message = str(caught.value)
    assert "\n" not in message
    assert isinstance(caught.value, ValueError)
    return message


def difference(image: np.ndarray, expected: np.ndarray) -> float:
    assert image.dtype == np.uint8
    assert image.shape == expected.shape
    return float(np.abs(image.astype(int) - expected).mean())


@pytest.mark.parametrize("kind", FORMATS)
def test_formats(kind: str) -> None:
    data = encoded(Image.fromarray(RGB), kind)
    assert check_header(data, "x") == (64, 64)
    assert difference(read_image(data), RGB) < {"JPEG": 3, "WEBP": 3, "GIF": 8}.get(kind, 1e-9)


@pytest.mark.parametrize("kind", FORMATS)
def test_cut_short_anywhere_is_refused(kind: str) -> None:
    data = encoded(Image.fromarray(RGB), kind)
    for end in range(0, len(data) - 1, max(1, len(data) // 40)):
        assert error_of(data[:end]).startswith("photo.x: ")


def test_modes() -> None:
    photo = Image.fromarray(RGB)
    grey = np.repeat(np.array(photo.convert("L"))[..., None], 3, 2)
    assert difference(read_image(encoded(photo.convert("L"), "PNG")), grey) == 0
    assert difference(read_image(encoded(photo.convert("LA"), "PNG")), grey) == 0
    assert difference(read_image(encoded(photo.convert("RGBA"), "PNG")), RGB) == 0
    palette = photo.convert("P")
    assert difference(read_image(encoded(palette, "PNG")), np.array(palette.convert("RGB"))) == 0
    wide = cv2.imencode(".png", RGB[..., ::-1].astype(np.uint16) * 257)[1].tobytes()
    assert difference(read_image(wide), RGB) == 0
    cmyk = encoded(photo.convert("CMYK"), "JPEG", quality=95)
    assert difference(read_image(cmyk), RGB) < 3
    assert read_image(encoded(Image.fromarray(RGB[:1, :1]), "JPEG")).shape == (1, 1, 3)


def test_exif_rotation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(RGB[:40]), "JPEG", exif=exif, quality=95)
    assert difference(read_image(data), np.rot90(RGB[:40], -1)) < 3


def test_files_that_are_none(tmp_path: Path) -> None:
    assert "does not exist" in error_of(tmp_path / "none.jpg")
    assert "expected a file with a picture" in error_of(tmp_path)
    assert "empty" in error_of(b"")
    assert "not a picture" in error_of(b"hello, this is text")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert str(tmp_path / "a.png") in error_of(tmp_path / "a.png")


def test_damaged_pixels_are_refused() -> None:
    data = bytearray(encoded(Image.fromarray(RGB), "PNG"))
    data[200] ^= 255
    assert "damaged" in error_of(bytes(data))
    floats = cv2.imencode(".tiff", RGB.astype(np.float32))[1].tobytes()
    assert "convert" in error_of(floats)


@pytest.mark.parametrize("size", [(60_000, 60_000), (20_001, 10), (20_000, 20_000)])
def test_oversized_header_is_refused_before_decoding(size: tuple[int, int]) -> None:
    plain = encoded(Image.fromarray(RGB), "PNG")
    chunk = b"IHDR" + struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    bomb = plain[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + plain[33:]
    assert "beyond the limit" in error_of(bomb)


def test_20_000_pixels_a_side_is_still_read() -> None:
    assert read_image(encoded(Image.new("RGB", (20_000, 3)), "PNG")).shape == (3, 20_000, 3)


@pytest.mark.parametrize("colours", [2, 4, 16, 256])
def test_label_map_gives_palette_indices(tmp_path: Path, colours: int) -> None:
    ids = (np.arange(33 * 17) % min(colours, 200)).reshape(17, 33).astype(np.uint8)
    path = palette_png(tmp_path / "ids.png", ids)
    Image.open(path).save(path, bits={2: 1, 4: 2, 16: 4, 256: 8}[colours])
    assert np.array_equal(read_label_image(path), ids)


def test_label_map_of_grey_values() -> None:
    ids = (np.arange(64 * 64) % 19).reshape(64, 64).astype(np.uint8)
    assert np.array_equal(read_label_image(encoded(Image.fromarray(ids), "PNG")), ids)
    colours = np.repeat(ids[..., None], 3, 2)
    assert np.array_equal(read_label_image(encoded(Image.fromarray(colours), "PNG")), ids)


def test_label_map_of_colours_is_refused() -> None:
    with pytest.raises(ImageError, match=r"m\.png: expected a label map"):
        read_label_image(encoded(Image.fromarray(RGB), "PNG"), "m.png")


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path) -> None:
    """A pipe would be waited for, a device read for ever, a huge file fill the memory."""
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for path in (tmp_path / "pipe.jpg", tmp_path / "folder.jpg", Path("/dev/zero")):
        assert f"{path}: expected a file with a picture" in error_of(path)
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # takes no room on the disk
    assert "is beyond the limit of 1073741824" in error_of(tmp_path / "huge.jpg")
