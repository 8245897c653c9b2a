"""Choice of the backend that runs an operation.

Backends: ``reference`` (plain PyTorch), ``cpu`` (C++), ``triton``, ``cuda`` or ``auto``.

``auto`` takes the fastest measured backend that accepts the input, else the reference; GPU kernels only once they have
passed a check on a GPU (`ifan.ops.gpu.checked_on`). A backend asked for by name
that is missing or cannot take the input raises `BackendError`. The choice is made in Python and handed to the
operation as an argument, so that `torch.compile` guards on it.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from ifan.ops import gpu, native
from ifan.ops.call import constant_in_graphs

BACKENDS = ("reference", "cpu", "triton", "cuda")
ENVIRONMENT = "IFAN_BACKEND"

_Refusal = Callable[..., "str | None"]
_KERNELS: dict[tuple[str, str], tuple[_Refusal, Callable[..., bool]]] = {}
_FASTEST_FIRST = (("cuda", "cuda"), ("triton", "cuda"), ("cpu", "cpu"))
_FIXES = {"cpu": native.FIX, "triton": gpu.TRITON_FIX, "cuda": native.CUDA_FIX}
_UNCHECKED = "its kernels have not run on a GPU yet"
_warned: set[str] = set()


class BackendError(ValueError):
    """A backend asked for by name is unknown, missing, or cannot take the input."""


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """Availability of a backend here.

    If it cannot run, ``reason`` and ``fix`` say why and what to do. ``note``: what else to know.
    """

    name: str
    available: bool
    reason: str
    fix: str
    note: str = ""


def _checked(name: str, origin: str) -> str:
    if name not in (*BACKENDS, "auto"):
        raise BackendError(f"{origin}: expected one of {('auto', *BACKENDS)}; got {name!r}. Choose one of these.")
    return name


def from_environment() -> str:
    """The backend named by ``IFAN_BACKEND``; ``auto`` where that is unset or empty."""
    return os.environ.get(ENVIRONMENT, "") or "auto"


_current = from_environment()


def current_backend() -> str:
    """The backend used by calls that name none."""
    return _current


def set_backend(name: str) -> None:
    """Use ``name`` for all later calls that name no backend. Raises `BackendError` for an unknown name."""
    global _current
    _current = _checked(name, "set_backend")


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Use ``name`` inside the ``with`` block. Raises `BackendError` for an unknown name."""
    before = _current
    set_backend(name)
    try:
        yield
    finally:
        set_backend(before)


def register_kernel(
    op: str, backend: str, refusal: _Refusal, slower: Callable[..., bool] = lambda *inputs: False
) -> None:
    """State that ``backend`` has a kernel for ``op``; ``refusal(*inputs)`` is ``None`` or why it cannot take them.

    ``auto`` passes it by where it is ``slower(*inputs)`` than the next choice.
    """
    _KERNELS[op, backend] = refusal, slower


def choose(op: str, backend: str | None, *inputs: Tensor) -> str:
    """The backend that runs ``op`` on these inputs: ``backend``, else the current one, with ``auto`` resolved."""
    name = _current if backend is None else backend
    if name == "reference":
        return name
    if name == "auto":
        return _automatic(op, inputs)
    _checked(name, f"{op}: backend" if backend is not None else f"{op}: set_backend or {ENVIRONMENT}")
    missing = _missing(name)
    if missing is not None:
        raise BackendError(f"{op}: backend {name!r} is not available: {missing}. To fix: {_FIXES[name]}.")
    if (op, name) not in _KERNELS:
        raise BackendError(f"{op}: backend {name!r} has no kernel for it. Use backend='auto' or 'reference'.")
    refusal, _ = _KERNELS[op, name]
    reason = refusal(*inputs)
    if reason is not None:
        raise BackendError(f"{op}: backend {name!r} cannot take this input: {reason}. Use backend='reference'.")
    return name


def _automatic(op: str, inputs: tuple[Tensor, ...]) -> str:
    reasons = []
    for name, device in _FASTEST_FIRST:
        if (op, name) not in _KERNELS or device != inputs[0].device.type:
            continue
        missing, (refusal, slower) = _missing(name), _KERNELS[op, name]
        if missing is not None:
            reasons.append(f"backend {name!r}: {missing}. To fix: {_FIXES[name]}.")
        elif refusal(*inputs) is None and not slower(*inputs):
            if device == "cpu" or gpu.checked_on(name) is not None:
                return name
            reasons.append(f"backend {name!r}: {_UNCHECKED}. To fix: run make gpu-check.")
    if reasons:
        _warn_once(f"{op} runs on the slower reference: {' '.join(reasons)}")
    return "reference"


@constant_in_graphs
def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=6)


def backend_status() -> list[BackendStatus]:
    """One row a backend, as printed by ``ifan info``."""
    reasons = {name: _missing(name) for name in BACKENDS}
    return [BackendStatus(n, r is None, r or "", _FIXES[n] if r else "", _note(n, r)) for n, r in reasons.items()]


def _note(name: str, missing: str | None) -> str:
    if name not in ("triton", "cuda") or missing is not None:
        return ""
    passed = gpu.checked_on(name)
    return f"checked on {passed}" if passed else f"{_UNCHECKED}; auto does not take them"


def _missing(name: str) -> str | None:
    if name == "triton":
        return gpu.triton_missing()
    if name == "cuda":
        return gpu.cuda_missing()
    return _native_refusal() if name == "cpu" else None


@constant_in_graphs
def _native_refusal() -> str | None:
    return native.cpu_refusal()
