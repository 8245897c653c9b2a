"""Whatever comes in, 8-bit RGB comes out, or one line with the file and the way out."""

from __future__ import annotations

import io
import os
import struct
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ifan.data.headers import tiff_numbers, tiff_tags
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


VARIANTS: dict[str, tuple[str, str, dict[str, object]]] = {
    **{kind: (kind, "RGB", {}) for kind in FORMATS},
    "progressive JPEG": ("JPEG", "RGB", {"progressive": True}),
    "JPEG with restarts": ("JPEG", "RGB", {"restart_marker_rows": 1}),
    "JPEG with a comment": ("JPEG", "RGB", {"comment": b"\xff\xc0" + bytes(9)}),
    "lossless WEBP": ("WEBP", "RGB", {"lossless": True}),
    "WEBP with alpha": ("WEBP", "RGBA", {}),
    "large-endian TIFF": ("TIFF", "I;16B", {}),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [(37, 21), (300, 2), (3, 1000), (1, 1)])
def test_the_header_says_the_size(variant: str, size: tuple[int, int]) -> None:
    kind, mode, options = VARIANTS[variant]
    data = encoded(Image.new(mode, size), kind, **options)
    assert check_header(data, "x") == size
    assert read_image(data).shape == (*size[::-1], 3)


def test_old_and_upside_down_bitmaps_are_read() -> None:
    """OS/2's header has sizes of 16 bits; a negative height says that the first row is the upper one."""
    plain = encoded(Image.fromarray(RGB[:40]), "BMP")
    pixels = plain[54:]
    old = b"BM" + struct.pack("<IIIIHHHH", 26 + len(pixels), 0, 26, 12, 64, 40, 1, 24) + pixels
    assert check_header(old, "x") == (64, 40)
    assert difference(read_image(old), RGB[:40]) == 0
    turned = plain[:22] + struct.pack("<i", -40) + plain[26:]
    assert check_header(turned, "x") == (64, 40)
    assert difference(read_image(turned), RGB[39::-1]) == 0


@pytest.mark.parametrize("kind", FORMATS)
def test_cut_short_anywhere_is_refused(kind: str) -> None:
    data = encoded(Image.fromarray(RGB), kind)
    for end in range(0, len(data) - 1, max(1, len(data) // 40)):
        assert error_of(data[:end]).startswith("photo.x: ")


def avif() -> bytes:
    """An AVIF of 48 x 40 pixels; skips where OpenCV does not write it."""
    try:
        done, data = cv2.imencode(".avif", np.ascontiguousarray(RGB[:40, :48, ::-1]))
    except cv2.error:
        done = False
    if not done:
        pytest.skip("this OpenCV has no AVIF")
    return data.tobytes()


def test_avif_is_read_and_its_damage_is_not() -> None:
    data = avif()
    assert check_header(data, "x") == (48, 40)
    assert difference(read_image(data), RGB[:40, :48]) < 8
    for end in range(0, len(data) - 1, len(data) // 40):
        assert error_of(data[:end]).startswith("photo.x: ")
    at = data.index(b"ispe") + 8
    assert "beyond the limit" in error_of(data[:at] + struct.pack(">II", 100_000, 9) + data[at + 8 :])
    assert "cut short or damaged" in error_of(data.replace(b"ipco", b"free"))


def test_heic_is_refused_in_a_line() -> None:
    assert "HEIC is not read here" in error_of(b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(40))
    assert "not a picture" in error_of(b"\0\0\0\x14ftypisom\0\0\0\0mp42" + bytes(40))


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


def with_header(width: int, height: int) -> bytes:
    """A small PNG that says it has so many pixels."""
    plain = encoded(Image.fromarray(RGB), "PNG")
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return plain[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + plain[33:]


@pytest.mark.parametrize("size", [(60_000, 60_000), (20_001, 10), (10, 20_001), (20_000, 20_000), (10_000, 10_001)])
def test_oversized_header_is_refused_before_decoding(size: tuple[int, int]) -> None:
    assert "beyond the limit" in error_of(with_header(*size))


@pytest.mark.parametrize("size", [(20_000, 5_000), (10_000, 10_000), (1, 20_000), (1, 1)])
def test_the_largest_headers_are_taken(size: tuple[int, int]) -> None:
    assert check_header(with_header(*size), "x") == size


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_a_header_without_pixels_is_damaged(size: tuple[int, int]) -> None:
    assert f"the header says {size[0]} x {size[1]} pixels" in error_of(with_header(*size))


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


def test_label_map_has_ids_up_to_255() -> None:
    ids = np.arange(256, dtype=np.uint16).reshape(16, 16)
    for kind in (np.uint8, np.uint16):
        data = cv2.imencode(".png", ids.astype(kind))[1].tobytes()
        assert np.array_equal(read_label_image(data), ids)
    with pytest.raises(ImageError, match=r"m\.png: expected a label map of ids 0\.\.255"):
        read_label_image(cv2.imencode(".png", ids + 1)[1].tobytes(), "m.png")


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


def hidden_size(kind: str) -> bytes:
    """A picture of few bytes whose decoder would find another size than a careless reader of its header."""
    large = {"JPEG": (30_000, 30_000), "TIFF": (30_000, 30_000), "WEBP": (16_384, 16_384), "PNG": (19_000, 19_000)}[
        kind
    ]
    if kind == "JPEG":
        data = encoded(Image.fromarray(RGB), kind)
        frame = data.index(b"\xff\xc0")
        real = data[: frame + 5] + struct.pack(">HH", *large) + data[frame + 9 :]
        # TEM has no length: who takes the next two bytes for one finds a frame of 8 x 8 pixels in the comment.
        comment = b"\xff\xfe" + struct.pack(">H", 21) + b"\xff\xc0" + struct.pack(">HBHH", 17, 8, 8, 8) + bytes(10)
        return real[:2] + b"\xff\x01\0\x06" + comment + real[2:]
    if kind == "TIFF":
        data = encoded(Image.fromarray(RGB), kind)
        (start,) = struct.unpack("<I", data[4:8])
        (count,) = struct.unpack("<H", data[start : start + 2])
        tags = data[start + 2 : start + 2 + 12 * count]
        sizes = [struct.pack("<HHII", 256 + i, 4, 1, side) for i, side in enumerate(large)]
        folder = struct.pack("<H", count + 2) + sizes[0] + tags[:12] + sizes[1] + tags[12:] + bytes(4)
        return data[:4] + struct.pack("<I", len(data)) + data[8:] + folder
    if kind == "WEBP":  # a stream without its chunk, of which nothing tells the size where it is looked for
        bits = (large[0] - 1) | (large[1] - 1) << 14
        stream = b"\x2f" + struct.pack("<I", bits) + bytes(25)
        return b"RIFF" + struct.pack("<I", 4 + len(stream)) + b"WEBP" + stream
    data = encoded(Image.fromarray(RGB), kind)
    chunk = b"IHDR" + struct.pack(">IIBBBBB", *large, 8, 2, 0, 0, 0)
    return data[:33] + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "WEBP", "PNG"])
def test_a_hidden_size_is_refused_before_decoding(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = hidden_size(kind)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("the picture was decoded"))
    assert "cut short or damaged" in error_of(data)


def test_a_decoder_that_finds_another_size_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(RGB), "PNG")
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.zeros((64, 65, 3), np.uint8))
    assert "expected 64 x 64 pixels, as its header says; got 65 x 64" in error_of(data)


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


