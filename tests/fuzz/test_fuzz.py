"""Damaged pictures and configurations by the thousand: each is read, or one line says why not.

``make fuzz`` runs it longer; ``IFAN_FUZZ_CASES`` and ``IFAN_FUZZ_SEED`` say how many and which. Findings become tests;
small files that show them become seeds.
"""

from __future__ import annotations

import io
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from ifan.config import Config, dump_config, from_dict, parse_yaml
from ifan.data.images import ImageError, check_header, read_image
from tests.support.damage import CASES, SEED, chance_of, damaged, seeds

KINDS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")


def sealed(png: bytes) -> bytes:
    """``png`` with right checksums, as far as its chunks can be followed: else all damage is found by them."""
    out, at = bytearray(png), 8
    while at + 12 <= len(out):
        end = at + 8 + int.from_bytes(out[at : at + 4], "big")
        if end + 4 > len(out):
            break
        out[end : end + 4] = zlib.crc32(out[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(out)


@pytest.mark.parametrize("kind", KINDS)
def test_header_and_decoder_agree(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is decoded to another size than the one that was checked."""
    chance, buffer = chance_of(kind), io.BytesIO()
    Image.fromarray(np.random.default_rng(SEED).integers(0, 255, (24, 40, 3), np.uint8)).save(buffer, kind)
    begun = [buffer.getvalue()] * 3 + [data for name, data in seeds("").items() if name.endswith(kind.lower())]
    sizes, said, decode = [], [], cv2.imdecode

    def noted(data: np.ndarray, flags: int) -> np.ndarray | None:
        if sizes[-1][0] * sizes[-1][1] > 10**6:  # allowed, but this machine has better things to do
            return None
        image = decode(data, flags)
        assert image is None or sorted(image.shape[:2]) == sorted(sizes[-1])
        return image

    monkeypatch.setattr(cv2, "imdecode", noted)
    for _ in range(CASES):
        data = damaged(chance.choice(begun), chance)
        data = sealed(data) if kind == "PNG" else data
        try:
            sizes.append(check_header(data, "photo"))
            read_image(data, "photo")
        except ImageError as error:
            said.append(str(error))
    assert all(line.startswith("photo: ") and "\n" not in line for line in said)
    assert sizes
    assert said


def test_damaged_configurations() -> None:
    chance, text = chance_of("configuration"), dump_config(Config()).encode()
    said = []
    for _ in range(CASES):
        try:
            from_dict(Config, parse_yaml(damaged(text, chance).decode("utf-8", "replace")))
        except ValueError as error:
            said.append(str(error))
    assert said
    assert max(len(line) for line in said) < 2000
