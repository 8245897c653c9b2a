"""The native 3x3 convolution of a concatenation, with its prologue and epilogue, and its gradients."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ifan.ops import native
from ifan.ops.concatenation import Concatenation
from ifan.ops.native import cpu_module


def parts(lanes: int, pixels: int) -> int:
    """Groups of lanes whose weight gradients are added up at the end.

    Each costs as much as some dozens of tiles, so small maps get few; no number of threads changes a bit.
    """
    return min(lanes, max(2, min(8, lanes * pixels // 4096)))


def slower_than_pytorch(first: Tensor, *others: Tensor) -> bool:
    """Whether gradients are recorded on maps with so few pixels that transforming the filters outweighs what it saves.

    Weights that change with every step are transformed twice a step, and their gradients back; the limit is measured
    (``docs/kernels/dense_block.md``). Filters of weights that stay are kept, so inference has no such limit.
    """
    lanes, _, height, width = first.shape
    few = lanes * height * width < 1024
    return few and torch.is_grad_enabled() and any(x.requires_grad for x in (first, *others))


def differentiate(x: Concatenation, weight: Tensor, gradient: Tensor) -> Tensor:
    """Write, or add to, ``x.gradients`` for the float32 ``gradient (N, O, H, W)`` of the convolution, planes in one
    piece; returns the weight's gradient."""
    lanes, channels, outputs = x.shape[0], x.shape[1], weight.shape[0]
    if not gradient.numel() or not channels:
        for source, add in zip(x.gradients, x.adds, strict=True):
            if not add:
                source.zero_()
        return torch.zeros_like(weight, memory_format=torch.contiguous_format)
    found = gradient.new_empty((outputs, channels, 3, 3))
    shares = gradient.new_empty((parts(lanes, x.shape[2] * x.shape[3]), *found.shape))
    isa, filters = pack([(weight, slice(None))], transposed=True)
    cpu_module().convolution_backward(
        *x.arguments,
        x.targets,
        isa,
        filters.data_ptr(),
        outputs,
        gradient.data_ptr(),
        gradient.stride(0),
        shares.data_ptr(),
        shares.shape[0],
        found.data_ptr(),
        torch.get_num_threads(),
    )
    return found


class Packed(NamedTuple):
    """Filters as the kernels of one instruction set read them, and its name: those run, whatever is in use by then."""

    isa: str
    filters: Tensor


Pieces = list[tuple[int, int, int]]
"""What has to hold the same bytes: pairs of addresses, and how many."""
_Same = list[tuple[Tensor, Tensor]]
"""Copies of weights, and weights that have to equal them."""


class Filters:
    """The packed filters of weights that were read before and have not changed since, with copies of those weights.

    They are used only where the weights still equal the copies bit for bit: PyTorch's fused optimisers, and others,
    change a tensor and leave its version as it was. Where steps of a training change the weights between two readings,
    copying and comparing them is for nothing, so after each change that is found the filters of twice as many readings
    as before, `MOST_UNKEPT` at most, are not kept.
    """

    MOST_UNKEPT = 16
    TRUSTED = 8
    """Readings without a change after which the kernel compares beside its work, which is lost if there is one."""
    known: ClassVar[dict[int, Filters]] = {}
    """By the first weight's id, as long as it lives."""

    def __init__(self, weights: Sequence[Tensor], version: int) -> None:
        known, key = self.known, id(weights[0])
        self.first = weakref.ref(weights[0], lambda _: known.pop(key, None))
        self.version = version
        self.kept: tuple[list[Tensor], Packed] | None = None
        self.unchanged = 0
        """Comparisons since the filters are kept, all of which found the weights unchanged."""
        self.pause, self.unkept = 1, 1
        """Readings whose filters are not kept: after the next change, and from now on."""

    @classmethod
    def use(
        cls, weights: Sequence[Tensor], packing: Callable[[], Packed], kernel: Callable[[str, int, Pieces], bool]
    ) -> None:
        """Run ``kernel(isa, address, pieces)`` with the weights' filters, which ``packing`` gives where none are kept.

        It compares the ``pieces`` of memory beside its work and runs again if it returns ``False`` as they differ.
        """
        version, found = _version(weights), cls.known.get(id(weights[0]))
        if found is None or found.first() is not weights[0] or found.version != version:
            found = cls.known[id(weights[0])] = cls(weights, version)
        packed, same = found._filters(weights, packing)
        if not kernel(packed.isa, packed.filters.data_ptr(), _pieces(same)):
            found._changed()
            packed, same = found._filters(weights, packing)
            kernel(packed.isa, packed.filters.data_ptr(), _pieces(same))

    def _filters(self, weights: Sequence[Tensor], packing: Callable[[], Packed]) -> tuple[Packed, _Same]:
        if (kept := self.kept) is not None:  # another thread may change it meanwhile
            copies, packed = kept
            same = list(zip(copies, weights, strict=False))
            if len(copies) == len(weights) and packed.isa == cpu_module().isa() and all(_alike(*pair) for pair in same):
                if self.unchanged >= self.TRUSTED:
                    return packed, same
                if cpu_module().same_bits(_pieces(same)):
                    self.unchanged, self.pause = self.unchanged + 1, 1
                    return packed, []
            self._changed()
        packed = packing()
        if self.unkept:
            self.unkept -= 1
        else:
            self.kept = [weight.clone() for weight in weights], packed
        return packed, []

    def _changed(self) -> None:
        self.kept, self.unchanged, self.unkept = None, 0, self.pause
        self.pause = min(2 * self.pause, self.MOST_UNKEPT)


def _pieces(same: _Same) -> Pieces:
    return [(a.data_ptr(), b.data_ptr(), a.nbytes) for a, b in same]


def _alike(copy: Tensor, weight: Tensor) -> bool:
    return copy.dtype == weight.dtype and copy.shape == weight.shape and weight.is_contiguous()


def _version(weights: Sequence[Tensor]) -> int:
    """Rises with every change that PyTorch counts; it does not for tensors made in inference mode."""
    try:
        return sum([weight._version for weight in weights])
    except RuntimeError:  # one of them was made in inference mode
        return 0


def pack(parts: Sequence[tuple[Tensor, slice]], transposed: bool = False) -> Packed:
    """The transformed filters of some input channels of each weight, for the gradient of the inputs if ``transposed``,
    one behind the other."""
    module = cpu_module()
    isa = module.isa()
    # Rows of a weight's part lie apart; what is inside of them must not.
    read = [native.in_dtype(weight, torch.float32)[:, part] for weight, part in parts]
    read = [x if x.stride()[1:] == (9, 3, 1) else x.contiguous() for x in read]
    shapes = [(x.shape[1], x.shape[0]) if transposed else (x.shape[0], x.shape[1]) for x in read]
    filters = read[0].new_empty(sum(module.packed_filters(*shape, isa) for shape in shapes))
    fields = [(x.data_ptr(), *shape, x.stride(0)) for x, shape in zip(read, shapes, strict=True)]
    module.pack_filters(fields, transposed, filters.data_ptr(), isa, torch.get_num_threads())
    return Packed(isa, filters)
