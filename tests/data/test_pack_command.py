"""``ifan pack``."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from ifan.cli.options import by_name
from ifan.cli.pack import pack
from ifan.data import open_dataset
from tests.support import dataset_layouts as layouts


def run(*arguments: str) -> tuple[int, str, BaseException | None]:
    app = typer.Typer()
    app.command()(pack)
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output, result.exception


def test_packs_several_datasets_and_splits(tmp_path: Path) -> None:
    fer = layouts.fer2013_folders(tmp_path / "fer")
    out = tmp_path / "out"
    arguments = ["--data", f"fer2013={fer}", "--data", "toy=toy:3", "--split", "train", "--split", "val"]
    code, output, error = run(*arguments, "--out", str(out))
    assert code == 0, error
    assert "7 samples" in output.replace("\n", "")
    for name, count in (("fer2013", 7), ("toy", 3)):
        for split in ("train", "val"):
            assert len(open_dataset(name, out / name, split)) == count
    assert run("--data", "toy=toy:3", "--out", str(tmp_path / "quiet"), "--quiet") == (0, "", None)


def test_errors_come_before_anything_is_written(tmp_path: Path) -> None:
    code, _, error = run("--data", "toy=toy:3", "--data", f"mtfl={tmp_path}", "--out", str(tmp_path / "out"))
    assert code == 1
    assert isinstance(error, ValueError)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("item", ["mtfl", "=x", "mtfl=", ""])
def test_data_option(item: str) -> None:
    with pytest.raises(ValueError, match="expected NAME=PATH"):
        by_name([item])
    assert by_name(["mtfl=/a=b"]) == {"mtfl": "/a=b"}
