"""Every row of ``ifan bench`` under pytest-benchmark: ifan beside eager PyTorch, each checked before it is timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ifan.bench.machine import has_bf16
from ifan.bench.problem import OURS, Case, Setting
from ifan.bench.suite import suite


@pytest.mark.parametrize("contender", [OURS, "eager"])
@pytest.mark.parametrize("case", suite(), ids=lambda case: case.name)
def test_row(benchmark: Any, case: Case, contender: str, tmp_path: Path) -> None:
    if case.needs_bf16 and not has_bf16("cpu"):
        pytest.skip("no bfloat16 arithmetic here")
    problem = case.build(Setting(tmp_path, threads=torch.get_num_threads()))
    if contender not in problem.makers:
        pytest.skip(f"{contender} does not take part in this row")
    ready = problem.makers[contender]()
    found = ready.check(0) if ready.check else ready.run(0)
    assert problem.error(found, problem.expected(0)) <= problem.tolerance
    if case.op == "network":
        benchmark.pedantic(ready.run, args=(0,), rounds=5, warmup_rounds=1)
    else:
        benchmark(ready.run, 0)
