"""Start of every kernel, and the tiles that cover a tensor."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from .configs import config_of

MOST_BESIDE = 65_535
"""Programs that a GPU takes along the second and the third axis of a grid; 2^31 - 1 along the first."""


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, fuse: bool = True, **options: Any) -> None:
    """Start ``kernel`` on its tensors' device; nothing for an empty grid, which a GPU would refuse.

    ``fuse`` lets the compiler join a multiplication and an addition; stated because Triton's default changes in 3.10.
    Raises `ValueError` for a grid that no GPU takes.
    """
    if max(grid[1:], default=0) > MOST_BESIDE:
        raise ValueError(
            f"{kernel.__name__}: expected at most {MOST_BESIDE} programs along each axis of the grid but the first; "
            f"got {grid}. Use a smaller batch or smaller maps, or backend='reference'."
        )
    if 0 not in grid:
        start(kernel, grid, arguments, {**options, "enable_fp_fusion": fuse})


def start(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    """The launch itself."""
    with torch.cuda.device_of(next(a for a in arguments if isinstance(a, Tensor))):
        kernel[grid](*arguments, **options)


def interpreted() -> bool:
    """True if kernels run as Python on the CPU (``TRITON_INTERPRET=1`` before Triton's import)."""
    return bool(triton.knobs.runtime.interpret)


def tile(x: Tensor, pixels: int) -> dict[str, Any]:
    """Channels and pixels a program covers: along pixels, or along channels where those lie side by side in memory."""
    config = config_of(x.device)
    elements = config.elements if x.shape[3] % 16 == 0 else config.elements // 2  # odd rows cost an address a value
    channels = triton.next_power_of_2(max(x.shape[1], 1))
    across = triton.next_power_of_2(max(pixels, 16))
    if x.stride(1) == 1 and x.stride(3) != 1:
        wide = min(channels, 64)
        return {"CHANNELS": wide, "PIXELS": min(across, elements // wide), "num_warps": config.warps}
    across = min(across, elements)
    return {"CHANNELS": min(channels, elements // across), "PIXELS": across, "num_warps": config.warps}


def whole_tile(x: Tensor, pixels: int, share: int = 1) -> dict[str, Any]:
    """A tile that holds every channel of its pixels; ``share`` divides it for kernels that keep much at hand.

    It has 16 pixels at least; where many channels make it more than twice as large as asked, more warps share it.
    """
    config = config_of(x.device)
    channels = triton.next_power_of_2(max(x.shape[1], 1))
    asked = config.elements // share
    across = min(max(asked // channels, 16), triton.next_power_of_2(max(pixels, 16)))
    larger = min(max(channels * across // (2 * asked), 1), 4)
    return {"CHANNELS": channels, "PIXELS": across, "num_warps": config.warps * larger}


def whole_grid(batch: int, pixels: int, tiles: dict[str, Any]) -> tuple[int, int]:
    """For such tiles: one program a tile of pixels, of which there may be many, times one an image."""
    return triton.cdiv(pixels, tiles["PIXELS"]), batch


def grid_of(lanes: int, channels: int, pixels: int, tiles: dict[str, Any]) -> tuple[int, int]:
    """One program a lane and tile of channels, times one a tile of pixels."""
    return lanes * triton.cdiv(channels, tiles["CHANNELS"]), triton.cdiv(pixels, tiles["PIXELS"])