@pytest.mark.parametrize(("compression", "missed"), [("tiff_lzw", 0.1), ("tiff_adobe_deflate", 0), ("tiff_deflate", 0)])
def test_damaged_pixels_of_a_tiff_are_refused(compression: str, missed: float) -> None:
    """OpenCV alone returns a picture with wrong pixels for each of these. LZW has no checksum: a code in another's
    place, of a string of the same length, is not to be found."""
    smooth = np.repeat(np.arange(64, dtype=np.uint8)[:, None, None], 64, 1).repeat(3, 2)
    data = encoded(Image.fromarray(smooth), "TIFF", compression=compression)
    assert difference(read_image(data), smooth) == 0
    tags = tiff_tags(data)
    start, length = (tiff_numbers(data, tags, tag)[0] for tag in (273, 279))
    wrong = refused = 0
    for at in range(start + 2, start + length - 2):
        bad = flip(data, at)
        wrong += not np.array_equal(cv2.imdecode(np.frombuffer(bad, np.uint8), 1)[..., ::-1], smooth)
        try:
            read_image(bad, "photo.x")
        except ImageError:
            refused += 1
    assert wrong > 50
    assert refused >= (1 - missed) * wrong


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "raw"])
@pytest.mark.parametrize("shape", [(1, 1, 3), (33, 17, 3), (200, 300, 3), (50, 40)])
def test_compressed_tiffs_are_read(compression: str, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    expected = pixels if len(shape) == 3 else np.repeat(pixels[..., None], 3, 2)
    assert difference(read_image(encoded(Image.fromarray(pixels), "TIFF", compression=compression)), expected) == 0
    wide = cv2.imencode(".tiff", expected[..., ::-1].astype(np.uint16) * 257)[1].tobytes()
    assert difference(read_image(wide), expected) == 0


def test_a_png_of_empty_chunks_is_refused_at_once() -> None:
    plain = encoded(Image.fromarray(RGB), "PNG")
    empty = struct.pack(">I", 0) + b"teSt" + struct.pack(">I", zlib.crc32(b"teSt"))
    data = plain[:33] + empty * 2_000_000 + plain[33:]
    began = time.process_time()
    assert "cut short or damaged" in error_of(data)
    assert time.process_time() - began < 1.5
    assert difference(read_image(plain[:33] + empty * 1000 + plain[33:]), RGB) == 0


def test_a_bmp_of_os2_is_read() -> None:
    rows = np.pad(RGB[::-1, :, ::-1].reshape(64, -1), ((0, 0), (0, 0)))
    head = b"BM" + struct.pack("<IHHI", 26 + rows.size, 0, 0, 26) + struct.pack("<IHHHH", 12, 64, 64, 1, 24)
    assert check_header(head + rows.tobytes(), "x") == (64, 64)
    assert difference(read_image(head + rows.tobytes()), RGB) == 0


def test_reading_leaves_the_log_level_of_the_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2.utils.logging, "setLogLevel", lambda *_: pytest.fail("the level was changed"))
    read_image(encoded(Image.fromarray(RGB), "PNG"))
    error_of(encoded(Image.fromarray(RGB), "PNG")[:100])
