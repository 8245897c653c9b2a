"""Argument checks shared by the operations: ``ValueError`` with what was expected, what came and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from ifan.concat import Concat, Norm


def fail(op: str, message: str) -> NoReturn:
    """Raise ``ValueError(f"{op}: {message}")``. For messages that take time to write: every call of an operation is
    checked, and in small ones that shows."""
    raise ValueError(f"{op}: {message}")


def require(condition: bool, op: str, message: str) -> None:
    """Raise ``ValueError(f"{op}: {message}")`` unless ``condition``."""
    if not condition:
        fail(op, message)


def floating(op: str, device: torch.device, **tensors: Tensor) -> None:
    """Every tensor is floating point and lies on ``device``."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            fail(op, f"{name} must be floating point; got {tensor.dtype}. Convert it with .float().")
        if tensor.device != device:
            on_device(op, device, **{name: tensor})


def on_device(op: str, device: torch.device, **tensors: Tensor) -> None:
    """Every tensor lies on ``device``."""
    for name, tensor in tensors.items():
        if tensor.device != device:
            fail(op, f"{name} must be on {device} like the first input; got {tensor.device}. Move it.")


def shape(op: str, name: str, tensor: Tensor, expected: tuple[int, ...], meaning: str) -> None:
    """``tensor`` has exactly the shape ``expected``, which stands for ``meaning``, for instance ``(T, C)``."""
    if tensor.shape != expected:
        fail(op, f"{name} must be {meaning} = {expected}; got {tuple(tensor.shape)}. Pass that shape.")


def dimensions(op: str, name: str, tensor: Tensor, meaning: str) -> None:
    """``tensor`` has as many dimensions as ``meaning`` names."""
    count = meaning.count(",") + 1
    if tensor.dim() != count:
        fail(op, f"{name} must be {meaning}; got shape {tuple(tensor.shape)}. Pass {count} dimensions.")


def segments_of(op: str, segments: Sequence[int], lanes: int) -> list[int]:
    """``segments`` as a list: at least one task, no negative count, summing to the number of lanes."""
    counts = list(segments)
    if not counts or min(counts) < 0 or sum(counts) != lanes:
        raise ValueError(
            f"{op}: segments must be the lanes of each task, none negative, summing to N = {lanes}; got {counts}. "
            "Group the lanes by task and count them."
        )
    return counts


def concat(op: str, x: Concat) -> None:
    """The sources share a picture's size and a device, have the rows that the lanes read, and there is a task."""
    require(len(x.sources) > 0, op, "sources must hold at least one tensor; got none. Pass the tensors to concatenate.")
    require(len(x.lanes.segments) > 0, op, "segments must hold at least one task; got none. Count each task's lanes.")
    first, lanes = x.sources[0].tensor, x.lanes.rows.shape[0]
    for index, source in enumerate(x.tensors):
        name = f"sources[{index}]"
        dimensions(op, name, source, "(N, C, H, W)")
        floating(op, first.device, **{name: source})
        if source.shape[2:] != first.shape[2:]:
            fail(
                op,
                f"sources must share (H, W); got {tuple(first.shape[2:])} and {tuple(source.shape[2:])} at {name}. "
                "Resize it or leave it out.",
            )
    if min(first.shape[2:]) == 0:
        fail(op, f"sources must have H and W of at least 1; got {tuple(first.shape)}. Drop them.")
    flags = x.per_sample
    if any(flags):
        _rows(op, x)
    for index, (source, flag) in enumerate(zip(x.tensors, flags, strict=True)):
        if not flag and source.shape[0] != lanes:
            fail(
                op,
                f"sources[{index}] must have N = {lanes} rows, one a lane; got {source.shape[0]}. "
                "Mark it per_sample if it has one a sample.",
            )
        if flag:
            index_range(op, "rows", x.lanes.rows, 0, source.shape[0] - 1)


def _rows(op: str, x: Concat) -> None:
    rows = x.lanes.rows
    if rows.dtype != torch.int64:
        fail(op, f"rows must be int64; got {rows.dtype}. Convert it with .long().")
    on_device(op, x.sources[0].tensor.device, rows=rows)


def norm(op: str, name: str, norm: Norm, x: Concat, channels: int) -> None:
    """The norm's tensors are floating point ``(T, channels)`` on the device of ``x``."""
    values = {"weight": norm.weight, "bias": norm.bias, "mean": norm.mean, "var": norm.var}
    for kind, value in values.items():
        if value is not None:
            shape(op, f"{name}.{kind}", value, (len(x.lanes.segments), channels), "(T, C)")
            floating(op, x.sources[0].tensor.device, **{f"{name}.{kind}": value})


def index_range(op: str, name: str, values: Tensor, low: int, high: int, also: int | None = None) -> None:
    """Every value lies in ``low..high`` or equals ``also``. CPU tensors in eager mode only: elsewhere it would
    synchronise."""
    if torch.compiler.is_compiling() or values.device.type != "cpu" or values.numel() == 0:
        return
    if values.dtype == torch.uint8 and (low, also) == (0, 255) and int((values + 1).max()) <= high + 1:
        return  # 255 + 1 is 0: one pass for what is large and right nearly always
    outside = (values < low) | (values > high)
    if also is not None:
        outside &= values != also
    if bool(outside.any()):
        extra = "" if also is None else f" or {also}"
        worst = int(values[outside][0])
        raise ValueError(f"{op}: {name} must be in {low}..{high}{extra}; got {worst}. Correct the labels or the sizes.")


def class_sizes(op: str, sizes: Sequence[int], class_logits: Tensor) -> None:
    """``class_logits (B, sum(sizes))`` hold the classes of each classification, of which each has at least one."""
    for size in sizes:
        if size < 1:
            fail(op, f"class_sizes must be at least 1 each; got {list(sizes)}. Leave out classifications of no class.")
    shape(op, "class_logits", class_logits, (class_logits.shape[0], sum(sizes)), "(B, sum(class_sizes))")


def same_shapes(op: str, name: str, tensors: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> None:
    """The tensors are floating point and have these shapes."""
    if len(tensors) != len(shapes):
        fail(op, f"{name} must hold {len(shapes)} tensors; got {len(tensors)}. Pass what forward returned.")
    for index, (value, expected) in enumerate(zip(tensors, shapes, strict=True)):
        shape(op, f"{name}[{index}]", value, expected, "what forward returned")
        floating(op, tensors[0].device, **{f"{name}[{index}]": value})


def firsts(op: str, firsts: Sequence[int], x: Concat) -> None:
    """``firsts`` name, for each source, itself or one before it that is read alike."""
    for index, first in enumerate(firsts):
        if not 0 <= first <= index or firsts[first] != first:
            fail(
                op, f"first occurrences must be those of the sources; got {list(firsts)}. Pass each source's own place."
            )
        if x.tensors[first].shape != x.tensors[index].shape or x.per_sample[first] != x.per_sample[index]:
            fail(op, f"sources {first} and {index} must be read alike to share a gradient. Pass each its own place.")
