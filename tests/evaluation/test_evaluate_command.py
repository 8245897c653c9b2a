"""``ifan evaluate`` from weights on the disk to table, JSON and plots."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from ifan.cli.evaluate import evaluate
from ifan.config import NetworkConfig
from ifan.network import IFAN

app = typer.Typer()
app.command()(evaluate)

CONFIG = NetworkConfig(size=32, iterations=2, growth=2, block_layers=1, stem_channels=4, up_channels=4)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run") / "model"
    IFAN(CONFIG).save_pretrained(folder)
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "160"})


def test_table_json_and_plots(saved: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "report.json"
    result = run(
        *("--weights", saved.parent, "--data", "toy=toy:6", "--split", "test", "--batch", 4, "--every-iteration"),
        *("--limit", 5, "--json", out, "--plots", tmp_path / "plots", "--verbose"),
    )
    assert result.exit_code == 0, result.output
    assert result.stderr == f"{saved.parent} on cpu; toy: 5 samples\n"
    assert "toy  5 images" in result.stdout
    assert "iteration 2" in result.stdout
    report = json.loads(out.read_text())
    assert (report["split"], report["limit"], report["weights"]) == ("test", 5, str(saved))
    tasks = report["datasets"]["toy"]["tasks"]
    assert list(tasks) == ["parsing", "landmarks", "emotion"]
    for task in tasks.values():
        assert task["images"] == 5
        assert len(task["iterations"]) == 2
    assert len(list((tmp_path / "plots").iterdir())) == 3


def test_batches_and_passes_agree(saved: Path, tmp_path: Path) -> None:
    reports = []
    for i, options in enumerate((("--batch", 1), ("--batch", 6), ("--every-iteration", "--full-resolution"))):
        assert run("--weights", saved, "--data", "toy=toy:6", "--json", tmp_path / f"{i}", *options).exit_code == 0
        reports.append(json.loads((tmp_path / f"{i}").read_text())["datasets"]["toy"]["tasks"])
    for report in reports[1:]:
        assert report["landmarks"]["nme"] == pytest.approx(reports[0]["landmarks"]["nme"], rel=1e-4)
        assert report["emotion"]["confusion"] == reports[0]["emotion"]["confusion"]
    assert reports[1]["parsing"]["mean_f"] == pytest.approx(reports[0]["parsing"]["mean_f"], rel=1e-3)
    one = run("--weights", saved, "--data", "toy=toy:6", "--json", tmp_path / "one", "--iterations", 1, "--quiet")
    assert (one.exit_code, one.output) == (0, "")
    first = json.loads((tmp_path / "one").read_text())["datasets"]["toy"]["tasks"]
    for name, task in first.items():
        assert task["iterations"][0] == pytest.approx(reports[2][name]["iterations"][0], rel=1e-3) or name == "parsing"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--weights", "nowhere", "--data", "toy=toy:2"), "weights 'nowhere': no such folder"),
        (("--data", "toy"), "--data 'toy': expected NAME=PATH"),
        (("--data", "toy=toy:2", "--data", "toy=toy:3"), "expected each dataset once"),
        (("--data", "nonsense=x"), "unknown dataset 'nonsense'"),
        (("--data", "mtfl=/nowhere"), "/nowhere"),
        (("--data", "toy=toy:2", "--split", "nonsense"), "unknown split 'nonsense'"),
    ],
)
def test_bad_input_is_one_line(saved: Path, arguments: tuple[str, ...], message: str) -> None:
    weights = () if "--weights" in arguments else ("--weights", saved)
    result = run(*weights, *arguments)
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
