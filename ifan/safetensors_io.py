"""Safetensors files from anywhere: the header is checked against what is expected before a tensor is allocated."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
MAX_HEADER = 8 << 20
"""Largest header read, in bytes; a network of this package needs about 0.1 MB."""

Spec = tuple[torch.dtype, tuple[int, ...]]


class CheckpointError(ValueError):
    """A file of weights or training state that is damaged, hostile, or of another network."""


def read_header(path: Path) -> dict[str, Spec]:
    """Names, dtypes and shapes of a safetensors file; reads the header only.

    Raises `CheckpointError` unless the header is small, well formed, and describes exactly the bytes the file holds.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, MAX_HEADER):
                raise _damaged(path, f"header of {length} bytes in a file of {size}")
            tree = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read the weights ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise _damaged(path, "header is not JSON") from error
    if not isinstance(tree, dict):
        raise _damaged(path, "header is not a JSON object")
    tree.pop("__metadata__", None)
    entries = {name: _entry(path, name, entry) for name, entry in tree.items()}
    end = 0
    for begin, stop, _ in sorted(entries.values(), key=lambda e: e[:2]):
        if begin != end:
            raise _damaged(path, f"tensors overlap or leave a gap at byte {end}")
        end = stop
    if end != size - 8 - length:
        raise _damaged(path, f"header describes {end} bytes of tensors; the file holds {size - 8 - length}")
    return {name: spec for name, (_, _, spec) in entries.items()}


def check_header(path: Path, expected: Mapping[str, Tensor], what: str) -> None:
    """Compare the header of ``path`` with ``expected`` tensors; `CheckpointError` names the first difference."""
    found = read_header(path)
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        first = f"{missing[0]!r} is missing" if missing else f"{extra[0]!r} is not part of it"
        raise CheckpointError(
            f"{path}: does not fit {what}: {first} ({len(missing)} missing, {len(extra)} unknown tensors);"
            " use the configuration it was written with"
        )
    for name, tensor in expected.items():
        if found[name] != (tensor.dtype, tuple(tensor.shape)):
            dtype, shape = found[name]
            raise CheckpointError(
                f"{path}: does not fit {what}: {name!r} should be {tuple(tensor.shape)} {tensor.dtype};"
                f" got {shape} {dtype}; use the configuration it was written with"
            )


def load_checked(path: Path, expected: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Tensors of ``path`` on the CPU, after `check_header` against ``expected``."""
    check_header(path, expected, what)
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise _damaged(path, " ".join(str(error).split())) from error


def _entry(path: Path, name: str, entry: Any) -> tuple[int, int, Spec]:
    """(begin, end, (dtype, shape)) of one header entry."""
    dtype = DTYPES.get(str(entry.get("dtype"))) if isinstance(entry, dict) else None
    if dtype is None:
        raise _damaged(path, f"entry {name[:60]!r} has no known dtype")
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not (_sizes(shape) and len(shape) <= 8 and _sizes(offsets) and len(offsets) == 2):
        raise _damaged(path, f"entry {name[:60]!r} has no sound shape and offsets")
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise _damaged(path, f"entry {name[:60]!r} does not fill its bytes")
    return offsets[0], offsets[1], (dtype, tuple(shape))


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 48 for v in value)


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path}: not a sound safetensors file ({why}); copy it again or use another one")
