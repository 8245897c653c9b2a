"""A network's weights as the native kernels read them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from ifan.config import EPSILON
from ifan.engine.arena import address, zeros
from ifan.native import cpu_module, kernels_in_use
from ifan.weights import SavedModel
from ifan.weights.folding import folded

_BLOCK = 1 << 24
"""Floats of memory that filters share; what is not used costs addresses only."""

Make = Callable[[], np.ndarray]


class PackedWeights:
    """A model's weights, without what only training needs, repacked once for each instruction set."""

    def __init__(self, model: SavedModel, bf16: bool) -> None:
        self.model, self.bf16 = folded(model), bf16
        self.config = self.model.config
        self._kept: dict[Any, Any] = {}
        self._free = np.empty(0, np.float32)
        self._lock = threading.RLock()  # constants are made with packed weights

    def __getitem__(self, name: str) -> np.ndarray:
        return self.model.tensors[name]

    def keep(self, key: Any, make: Callable[[], Any]) -> Any:
        """``make()``, once for ``key`` and the instruction set in use."""
        key = (kernels_in_use(), key)
        with self._lock:  # what one plan has the address of must not be made again for another
            if key not in self._kept:
                self._kept[key] = make()
            return self._kept[key]

    def _memory(self, floats: int) -> np.ndarray:
        """Memory for filters; those of one layer lie behind those of another."""
        if self._free.size < floats:
            self._free = zeros(max(floats, _BLOCK))
        taken, self._free = self._free[:floats], self._free[-(-floats // 16) * 16 :]  # each begins with a line
        return taken

    def address(self, key: Any, make: Make) -> int:
        """Address of ``make()`` in float32."""
        return address(cast(np.ndarray, self.keep(key, lambda: np.ascontiguousarray(make(), np.float32))))

    def filters(self, key: Any, shape: tuple[int, int, int], bf16: bool, make: Make) -> int:
        """Address of a 3x3 convolution's weight as `Plan.convolution` reads it; ``shape``: outputs, inputs, side."""
        outputs, inputs, side = shape
        small = cpu_module().fits_small_maps(side, side) and not (bf16 and cpu_module().features()["tiles"])

        def pack() -> np.ndarray:
            module, whole = cpu_module(), np.ascontiguousarray(make())
            if small:
                packed = self._memory(module.packed_small_filters(outputs, inputs))
                module.pack_small_filters(address(whole), outputs, inputs, address(packed))
            elif bf16:
                packed = self._memory(module.packed_filters_bf16(outputs, inputs))
                module.pack_filters_bf16(address(whole), outputs, inputs, address(packed))
            else:
                packed = self._memory(module.packed_filters(outputs, inputs, isa := module.isa()))
                module.pack_filters([(address(whole), outputs, inputs, 0)], False, address(packed), isa, 1)
            return packed

        return self.address((key, small, bf16), pack)

    def taps(self, key: Any, bf16: bool, make: Make) -> int:
        """Address of a weight ``(O, C)`` or ``(O, C, k, k)`` as `Plan.direct` reads it."""

        def pack() -> np.ndarray:
            module, whole = cpu_module(), np.ascontiguousarray(make())
            outputs, channels = whole.shape[:2]
            products = whole.size // outputs
            if bf16:
                packed = self._memory(module.packed_taps_bf16(outputs, channels, products // channels))
                module.pack_taps_bf16(address(whole), outputs, channels, products // channels, address(packed))
            else:
                packed = self._memory(module.packed_taps(outputs, products))
                module.pack_taps(address(whole), outputs, products, address(packed))
            return packed

        return self.address((key, "taps", bf16), pack)

    def norm(self, name: str, rows: Sequence[int], later: bool) -> tuple[int, int]:
        """Addresses of scale and shift of these of a norm's tasks, in the first or a later iteration."""
        kind = self.config.iteration_norm
        own = later and kind != "shared"
        affine = "later_" if own and kind == "separate" else ""
        statistics = "later" if own else "running"
        names = [f"{affine}weight", f"{affine}bias", f"{statistics}_mean", f"{statistics}_var"]

        def make() -> np.ndarray:
            values = [np.ascontiguousarray(self[f"{name}.{part}"][list(rows)]) for part in names]
            tasks, channels = values[0].shape
            out = np.empty((2, tasks, channels), np.float32)
            fields = [(address(value), channels) for value in values]
            cpu_module().normalisation(fields, tasks, channels, EPSILON, address(out))
            return out

        scale, shift = self.keep((name, tuple(rows), own), make)
        return address(scale), address(shift)
