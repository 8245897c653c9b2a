"""Argument checks shared by the operations: ``ValueError`` with what was expected, what came and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor


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


def sources_of(
    op: str,
    sources: Sequence[Tensor],
    lanes: int | None,
    rows: Tensor | None,
    per_sample: Sequence[bool] | None,
) -> tuple[int, int, list[bool]]:
    """Check the sources of a concatenation; returns ``(N, C, per_sample as a list)``.

    ``lanes`` is N where the segments give it; otherwise it is taken from ``rows`` or from the first source.
    """
    require(len(sources) > 0, op, "sources must hold at least one tensor; got none. Pass the tensors to concatenate.")
    flags = [False] * len(sources) if per_sample is None else list(per_sample)
    if len(flags) != len(sources):
        fail(op, f"per_sample must have one entry a source, {len(sources)}; got {len(flags)}. Add or drop entries.")
    first = sources[0]
    for index, source in enumerate(sources):
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
    if lanes is None:
        by_lane = [source.shape[0] for source, flag in zip(sources, flags, strict=True) if not flag]
        lanes = by_lane[0] if by_lane else (0 if rows is None else rows.shape[0])
    _check_rows(op, sources, lanes, rows, flags)
    return lanes, sum(source.shape[1] for source in sources), flags


def _check_rows(op: str, sources: Sequence[Tensor], lanes: int, rows: Tensor | None, flags: list[bool]) -> None:
    require(
        rows is not None or not any(flags), op, "per_sample sources need rows (N,); got None. Pass each lane's sample."
    )
    if rows is not None and any(flags):
        if rows.dtype != torch.int64:
            fail(op, f"rows must be int64; got {rows.dtype}. Convert it with .long().")
        shape(op, "rows", rows, (lanes,), "(N,)")
        on_device(op, sources[0].device, rows=rows)
    for index, (source, flag) in enumerate(zip(sources, flags, strict=True)):
        if not flag and source.shape[0] != lanes:
            fail(
                op,
                f"sources[{index}] must have N = {lanes} rows, one a lane; got {source.shape[0]}. "
                "Mark it in per_sample and pass rows if it has one a sample.",
            )
        if flag and rows is not None:
            index_range(op, "rows", rows, 0, source.shape[0] - 1)


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


def promoted(tensors: Sequence[Tensor]) -> torch.dtype:
    """The dtype of the tensors' concatenation."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def class_sizes(op: str, sizes: Sequence[int], class_logits: Tensor) -> None:
    """``class_logits (B, sum(sizes))`` hold the classes of each classification, of which each has at least one."""
    for size in sizes:
        if size < 1:
            fail(op, f"class_sizes must be at least 1 each; got {list(sizes)}. Leave out classifications of no class.")
    shape(op, "class_logits", class_logits, (class_logits.shape[0], sum(sizes)), "(B, sum(class_sizes))")
