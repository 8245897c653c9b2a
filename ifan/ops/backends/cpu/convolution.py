"""The native 3x3 convolution of a concatenation: its packed filters, and its gradients."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from ifan.ops.backends.cpu.arguments import ConcatFields
from ifan.ops.native import cpu_module, in_dtype


def parts(lanes: int, pixels: int) -> int:
    """Groups of lanes whose weight gradients are added up at the end.

    Each costs as much as some dozens of tiles, so small maps get few; no number of threads changes a bit.
    """
    return min(lanes, max(2, min(8, lanes * pixels // 4096)))


def slower_than_pytorch(first: Tensor, *others: Tensor) -> bool:
    """True if gradients are recorded on maps with so few pixels that transforming the filters outweighs what it saves.

    Weights that change with every step are transformed twice a step, and their gradients back; the limit is measured
    (``docs/kernels/dense_block.md``). Filters of weights that stay are kept, so inference has no such limit.
    """
    lanes, _, height, width = first.shape
    few = lanes * height * width < 1024
    return few and torch.is_grad_enabled() and any(x.requires_grad for x in (first, *others))


def differentiate(x: ConcatFields, weight: Tensor, gradient: Tensor) -> Tensor:
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


class _Kept(NamedTuple):
    """Filters of weights at one version. The first weight, which may die; the weights' memory, which is kept alive."""

    first: weakref.ref[Tensor]
    memory: list[Tensor]
    versions: list[int]
    packed: Packed


class FilterCache:
    """Packed filters of weights that were read before: of the same tensors, with the same memory and version.

    Fused optimisers change a weight and leave its version as it was. So filters are kept only for weights that require
    no gradient, or through which none has been recorded at their present version. The gradients of a compiled graph
    are recorded unseen; they end in a step of an optimiser, after which no filters are kept.
    """

    def __init__(self) -> None:
        self.kept: dict[int, _Kept] = {}
        """By the first weight's id, as long as it lives."""
        self._recorded: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        """Version at which a gradient was recorded, by the weight's id, as long as it lives."""
        register_optimizer_step_post_hook(self._after_a_step)

    def _after_a_step(self, *_: object) -> None:
        if not torch.compiler.is_compiling():  # a compiled step writes by operations that change the version
            self.kept.clear()

    def record(self, weights: Sequence[Tensor]) -> None:
        """A gradient may be recorded through these weights: note it of those that an optimiser may change."""
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return
        for weight in weights:
            if weight.is_leaf and weight.requires_grad and not self._was_recorded(weight):
                self._recorded[id(weight)] = _reference(weight, self._recorded), weight._version

    def get(self, weights: Sequence[Tensor], packing: Callable[[], Packed]) -> Packed:
        """The weights' filters, which ``packing`` gives where none are kept."""
        if any(x.is_inference() or self._was_recorded(x) for x in weights):
            return packing()
        key, versions, found = id(weights[0]), [x._version for x in weights], self.kept.get(id(weights[0]))
        if (
            found is not None
            and found.first() is weights[0]
            and found.versions == versions
            and found.packed.isa == cpu_module().isa()
            and all(kept.is_set_to(x) for kept, x in zip(found.memory, weights, strict=True))
        ):
            return found.packed
        packed = packing()
        memory = [x.detach() for x in weights]
        self.kept[key] = _Kept(_reference(weights[0], self.kept), memory, versions, packed)
        return packed

    def _was_recorded(self, weight: Tensor) -> bool:
        if not weight.requires_grad or (found := self._recorded.get(id(weight))) is None:
            return False
        return found[0]() is weight and found[1] == weight._version


filters = FilterCache()


def _reference(weight: Tensor, entries: dict[int, Any]) -> weakref.ref[Tensor]:
    """The weight, which takes its entry along when it dies."""
    key = id(weight)
    return weakref.ref(weight, lambda _: entries.pop(key, None))


def pack(parts: Sequence[tuple[Tensor, slice]], transposed: bool = False) -> Packed:
    """The transformed filters of some input channels of each weight, for the gradient of the inputs if ``transposed``,
    one behind the other."""
    module = cpu_module()
    isa = module.isa()
    # Rows of a weight's part lie apart; what is inside of them must not.
    read = [in_dtype(weight, torch.float32)[:, part] for weight, part in parts]
    read = [x if x.stride()[1:] == (9, 3, 1) else x.contiguous() for x in read]
    shapes = [(x.shape[1], x.shape[0]) if transposed else (x.shape[0], x.shape[1]) for x in read]
    packed = read[0].new_empty(sum(module.packed_filters(*shape, isa) for shape in shapes))
    fields = [(x.data_ptr(), *shape, x.stride(0)) for x, shape in zip(read, shapes, strict=True)]
    module.pack_filters(fields, transposed, packed.data_ptr(), isa, torch.get_num_threads())
    return Packed(isa, packed)
