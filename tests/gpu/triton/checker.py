"""A memory and race checker for Triton kernels run by the interpreter, which itself notices none of this.

While ``with checked():`` is active a launch raises `CheckError` on

- an access outside every tensor argument, or not aligned to its element;
- an element that one program stores and another loads or stores in the same launch (a race);
- a store of different values to one address by one program;

and `tl.device_assert` and, with ``overflow=True``, int32 arithmetic that wraps raise as well. Addresses are kept as
lists and compared when the launch ends, so tensors with strides past 2^31 cost nothing. Bounds are those of a tensor's
hull: what lies between the elements of a slice is for NaN to find. It replaces private functions of Triton's
interpreter; it has run with Triton 3.6.0 and 3.9.0.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import triton.runtime.interpreter as interpreter


class CheckError(AssertionError):
    """A launch broke a rule of memory access."""


@dataclasses.dataclass
class Accesses:
    """What the programs of one launch touched."""

    tensors: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    touched: dict[str, list[tuple[np.ndarray, int]]] = dataclasses.field(
        default_factory=lambda: {"load": [], "store": [], "atomic": []}
    )

    def admit(self, tensor: Any) -> None:
        """Make the hull of a tensor argument legal to access."""
        if tensor.numel():
            size = tensor.element_size()
            spans = [(n - 1) * s * size for n, s in zip(tensor.shape, tensor.stride(), strict=True)]
            low = tensor.data_ptr() + sum(span for span in spans if span < 0)
            self.tensors.append((low, tensor.data_ptr() + sum(span for span in spans if span > 0) + size))

    def touch(self, kind: str, pointers: Any, mask: Any, value: Any = None) -> None:
        """Note one access of the running program and check what needs no other program."""
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        shape = np.broadcast_shapes(pointers.data.shape, mask.data.shape)
        chosen = np.broadcast_to(mask.data, shape).astype(bool)
        addresses = np.broadcast_to(pointers.data, shape)[chosen].astype(np.int64).ravel()
        if not addresses.size:
            return
        if (addresses % size).any():
            raise CheckError(f"{kind}: address not aligned to {size} bytes, program {_program()}")
        legal = np.zeros(addresses.size, bool)
        for low, high in self.tensors:
            legal |= (addresses >= low) & (addresses + size <= high)
        if not legal.all():
            raise CheckError(f"{kind}: {int((~legal).sum())} addresses outside every tensor, program {_program()}")
        if value is not None:
            _reject_different_values(addresses, np.broadcast_to(value.data, shape)[chosen].ravel())
        self.touched[kind].append((np.unique(addresses), _number(_program())))

    def finish(self) -> None:
        """Raise if two programs of the launch touched one element and at least one of them stored it."""
        stored, by = self._of("store")
        order = np.lexsort((by, stored))
        stored, by = stored[order], by[order]
        clash = (stored[1:] == stored[:-1]) & (by[1:] != by[:-1])
        if clash.any():
            raise CheckError(f"store: {int(clash.sum())} elements stored by two programs (race)")
        for kind in ("load", "atomic"):
            addresses, programs = self._of(kind)
            if stored.size and addresses.size:
                found = np.searchsorted(stored, addresses).clip(max=stored.size - 1)
                clash = (stored[found] == addresses) & (by[found] != programs)
                if clash.any():
                    raise CheckError(f"{kind}: {int(clash.sum())} elements stored by another program (race)")

    def _of(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        parts = self.touched[kind]
        if not parts:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        return np.concatenate([a for a, _ in parts]), np.concatenate([np.full(a.size, p) for a, p in parts])


def _reject_different_values(addresses: np.ndarray, values: np.ndarray) -> None:
    _, first, inverse = np.unique(addresses, return_index=True, return_inverse=True)
    if first.size < addresses.size:
        floating = values.dtype.kind == "f"
        if not np.array_equal(values, values[first][inverse.ravel()], equal_nan=floating):
            raise CheckError(f"store: different values to one address, program {_program()}")


def _program() -> tuple[int, int, int]:
    x, y, z = interpreter.interpreter_builder.grid_idx
    return int(x), int(y), int(z)


def _number(program: tuple[int, int, int]) -> int:
    _, ny, nz = interpreter.interpreter_builder.grid_dim
    return int((program[0] * ny + program[1]) * nz + program[2])


def _flat(arguments: Any) -> Iterator[Any]:
    for argument in arguments:
        if isinstance(argument, (tuple, list)):
            yield from _flat(argument)
        elif hasattr(argument, "data_ptr"):
            yield argument


@contextlib.contextmanager
def checked(overflow: bool = False) -> Iterator[None]:
    """Check every launch inside the block; ``overflow`` also checks int32 arithmetic, which doubles the time."""
    builder, executor, settings = (
        interpreter.InterpreterBuilder,
        interpreter.GridExecutor,
        interpreter.interpreter_builder,
    )
    state = [Accesses()]
    kept: dict[tuple[Any, str], Callable[..., Any]] = {}

    def replace(owner: Any, name: str, before: Callable[..., None]) -> None:
        original = kept[owner, name] = getattr(owner, name)

        def watched(self: Any, *arguments: Any, **options: Any) -> Any:
            before(*arguments, **options)
            return original(self, *arguments, **options)

        setattr(owner, name, watched)

    replace(builder, "create_masked_load", lambda p, mask, *_, **__: state[0].touch("load", p, mask))
    replace(builder, "create_masked_store", lambda p, value, mask, *_, **__: state[0].touch("store", p, mask, value))
    replace(builder, "create_atomic_rmw", lambda _, p, __, mask, *___, **____: state[0].touch("atomic", p, mask))

    def start(self: Any, arguments: Any, options: Any) -> Any:
        state[0] = Accesses()
        arguments, options = kept[executor, "_init_args_hst"](self, arguments, options)
        for tensor in _flat([*arguments, *options.values()]):
            state[0].admit(tensor)
        return arguments, options

    def finish(self: Any, *arguments: Any, **options: Any) -> Any:
        state[0].finish()
        return kept[executor, "_restore_args_dev"](self, *arguments, **options)

    for name, function in (("_init_args_hst", start), ("_restore_args_dev", finish)):
        kept[executor, name] = getattr(executor, name)
        setattr(executor, name, function)
    before = settings.options
    settings.options = dataclasses.replace(before, debug=True, sanitize_overflow=overflow)
    try:
        yield
    finally:
        settings.options = before
        for (owner, name), original in kept.items():
            setattr(owner, name, original)
