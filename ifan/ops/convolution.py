"""The native 3x3 convolution of a concatenation, with its prologue and epilogue, and its gradients."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

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


def prepared(x: Concatenation, weight: Tensor, out: Tensor, epilogue: str) -> Callable[[], Any]:
    """A call that writes ``epilogue(conv3x3(x))`` to ``out``.

    All but the kernel's work is done: Python code behind a kernel that has filled the caches takes several times as
    long, so calls that follow each other are prepared together.

    ``weight (O, C, 3, 3)``; float32 ``out (N, O, H, W)`` or, after ``relu_phase_shift``, ``(N, O / 4, 2H, 2W)``, with
    planes in one piece.
    """
    if not out.numel() or not x.shape[1]:
        return out.zero_
    packed, same = Filters.of([weight], lambda: pack([(weight, slice(None))]))
    arguments = (
        *x.arguments,
        packed.isa,
        packed.filters.data_ptr(),
        weight.shape[0],
        epilogue,
        out.data_ptr(),
        out.stride(0),
        torch.get_num_threads(),
        addresses(same),
    )
    kernel = cpu_module().convolution_forward

    def run(_alive: Any = (x, out, packed, same)) -> None:  # what the addresses are of
        if not kernel(*arguments):
            Filters.forget(weight)
            prepared(x, weight, out, epilogue)()

    return run


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


Same = list[tuple[Tensor, Tensor]]
"""Copies of weights, and weights that have to equal them."""


def addresses(same: Same) -> list[tuple[int, int, int]]:
    """What a kernel is told to compare."""
    return [(a.data_ptr(), b.data_ptr(), a.nbytes) for a, b in same]


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
        self.unchanged, self.pause, self.unkept = 0, 1, 1

    @classmethod
    def of(cls, weights: Sequence[Tensor], packing: Callable[[], Packed]) -> tuple[Packed, Same]:
        """The weights' filters, by ``packing`` if there are none, and what the kernel has to compare beside its work:
        if it finds a difference, `forget` them."""
        version, found = _version(weights), cls.known.get(id(weights[0]))
        if found is None or found.first() is not weights[0] or found.version != version:
            found = cls.known[id(weights[0])] = cls(weights, version)
        if found.kept is not None:
            copies, packed = found.kept
            same = list(zip(copies, weights, strict=False))
            if len(copies) == len(weights) and packed.isa == cpu_module().isa() and all(_alike(*pair) for pair in same):
                if found.unchanged >= cls.TRUSTED:
                    return packed, same
                if cpu_module().same_bits(addresses(same)):
                    found.unchanged, found.pause = found.unchanged + 1, 1
                    return packed, []
            found._changed()
        packed = packing()
        if found.unkept:
            found.unkept -= 1
        else:
            found.kept = [weight.clone() for weight in weights], packed
        return packed, []

    @classmethod
    def forget(cls, weight: Tensor) -> None:
        """The filters of which this was the first weight are not the weights' any more."""
        if (found := cls.known.get(id(weight))) is not None:
            found._changed()

    def _changed(self) -> None:
        self.kept, self.unchanged, self.unkept = None, 0, self.pause
        self.pause = min(2 * self.pause, self.MOST_UNKEPT)


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
