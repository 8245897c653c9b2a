"""Measured things: a case, and its inputs made ready for the contenders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

OURS = "ifan"
RIVALS = ("eager", "compile", "onnxruntime", "openvino")
CONTENDERS = (OURS, *RIVALS)

Run = Callable[[int], Sequence[Tensor]]
"""Runs round i on the (i mod 2)-th set of inputs; returns everything that was computed."""


class Missing(Exception):
    """A contender that cannot take part here: why, and what would help."""


@dataclass(frozen=True)
class Ready:
    """A contender ready to run; ``note`` says how it runs, ``first`` what its first run gave if that is over; ``check``
    is compared with the truth where that is not what ``run`` gives; ``steps`` does the same work part by part where
    ``run`` shows a profiler one block."""

    run: Run
    note: str = ""
    first: Sequence[Tensor] | None = None
    check: Run | None = None
    steps: Run | None = None


@dataclass(frozen=True)
class Setting:
    """Conditions of all contenders. ``folder`` keeps exported graphs; ``compile_seconds`` bounds each torch.compile;
    ``quick`` = smaller sizes; ``ranges`` = on a GPU ifan's network part by part, without CUDA graphs; ``mallopt``:
    glibc keeps freed memory; ``row_seconds``: longest that the process of a row may take."""

    folder: Path
    device: str = "cpu"
    threads: int = 2
    compile_seconds: float = 300.0
    quick: bool = False
    compile_modes: tuple[str, ...] = ("default", "max-autotune")
    ranges: bool = False
    mallopt: bool = True
    row_seconds: float | None = None


@dataclass(frozen=True)
class Problem:
    """Inputs made, contenders still to be prepared.

    ``expected(i)`` is the truth of the i-th set of inputs, i = 0 or 1; ``error(found, expected)`` may be as large as
    ``tolerance``. Not ``repeatable``: every run moves the state on, so only a contender's first run is checked.
    """

    makers: Mapping[str, Callable[[], Ready]]
    expected: Callable[[int], Sequence[Tensor]]
    tolerance: float
    repeatable: bool = True
    error: Callable[[Sequence[Tensor], Sequence[Tensor]], float] = field(default=lambda *both: largest_error(*both))


@dataclass(frozen=True)
class Case:
    """One row: which op (or ``network``), its shape, dtype and work, with bytes and FLOP counted.

    ``bytes`` are those that must be moved: inputs read once, outputs written once. ``flop`` counts convolutions and
    products directly, two a multiply-add, whatever algorithm a contender uses.
    """

    op: str
    shape: str
    work: str
    build: Callable[[Setting], Problem] = field(repr=False)
    bytes: int = 0
    flop: int = 0
    dtype: str = "float32"
    needs_bf16: bool = False

    @property
    def name(self) -> str:
        """Name that ``--only`` matches and goals use."""
        return f"{self.op} {self.shape} {self.work} {self.dtype}"


def largest_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest difference relative to the largest expected value, the worst of the outputs; infinite where shapes differ
    or a value is not a number."""
    return _worst(found, expected, lambda x: float(x.abs().max()))


def vector_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The same with Euclidean norms: for gradients, whose single elements may be all rounding."""
    return _worst(found, expected, lambda x: float(x.norm()))


def _worst(found: Sequence[Tensor], expected: Sequence[Tensor], size: Callable[[Tensor], float]) -> float:
    if [value.shape for value in found] != [value.shape for value in expected]:
        return float("inf")
    worst = 0.0
    for actual, wanted in zip(found, expected, strict=True):
        if wanted.numel():
            difference, scale = size(actual.to(wanted.device).double() - wanted.double()), size(wanted.double())
            error = difference / scale if scale else difference
            worst = max(worst, error) if error == error else float("inf")
    return worst
