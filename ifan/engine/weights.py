"""The network's weights as the native kernels read them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ifan.concat import Norm
from ifan.engine.arena import zeros
from ifan.layers import TaskNorm
from ifan.network import IFAN
from ifan.ops.backends.cpu.arguments import NormFields
from ifan.ops.native import cpu_module, kernels_in_use

_BLOCK = 1 << 24
"""Floats of memory that filters share; what is not used costs addresses only."""


class PackedWeights:
    """The network's weights as the kernels read them, repacked once for each instruction set."""

    def __init__(self, network: IFAN, bf16: bool) -> None:
        self.network, self.config, self.bf16 = network, network.config, bf16
        self._kept: dict[Any, Any] = {}
        self._free = torch.empty(0)
        self._lock = threading.Lock()

    def keep(self, key: Any, make: Callable[[], Any]) -> Any:
        key = (kernels_in_use(), key)
        with self._lock:  # what one plan has the address of must not be made again for another
            if key not in self._kept:
                with torch.no_grad():
                    self._kept[key] = make()
            return self._kept[key]

    def _memory(self, floats: int) -> Tensor:
        """Memory for filters; those of one layer lie behind those of another."""
        if self._free.numel() < floats:
            self._free = zeros(max(floats, _BLOCK))
        taken, self._free = self._free[:floats], self._free[-(-floats // 16) * 16 :]  # each begins with a line
        return taken

    def address(self, key: Any, make: Callable[[], Tensor]) -> int:
        return cast(Tensor, self.keep(key, lambda: make().detach().float().contiguous())).data_ptr()

    def filters(self, key: Any, weight: Tensor, side: int) -> int:
        """A 3x3 convolution's weight as `Plan.convolution` reads it for maps of that side."""
        small = cpu_module().fits_small_maps(side, side) and not (self.bf16 and cpu_module().features()["tiles"])

        def pack() -> Tensor:
            module, whole = cpu_module(), weight.contiguous()
            outputs, inputs = weight.shape[:2]
            if small:
                packed = self._memory(module.packed_small_filters(outputs, inputs))
                module.pack_small_filters(whole.data_ptr(), outputs, inputs, packed.data_ptr())
            elif self.bf16:
                packed = self._memory(module.packed_filters_bf16(outputs, inputs))
                module.pack_filters_bf16(whole.data_ptr(), outputs, inputs, packed.data_ptr())
            else:
                packed = self._memory(module.packed_filters(outputs, inputs, isa := module.isa()))
                module.pack_filters([(whole.data_ptr(), outputs, inputs, 0)], False, packed.data_ptr(), isa, 1)
            return packed

        return self.address((key, small), pack)

    def taps(self, key: Any, weight: Tensor, bf16: bool) -> int:
        """A weight ``(O, C)`` or ``(O, C, k, k)`` as `Plan.direct` reads it."""

        def pack() -> Tensor:
            module, whole, outputs, channels = cpu_module(), weight.contiguous(), weight.shape[0], weight.shape[1]
            taps = weight[0, 0].numel()
            if bf16:
                packed = self._memory(module.packed_taps_bf16(outputs, channels, taps))
                module.pack_taps_bf16(whole.data_ptr(), outputs, channels, taps, packed.data_ptr())
            else:
                packed = self._memory(module.packed_taps(outputs, channels * taps))
                module.pack_taps(whole.data_ptr(), outputs, channels * taps, packed.data_ptr())
            return packed

        return self.address((key, bf16), pack)

    def norm(self, norm: TaskNorm, rows: Sequence[int], later: bool) -> tuple[int, int]:
        """Addresses of scale and shift of these of the norm's tasks, in the first or a later iteration."""

        def make() -> NormFields:
            values = (*norm.affine(later), *norm.running(later))
            return NormFields(Norm.from_flat([value.detach()[list(rows)] for value in values]))

        found = self.keep((id(norm), tuple(rows), later and norm.separate), make)
        return found.scale.data_ptr(), found.shift.data_ptr()

    def first(self) -> dict[str, Tensor]:
        """What the first iteration reads: its planes, their share of the stem and their maps, one row each."""

        def make() -> dict[str, Tensor]:
            network = self.network
            planes = network.first_planes()
            stem = F.conv2d(planes, network.stem_filters()[1], padding=3)
            out = {"planes": planes.contiguous(), "stem": stem.contiguous()}
            groups = planes.split([t.width for t in self.config.tasks], 1)
            for t, (encoder, group) in enumerate(zip(network.encoders, groups, strict=True)):
                for level, maps in enumerate(encoder(group)):
                    out[f"maps{t}.{level}"] = maps.contiguous()
            return out

        return cast(dict[str, Tensor], self.keep("first", make))
