"""Rows of packaged weights: what is measured is what ``ifan export`` writes, on faces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ifan.bench.network import trained
from ifan.bench.problem import Setting
from ifan.network import IFAN

ROWS = {case.name: case for case in trained()}


def test_names() -> None:
    assert list(ROWS)[:2] == [f"network ifan-128 {batch}x3x128x128 inference float32" for batch in (1, 8)]


@pytest.mark.parametrize("batch", [1, 8])
def test_engine_and_graph_agree_and_see_faces(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    stem = IFAN.preprocess

    def preprocess(self: IFAN, images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return stem(self, images)

    monkeypatch.setattr(IFAN, "preprocess", preprocess)
    case = ROWS[f"network ifan-128 {batch}x3x128x128 inference float32"]
    problem = case.build(Setting(Path(), threads=1))
    assert seen[0].float().std() > 30, "a portrait, not noise of one grey"
    assert not torch.equal(seen[0][0], seen[0][-1]) or batch == 1
    for name in ("ifan", "eager"):
        found = problem.makers[name]().run(0)
        for value, wanted in zip(found, problem.expected(0), strict=True):
            assert value.shape[0] == batch
            assert float((value - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())
