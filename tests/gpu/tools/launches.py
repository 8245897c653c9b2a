"""What the operations start on a GPU: each launch of a Triton kernel, noted beside or in place of its start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Started:
    """One launch, as `ifan.kernels.launch.start` is told of it."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def values(self) -> dict[str, Any]:
        """Arguments and constants by name."""
        return dict(zip(self.kernel.arg_names, self.arguments, strict=False)) | self.options

    @property
    def name(self) -> str:
        """File and kernel, as the formulas are named: ``integrate.forward_kernel``."""
        return f"{self.kernel.fn.__module__.rsplit('.', 1)[1]}.{self.kernel.__name__}"


@contextmanager
def watched(before: Callable[[Started], None], run: bool = False, family: str | None = None) -> Iterator[None]:
    """Call ``before`` with every launch inside the block; without ``run``, in place of the launch.

    Tiles are those of ``family``, where it is given, whatever the device.
    """
    import ifan.kernels.configs as configs
    import ifan.kernels.launch as module

    original, family_of = module.start, configs.family_of

    def start(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        before(Started(kernel, grid, arguments, options))
        if run:
            original(kernel, grid, arguments, options)

    module.start = start
    if family is not None:
        configs.family_of = lambda _device: family
    try:
        yield
    finally:
        module.start, configs.family_of = original, family_of
