"""Safetensors files from anywhere: the header is checked against what is expected before a tensor is allocated."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
"""Name and bytes of a value by the name in a file."""

MAX_HEADER = 8 << 20
"""Largest header read, in bytes; a network of this package needs about 0.1 MB."""

Spec = tuple[str, tuple[int, ...]]
"""Name of a dtype and shape."""


class CheckpointError(ValueError):
    """A file of weights or training state that is damaged, hostile, or of another network."""


def read_header(path: Path) -> dict[str, Spec]:
    """Names, dtypes and shapes of a safetensors file; reads the header only.

    Raises `CheckpointError` unless the header is small, well formed, and describes exactly the bytes the file holds.
    """
    return {name: spec for name, (_, _, spec) in _entries(path).items()}


def check_header(path: Path, expected: Mapping[str, Spec], what: str) -> None:
    """Compare the header of ``path`` with what is expected; `CheckpointError` names the first difference."""
    _compare(path, read_header(path), expected, what)


def load_floats(path: Path, shapes: Mapping[str, tuple[int, ...]], what: str) -> dict[str, np.ndarray]:
    """Arrays of ``path`` as float32, whatever floating dtype is stored, after a check that they have these names and
    ``shapes``. Raises `CheckpointError` as `read_header` and `check_header` do."""
    entries = _entries(path)
    found = {name: spec for name, (_, _, spec) in entries.items()}
    stored = {name: dtype if "float" in dtype else "float32" for name, (dtype, _) in found.items()}
    _compare(path, found, {name: (stored.get(name, "float32"), shape) for name, shape in shapes.items()}, what)
    try:
        content = np.fromfile(path, np.uint8)
        start = 8 + int.from_bytes(content[:8].tobytes(), "little")
        return {name: _floats(content[start + i : start + j], spec) for name, (i, j, spec) in entries.items()}
    except (ValueError, OSError) as error:  # changed meanwhile
        raise _damaged(path, " ".join(str(error).split())) from error


def load_checked(path: Path, expected: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """PyTorch tensors of ``path`` on the CPU, after `check_header` against ``expected`` ones."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_header(path, specs_of(expected), what)
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise _damaged(path, " ".join(str(error).split())) from error


def specs_of(tensors: Mapping[str, Tensor]) -> dict[str, Spec]:
    """Dtype's name and shape of PyTorch tensors."""
    return {name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for name, tensor in tensors.items()}


def _compare(path: Path, found: Mapping[str, Spec], expected: Mapping[str, Spec], what: str) -> None:
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        first = f"{missing[0]!r} is missing" if missing else f"{extra[0]!r} is not part of it"
        raise CheckpointError(
            f"{path}: does not fit {what}: {first} ({len(missing)} missing, {len(extra)} unknown tensors);"
            " use the configuration it was written with"
        )
    for name, (dtype, shape) in expected.items():
        if found[name] != (dtype, shape):
            raise CheckpointError(
                f"{path}: does not fit {what}: {name!r} should be {shape} {dtype}; got {found[name][1]} "
                f"{found[name][0]}; use the configuration it was written with"
            )


def _floats(content: np.ndarray, spec: Spec) -> np.ndarray:
    dtype, shape = spec
    if dtype == "bfloat16":  # numpy lacks it
        return (content.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return content.view(np.dtype(dtype).newbyteorder("<")).reshape(shape).astype(np.float32)


def _entries(path: Path) -> dict[str, tuple[int, int, Spec]]:
    """(begin, end, (dtype, shape)) of each tensor; begin and end count from the header's end."""
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
    return entries


def _entry(path: Path, name: str, entry: Any) -> tuple[int, int, Spec]:
    """(begin, end, (dtype, shape)) of one header entry."""
    known = DTYPES.get(str(entry.get("dtype"))) if isinstance(entry, dict) else None
    if known is None:
        raise _damaged(path, f"entry {name[:60]!r} has no known dtype")
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not (_sizes(shape) and len(shape) <= 8 and _sizes(offsets) and len(offsets) == 2):
        raise _damaged(path, f"entry {name[:60]!r} has no sound shape and offsets")
    dtype, size = known
    if offsets[1] - offsets[0] != math.prod(shape) * size:
        raise _damaged(path, f"entry {name[:60]!r} does not fill its bytes")
    return offsets[0], offsets[1], (dtype, tuple(shape))


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 48 for v in value)


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path}: not a sound safetensors file ({why}); copy it again or use another one")
