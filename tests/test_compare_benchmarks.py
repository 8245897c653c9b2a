"""The table of the benchmark workflow says what got worse, and its exit code too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.compare_benchmarks import main


def files(folder: Path, count: int, *ratios: float) -> list[str]:
    folder.mkdir()
    (folder / "counts.yaml").write_text(f"counts: {{kernel: {count}}}")
    for i, ratio in enumerate(ratios):
        rows = [{"name": "row", "ratios": {"eager": {"median": ratio}}}]
        (folder / f"{i}.json").write_text(json.dumps({"rows": rows}))
    return [str(path) for path in sorted(folder.glob("*.json"))]


@pytest.mark.parametrize(
    ("count", "after", "status", "said"),
    [
        (1000, (2.0, 1.9, 0.1), 0, "| row: eager | 2.00 | 1.90 | -5.0% |"),
        (1030, (2.0,), 0, "| kernel | 1,000 | 1,030 | +3.0% |"),
        (1031, (2.0,), 1, "| kernel | 1,000 | 1,031 | +3.1% | **worse** |"),
        (1000, (1.6, 1.6, 9.0), 1, "| row: eager | 2.00 | 1.60 | -20.0% | **worse** |"),
        (1000, (), 1, "| row: eager | 2.00 |  |  | **missing** |"),
    ],
    ids=["noise", "few more instructions", "more instructions", "slower", "missing"],
)
def test_what_got_worse(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    count: int,
    after: tuple[float, ...],
    status: int,
    said: str,
) -> None:
    old, new = files(tmp_path / "old", 1000, 2.0), files(tmp_path / "new", count, *after)
    counts = [str(tmp_path / side / "counts.yaml") for side in ("old", "new")]
    options = ["--after", *new] if new else []
    assert main(["--counts", *counts, "--before", *old, *options]) == status
    assert said in capsys.readouterr().out
