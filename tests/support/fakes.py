"""Cases without work in them, and a machine without speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ifan.bench.measure import Budget, measure
from ifan.bench.problem import Case, Problem, Ready, Setting
from ifan.bench.timing import Rounds

MACHINE = {
    "commit": "abc",
    "processor": "Abacus",
    "isa": "avx2",
    "threads": 2,
    "versions": {"torch": "2", "openvino": None},
    "copy_gb_s": 10.0,
    "gemm_gflop_s": {"float32": 100.0},
}
TRUTH = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])]


def right(i: int) -> Sequence[Tensor]:
    return [TRUTH[i % 2]]


def case(makers: dict[str, Callable[[], Ready]], op: str = "abacus", **settings: Any) -> Case:
    problem = Problem(makers, right, 1e-3)
    return Case(op, "2x2", "forward", lambda setting: problem, **{"bytes": 1000, "flop": 5000, **settings})


def row(of: Case, against: Sequence[str] = ("eager", "compile", "onnxruntime", "openvino")) -> dict[str, Any]:
    return measure(of, Setting(Path()), Budget(Rounds(0.0, 3, 5)), None, MACHINE, against)
