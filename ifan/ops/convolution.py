"""The native 3x3 convolution of a concatenation, with its prologue and epilogue, and its gradients."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ifan.ops.concatenation import Concatenation, Normalisation
from ifan.ops.native import cpu_module


def _parts(lanes: int, pixels: int) -> int:
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


def prepared(
    x: Concatenation,
    weights: Sequence[Tensor],
    out: Tensor,
    epilogue: str = "none",
    affine: Tensor | None = None,
    first: int = 0,
    add: bool = False,
) -> Callable[[], Any]:
    """A call that writes ``epilogue(conv3x3(relu(x * scale + shift)))`` to ``out``, without ``affine`` that of ``x``.

    All but the kernel's work is done: Python code behind a kernel that has filled the caches takes several times as
    long, so calls that follow each other are prepared together.

    ``affine (2, L, T, C)`` holds scale and shift for each of the L ``weights``, which read ``x`` in one pass; their
    outputs follow each other in ``out``. Of each weight ``(O, C', 3, 3)`` those channels count that begin at ``first``,
    as many as ``x`` has. float32 ``out (N, O's sum, H, W)`` or, after ``relu_phase_shift``, ``(N, O / 4, 2H, 2W)``,
    with planes in one piece; ``add``: the convolution is added to it.
    """
    channels = x.shape[1]
    if not channels and not add:
        return out.zero_
    if not out.numel() or not channels:
        return lambda: None
    part = slice(first, first + channels)
    (isa, filters), same = _Filters.of(weights, part, later=not add)
    scale = 0 if affine is None else affine.data_ptr()
    arguments = (
        *x.arguments,
        scale,
        0 if affine is None else scale + 2 * affine.numel(),  # half as many floats further on
        isa,
        filters.data_ptr(),
        sum(weight.shape[0] for weight in weights),
        epilogue,
        out.data_ptr(),
        out.stride(0),
        torch.get_num_threads(),
        len(weights),
        add,
        _addresses(same),
    )
    kernel = cpu_module().convolution_forward

    def run(_alive: Any = (x, out, filters, affine, same)) -> None:  # what the addresses are of
        if not kernel(*arguments):
            _Filters.forget(weights, part)
            prepared(x, weights, out, epilogue, affine, first)()

    return run


def differentiate(
    x: Concatenation, weight: Tensor, gradient: Tensor, norm: Normalisation | None = None
) -> tuple[Tensor, Tensor]:
    """Write, or add to, ``x.gradients`` for the float32 ``gradient (N, O, H, W)`` of the convolution, planes in one
    piece.

    Returns the weight's gradient and, with ``norm``, the sums ``(N, C, 2)`` that `Normalisation.gradients` reads.
    """
    lanes, channels, outputs = x.shape[0], x.shape[1], weight.shape[0]
    sums = gradient.new_zeros((lanes, channels, 2) if norm else (0,), dtype=torch.float64)
    if not gradient.numel() or not channels:
        for source, add in zip(x.gradients, x.adds, strict=True):
            if not add:
                source.zero_()
        return torch.zeros_like(weight, memory_format=torch.contiguous_format), sums
    found = gradient.new_empty((outputs, channels, 3, 3))
    shares = gradient.new_empty((_parts(lanes, x.shape[2] * x.shape[3]), *found.shape))
    isa, filters = _packed([weight], transposed=True)
    cpu_module().convolution_backward(
        *x.arguments,
        x.targets,
        norm.scale.data_ptr() if norm else 0,
        norm.shift.data_ptr() if norm else 0,
        norm.mean.data_ptr() if norm else 0,
        isa,
        filters.data_ptr(),
        outputs,
        gradient.data_ptr(),
        gradient.stride(0),
        shares.data_ptr(),
        shares.shape[0],
        found.data_ptr(),
        sums.data_ptr() if norm else 0,
        torch.get_num_threads(),
    )
    return found, sums


class _Packed(NamedTuple):
    """Filters as the kernels of one instruction set read them, and its name: those run, whatever is in use by then."""

    isa: str
    filters: Tensor


_Same = list[tuple[Tensor, Tensor]]
"""Copies of weights, and weights that have to equal them."""


class _Filters:
    """The packed filters of weights that were read before and have not changed since, with copies of those weights.

    A training step reads a weight once between two changes, so nothing is kept. What is kept is used only where the
    weights still equal the copies bit for bit: there are ways to change a tensor that leave its version as it was.
    """

    known: ClassVar[dict[int, _Filters]] = {}
    """By the first weight's id, as long as it lives."""

    def __init__(self, weight: Tensor, version: int) -> None:
        self.version = version
        known, key = self.known, id(weight)
        self.weight = weakref.ref(weight, lambda _: known.pop(key, None))
        self.kept: dict[tuple[Any, ...], tuple[list[Tensor], _Packed | None]] = {}

    @classmethod
    def of(cls, weights: Sequence[Tensor], part: slice, later: bool) -> tuple[_Packed, _Same]:
        """The packed filters of these input channels of each weight, one behind the other.

        ``later``: the kernel compares the weights with their copies, beside its work; it is told what. If it finds that
        they differ, `forget` them.
        """
        version, found = _version(weights), cls.known.get(id(weights[0]))
        if found is None or found.weight() is not weights[0] or found.version != version:
            found = cls.known[id(weights[0])] = cls(weights[0], version)
        key = (cpu_module().isa(), part.start, part.stop, len(weights))
        if key not in found.kept:
            found.kept[key] = [], None
            return _packed(weights, part), []
        copies, packed = found.kept[key]
        if packed is not None and all(map(_alike, copies, weights)):
            same = list(zip(copies, weights, strict=True))
            if later:
                return packed, same
            if all(cpu_module().same_bits(*pieces) for pieces in _addresses(same)):
                return packed, []
        packed = _packed(weights, part)
        found.kept[key] = [weight.clone() for weight in weights], packed
        return packed, []

    @classmethod
    def forget(cls, weights: Sequence[Tensor], part: slice) -> None:
        """Pack these filters anew when they are asked for."""
        if (found := cls.known.get(id(weights[0]))) is not None:
            found.kept = {key: ([], None) for key in found.kept if key[1:] == (part.start, part.stop, len(weights))}


def _addresses(same: _Same) -> list[tuple[int, int, int]]:
    return [(a.data_ptr(), b.data_ptr(), a.nbytes) for a, b in same]


def _alike(copy: Tensor, weight: Tensor) -> bool:
    return copy.dtype == weight.dtype and copy.shape == weight.shape and weight.is_contiguous()


def _version(weights: Sequence[Tensor]) -> int:
    """Rises with every change that PyTorch counts; it does not for tensors made in inference mode."""
    try:
        return sum([weight._version for weight in weights])
    except RuntimeError:  # one of them was made in inference mode
        return 0


def _packed(weights: Sequence[Tensor], part: slice = slice(None), transposed: bool = False) -> _Packed:
    """The transformed filters of each weight, for the gradient of the inputs if ``transposed``, in one tensor."""
    module = cpu_module()
    isa = module.isa()
    # Rows of a weight's part lie apart; what is inside of them must not.
    parts = [x if x.stride()[1:] == (9, 3, 1) else x.contiguous() for x in (w[:, part].float() for w in weights)]
    shapes = [(x.shape[1], x.shape[0]) if transposed else tuple(x.shape[:2]) for x in parts]
    sizes = [module.packed_filters(*shape, isa) for shape in shapes]
    filters = parts[0].new_empty(sum(sizes))
    for x, shape, place in zip(parts, shapes, filters.split(sizes), strict=True):
        module.pack_filters(
            x.data_ptr(), *shape, transposed, place.data_ptr(), isa, torch.get_num_threads(), x.stride(0)
        )
    return _Packed(isa, filters)
