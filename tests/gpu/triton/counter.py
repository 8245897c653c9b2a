"""What the interpreter really loads and stores, launch by launch, beside what the cost model says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import triton.runtime.interpreter as interpreter

from tests.gpu.tools import gpu_cost
from tests.gpu.tools.launches import Started, watched


@dataclass(eq=False)
class Counted:
    """Bytes one launch moved: all of them, and the addresses, one a byte-sized element each."""

    launch: Started
    total: dict[str, int] = field(default_factory=lambda: {"load": 0, "store": 0})
    touched: dict[str, list[tuple[int, np.ndarray]]] = field(default_factory=lambda: {"load": [], "store": []})

    def touch(self, kind: str, pointers: Any, mask: Any) -> None:
        """Add one access of the running program."""
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        shape = np.broadcast_shapes(pointers.data.shape, mask.data.shape)
        chosen = np.broadcast_to(mask.data, shape).astype(bool)
        addresses = np.broadcast_to(pointers.data, shape)[chosen].astype(np.int64).ravel()
        self.total[kind] += size * addresses.size
        self.touched[kind].append((size, np.unique(addresses)))

    def distinct(self, kind: str) -> int:
        """Bytes loaded or stored by any program, each counted once."""
        total = 0
        for size in {size for size, _ in self.touched[kind]}:
            parts = [addresses for each, addresses in self.touched[kind] if each == size]
            total += size * np.unique(np.concatenate(parts)).size
        return total

    @property
    def moved(self) -> dict[str, int]:
        """As the cost model names them."""
        return {
            "loaded": self.total["load"],
            "stored": self.total["store"],
            "read": self.distinct("load"),
            "written": self.distinct("store"),
        }

    @property
    def predicted(self) -> dict[str, int]:
        """The same four by the cost model."""
        cost = gpu_cost.cost(self.launch)
        return {name: getattr(cost, name) for name in ("loaded", "stored", "read", "written")}


@contextlib.contextmanager
def counted() -> Iterator[list[Counted]]:
    """Collect the launches inside the block, counted while they run."""
    found: list[Counted] = []
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def counted_load(self: Any, pointers: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        found[-1].touch("load", pointers, mask)
        return load(self, pointers, mask, *rest, **options)

    def counted_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        found[-1].touch("store", pointers, mask)
        return store(self, pointers, value, mask, *rest, **options)

    builder.create_masked_load, builder.create_masked_store = counted_load, counted_store
    try:
        with watched(lambda launch: found.append(Counted(launch)), run=True):
            yield found
    finally:
        builder.create_masked_load, builder.create_masked_store = load, store
