"""Saved networks carry a card that claims nothing untrue, and load strictly: from the package, a folder, or the Hub."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from ifan import weights
from ifan.config import NetworkConfig
from ifan.hub import Training, model_card
from ifan.network import IFAN
from ifan.training import Trainer
from ifan.training.trainer import RunOptions
from tests.support.faces import small_config, three_datasets

TINY = NetworkConfig(size=32, growth=2, block_layers=1, stem_channels=4, up_channels=4)
BOASTS = ("apache-2.0", "pushed to the Hub", "More Information Needed", "model_hub_mixin")


def header(card: str) -> str:
    return card.split("---")[1]


def test_card_of_unknown_weights_claims_nothing(tmp_path: Path) -> None:
    IFAN(TINY).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert not [boast for boast in BOASTS if boast in card]
    assert "license: unknown" in header(card)
    assert "Not recorded" in card


def test_card_of_a_run_has_its_data_figures_and_licence(tmp_path: Path) -> None:
    def validate(model: IFAN, passes: int) -> dict[str, dict[str, float | None]]:
        return {"points/landmarks": {"nme": 0.0625, "none": None}}

    given = IFAN(small_config().network)
    given.save_pretrained(tmp_path / "given")
    datasets = three_datasets()
    options = RunOptions(init=tmp_path / "given", validate=validate)
    Trainer(small_config(steps=1), datasets, tmp_path / "run", options=options).run()
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "license_name: research-use-only" in header(card)
    assert "| points/landmarks | nme | 0.0625 |" in card
    assert "They began from given." in card
    assert str(tmp_path) not in card
    assert all(f"{name} ({len(dataset):,} samples)" in card for name, dataset in datasets.items())


@pytest.mark.parametrize(
    ("training", "licence"),
    [
        (Training({"toy": 8}, 1), "license: apache-2.0"),
        (Training({"toy": 8}, 1, init="ifan-128"), "license_name: research-use-only"),
        (Training({"toy": 8, "mtfl": 9}, 1), "license_name: research-use-only"),
        (Training({"mine": 9}, 1), "license_name: research-use-only"),
    ],
    ids=["drawn", "drawn on given weights", "mixed", "own"],
)
def test_licence_follows_the_data(training: Training, licence: str) -> None:
    assert licence in header(model_card(TINY, training))


def test_card_of_ones_own_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    IFAN(TINY).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    IFAN(TINY).save_pretrained(tmp_path, training=Training({"toy": 1}, 1))
    assert "license: apache-2.0" in (tmp_path / "README.md").read_text()


def test_packaged_weights_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    name = weights.available()[0]
    assert IFAN.from_pretrained(name).config == weights.load_network(name).config


@pytest.mark.parametrize(("edit", "said"), [("missing", "is missing"), ("extra", "is not part of it")])
def test_every_tensor_must_be_there_and_no_other(tmp_path: Path, edit: str, said: str) -> None:
    IFAN(TINY).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    if edit == "missing":
        state.pop("stem.weight")
    else:
        state["extra"] = torch.zeros(1)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=said):
        IFAN.from_pretrained(tmp_path)


def test_models_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    IFAN(TINY).save_pretrained(tmp_path)

    def download(name: str, file: str, **_: object) -> str:
        if name != "some/model":
            raise OSError("404 Client Error\nmore")
        return str(tmp_path / file)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=download))
    assert IFAN.from_pretrained("some/model").config == TINY
    with pytest.raises(
        ValueError, match=r"other/model: no such folder, and not found on the Hub \(404 Client Error\)$"
    ):
        IFAN.from_pretrained("other/model")
    with pytest.raises(ValueError, match="no such folder"):
        IFAN.from_pretrained("nothing")
