"""What is measured: a case, and its inputs made ready for the contenders."""

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
    """A contender ready to run; ``note`` says how it runs, ``first`` what its first run gave if that is over."""

    run: Run
    note: str = ""
    first: Sequence[Tensor] | None = None


@dataclass(frozen=True)
class Setting:
    """Where and how contenders run. ``folder`` keeps exported graphs; ``compile_seconds`` bounds each torch.compile;
    ``quick`` = smaller sizes."""

    folder: Path
    device: str = "cpu"
    threads: int = 2
    compile_seconds: float = 300.0
    quick: bool = False
    compile_modes: tuple[str, ...] = ("default", "max-autotune")


@dataclass(frozen=True)
class Problem:
    """Inputs made, contenders still to be prepared.

    ``expected(i)`` is the truth of the i-th set of inputs, i = 0 or 1; ``None`` in later rounds where the state moves
    on. An output's error is its largest difference relative to the largest expected value (``tolerance`` is the most
    that is accepted).
    """

    makers: Mapping[str, Callable[[], Ready]]
    expected: Callable[[int], Sequence[Tensor]]
    tolerance: float
    repeatable: bool = True


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
        """What ``--only`` matches and goals name."""
        return f"{self.op} {self.shape} {self.work} {self.dtype}"


def largest_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest relative error over the outputs; infinite where shapes differ or a value is not finite."""
    worst = 0.0
    if len(found) != len(expected):
        return float("inf")
    for actual, wanted in zip(found, expected, strict=True):
        if actual.shape != wanted.shape:
            return float("inf")
        if wanted.numel() == 0:
            continue
        difference = float((actual.to(wanted.device).double() - wanted.double()).abs().max())
        scale = float(wanted.abs().max())
        error = difference / scale if scale else difference
        worst = max(worst, error) if error == error else float("inf")
    return worst
