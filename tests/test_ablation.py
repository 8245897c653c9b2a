"""The ablation on drawn faces: every kind of change, what is written, and going on where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.training.faces import small_config

from benchmarks import ablation
from benchmarks.ablation import CELLS, run, table
from ifan.config import Config, load_config
from ifan.data.mixture import Mixture
from ifan.data.toy import ToyFaces

TASKS = {"celebamask": "parsing", "mtfl": "landmarks", "fer2013": "emotion"}


def faces(split: str) -> dict[str, ToyFaces]:
    return {name: ToyFaces(12, size=40, split=split, tasks=(task,)) for name, task in TASKS.items()}


def base() -> Config:
    shares = {"mtfl": 2.0, "celebamask": 2.0, "fer2013": 3.0}
    return small_config(steps=2, shares=shares, task_weights={"landmarks": 2.0})


def test_cells_are_trained_once_and_tabulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ["single-emotion", "one-norm", "alternating", "own-norm"]
    results = run(base(), faces("train"), faces("val"), tmp_path, chosen, [3])
    assert [(r["cell"], r["seed"], r["steps"]) for r in results] == [
        ("single-emotion", 3, 2), ("one-norm", 3, 2), ("alternating", 3, 6), ("own-norm", 3, 2)
    ]  # fmt: skip
    assert list(results[0]["tasks"]) == ["emotion"]
    assert {t: len(its) for t, its in results[3]["tasks"].items()} == {"parsing": 3, "landmarks": 3, "emotion": 3}
    assert all(r["seconds"] > 0 for r in results)
    text = (tmp_path / "ablation.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 3 + 3
    assert rows[0].startswith("| cell | iteration | landmarks NME % | parsing mean F | parsing overall F | emotion acc")
    assert rows[2].startswith(f"| {CELLS['single-emotion'].title} | 1 |  |  |  | ")
    assert json.loads((tmp_path / "ablation.json").read_text())["results"] == results

    monkeypatch.setattr(ablation, "Trainer", None)  # nothing is trained again
    assert run(base(), faces("train"), faces("val"), tmp_path, chosen, [3]) == results
    longer = replace(base(), training=replace(base().training, steps=3))
    with pytest.raises(ValueError, match="holds a run of other settings; name another --out"):
        run(longer, faces("train"), faces("val"), tmp_path, chosen, [3])


def test_a_cell_that_was_stopped_goes_on(tmp_path: Path) -> None:
    """Stopped after training, before its measurement; and before that, with a checkpoint only."""
    arguments = (base(), 0, tmp_path / "cell", faces("train"), faces("val"))
    whole = ablation.run_cell("task-norm", *arguments)
    (tmp_path / "cell" / "result.json").unlink()
    assert ablation.run_cell("task-norm", *arguments) == whole
    (tmp_path / "cell" / "result.json").unlink()
    for file in (tmp_path / "cell" / "model").iterdir():
        file.unlink()
    (tmp_path / "cell" / "model").rmdir()
    assert ablation.run_cell("task-norm", *arguments) == whole


@pytest.mark.parametrize("name", CELLS)
def test_every_cell_sees_the_same_samples(name: str) -> None:
    """Of each dataset it trains on, as many as any other cell, to within one a dataset."""
    full = load_config("paper-64")
    datasets = faces("train")
    config = CELLS[name].change(replace(full, training=replace(full.training, steps=10)), datasets)
    used = {n: d for n, d in datasets.items() if config.training.shares.get(n, 1.0) > 0}
    mixture = Mixture(used, config.network, config.training)
    seen = dict.fromkeys(used, 0)
    for step in range(config.training.steps):
        for dataset, count in mixture.counts(step).items():
            seen[dataset] += count
    expected = {"mtfl": 130, "fer2013": 260, "celebamask": 50}
    assert all(abs(count - expected[dataset]) <= 1 for dataset, count in seen.items())
    assert sorted(used) == ([k for k, t in TASKS.items() if name == f"single-{t}"] or sorted(TASKS))


def test_table_of_several_seeds() -> None:
    def result(seed: int, nme: float) -> dict[str, object]:
        return {"cell": "task-norm", "seed": seed, "seconds": 10 * seed, "tasks": {"landmarks": [{"nme": nme}]}}

    last = table([result(1, 0.06), result(2, 0.08)]).splitlines()[-1]
    assert last.split("|")[2:-1] == [" 1 ", " 7.00 ± 1.41 ", " 2 ", " 15 "]
