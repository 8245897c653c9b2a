"""Tile sizes and warps of the kernels, one row a GPU family. Chosen by what the compiler makes of them, not timed."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache

import torch

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Config:
    """``elements``: values a program of a pointwise kernel covers; the rest: the tile of a convolution."""

    elements: int
    warps: int
    pixels: int
    outputs: int
    depth: int
    stages: int


# Larger tiles of convolutions spill on sm_100 (float32, mixed layouts) and on gfx942.
CONFIGS = {
    "sm_80": Config(elements=2048, warps=4, pixels=64, outputs=64, depth=32, stages=3),
    "sm_90": Config(elements=2048, warps=4, pixels=64, outputs=64, depth=32, stages=3),
    "sm_100": Config(elements=2048, warps=4, pixels=32, outputs=64, depth=16, stages=3),
    "gfx942": Config(elements=2048, warps=4, pixels=64, outputs=64, depth=16, stages=2),
}
DEFAULT = "sm_80"


def config_of(device: torch.device) -> Config:
    """The configuration of the family ``device`` belongs to; the smallest tiles, and a log line, for an unknown one."""
    return CONFIGS[_known(family_of(device))]


def family_of(device: torch.device) -> str:
    """``sm_80`` for compute capability 8.x and so on, ``gfx942`` for AMD, ``cpu`` for the interpreter."""
    if device.type != "cuda":
        return device.type
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}0"


@lru_cache(maxsize=16)
def _known(family: str) -> str:
    if family in CONFIGS:
        return family
    _log.info("no kernel configuration for %s: using that of %s", family, DEFAULT)
    return DEFAULT
