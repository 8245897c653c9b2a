import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ifan.safetensors_io import CheckpointError, load_checked, load_floats, read_header

EXPECTED = {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.int64)}


def write(path: Path, header: object, body: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_sound_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {"a": torch.randn(2, 3), "b": torch.arange(4)}
    save_file(tensors, path, metadata={"format": "pt"})
    assert read_header(path) == {"a": ("float32", (2, 3)), "b": ("int64", (4,))}
    loaded = load_checked(path, EXPECTED, "this network")
    assert all(torch.equal(loaded[k], v) for k, v in tensors.items())


def test_tensors_of_every_dtype(tmp_path: Path) -> None:
    kinds = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool")
    tensors = {kind: torch.ones(3, 2).to(getattr(torch, kind)) for kind in kinds}
    save_file(tensors, tmp_path / "x.safetensors")
    assert read_header(tmp_path / "x.safetensors") == {kind: (kind, (3, 2)) for kind in kinds}
    loaded = load_checked(tmp_path / "x.safetensors", tensors, "this network")
    assert all(torch.equal(loaded[kind], tensors[kind]) for kind in kinds)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_arrays_of_every_floating_dtype_are_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {
        "odd": torch.rand(3).to(dtype),
        "x": (10 * torch.randn(2, 5)).to(dtype),
        "none": torch.zeros(0, 2).to(dtype),
    }
    save_file(tensors, path)
    found = load_floats(path, {name: tuple(value.shape) for name, value in tensors.items()}, "this network")
    for name, value in found.items():
        assert np.array_equal(value, tensors[name].float().numpy())
        assert value.dtype == np.float32
        assert value.flags.writeable


def test_integers_are_no_weights(tmp_path: Path) -> None:
    save_file({"a": torch.arange(3)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"'a' should be \(3,\) float32; got \(3,\) int64"):
        load_floats(tmp_path / "x.safetensors", {"a": (3,)}, "this network")


HOSTILE = {
    "empty file": (b"", b"", 0),
    "header longer than the file": ({}, b"", 1 << 40),
    "negative as unsigned": ({}, b"", (1 << 64) - 1),
    "not JSON": (b"{{{{", b"", None),
    "not UTF-8": (b"\xff\xfe\xff\xfe", b"", None),
    "deep nesting": (b"[" * 100_000, b"", None),
    "not an object": ([1, 2], b"", None),
    "entry not an object": ({"a": 5}, b"", None),
    "unknown dtype": ({"a": entry(dtype="F31")}, b"12345678", None),
    "dtype not a string": ({"a": entry(dtype=["F32"])}, b"12345678", None),
    "negative size": ({"a": entry(shape=[-2, -1])}, b"12345678", None),
    "huge size": ({"a": entry(shape=[1 << 62])}, b"12345678", None),
    "product overflows": ({"a": entry(shape=[1 << 40, 1 << 40])}, b"12345678", None),
    "size is a float": ({"a": entry(shape=[2.0])}, b"12345678", None),
    "size is a bool": ({"a": entry(shape=[True, 2])}, b"12345678", None),
    "offsets swapped": ({"a": entry(offsets=[8, 0])}, b"12345678", None),
    "offsets beyond the file": ({"a": entry(offsets=[8, 16])}, b"12345678", None),
    "overlap": ({"a": entry(), "b": entry()}, b"12345678", None),
    "gap": ({"a": entry(), "b": entry(offsets=[12, 20])}, b"1234567890" * 2, None),
    "bytes left over": ({"a": entry()}, b"1234567890", None),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_header_is_refused(tmp_path: Path, case: str) -> None:
    header, body, length = HOSTILE[case]
    path = write(tmp_path / "x.safetensors", header, body, length)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"x\.safetensors: not a sound safetensors file"):
        read_header(path)


def test_header_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 3 << 30))
        file.truncate(4 << 30)  # sparse
    with pytest.raises(CheckpointError, match="header of 3221225472 bytes"):
        read_header(path)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"a": torch.zeros(2, 3)}, "'b' is missing"),
        ({**EXPECTED, "c": torch.zeros(1)}, "'c' is not part of it"),
        ({**EXPECTED, "a": torch.zeros(3, 2)}, r"'a' should be \(2, 3\) float32; got \(3, 2\)"),
        ({**EXPECTED, "b": torch.zeros(4)}, r"'b' should be \(4,\) int64; got \(4,\) float32"),
    ],
)
def test_file_of_another_network(tmp_path: Path, tensors: dict[str, torch.Tensor], said: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=said) as caught:
        load_checked(path, EXPECTED, "this network")
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="check the path"):
        read_header(tmp_path / "x.safetensors")
