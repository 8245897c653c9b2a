"""Names for what runs, as profilers show them: NVTX ranges for Nsight, `record_function` for `torch.profiler`.

Off unless asked for, and inside `torch.compile` always. Named are the network's iterations, their parts (``stem``,
``block 1``, ``transition down 1``, ...) and every operation (``ifan.integrate``, ...).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_on = False


@contextlib.contextmanager
def named_ranges(on: bool = True) -> Iterator[None]:
    """Show the names to profilers inside the ``with`` block."""
    global _on
    before, _on = _on, on
    try:
        yield
    finally:
        _on = before


def span(name: str) -> contextlib.AbstractContextManager[None]:
    """A range called ``name``; nothing at all where names are off."""
    if not _on or torch.compiler.is_compiling():
        return contextlib.nullcontext()
    return _span(name)


@contextlib.contextmanager
def _span(name: str) -> Iterator[None]:
    with contextlib.ExitStack() as entered:
        entered.enter_context(torch.profiler.record_function(name))
        if torch.cuda.is_available():
            torch.cuda.nvtx.range_push(name)
            entered.callback(torch.cuda.nvtx.range_pop)
        yield


def ranged(name: str) -> Callable[[Callable[_Arguments, _Result]], Callable[_Arguments, _Result]]:
    """Decorator: the function's calls are ranges called ``name``."""

    def decorate(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
        @functools.wraps(function)
        def named(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> _Result:
            if not _on:
                return function(*arguments, **options)
            with span(name):
                return function(*arguments, **options)

        return named

    return decorate
