"""A classification added to saved weights: old predictions stay, the new head learns, mistakes are told first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ifan.cli.train import train
from ifan.config import Config, NetworkConfig
from ifan.data.mtfl import MTFL
from ifan.data.sample import FaceSample
from ifan.network import IFAN
from ifan.training import Trainer
from ifan.training.added_tasks import add_tasks
from ifan.training.trainer import RunOptions
from tests.support.faces import small_config

NETWORK = NetworkConfig(size=32, growth=4, stem_channels=8, up_channels=8, iterations=2)


@dataclass(frozen=True)
class Smiles:
    """Bright and dark pictures."""

    count: int = 12
    name: str = "mine"
    margin: float = 1.0

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        return {"smile": ("no", "yes")}

    @property
    def tasks(self) -> frozenset[str]:
        return frozenset(self.classes)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> FaceSample:
        return FaceSample(
            str(index), np.full((40, 40, 3), 60 + 120 * (index % 2), np.uint8), labels=self.labels_of(index)
        )

    def labels_of(self, index: int) -> dict[str, int]:
        return {"smile": index % 2}


def saved(folder: Path, **network: Any) -> IFAN:
    """Random weights and statistics of a network of three tasks, in ``folder``."""
    torch.manual_seed(3)
    model = IFAN(replace(NETWORK, **network)).eval()
    for name, value in model.state_dict().items():
        if "running" in name or "later" in name:
            value.uniform_(0.5, 1.5)
    model.mean_points.uniform_(-0.3, 0.3)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "network",
    [{}, {"landmark_head": "heat_maps", "iteration_norm": "separate", "normalise_heads": True}],
    ids=["as released", "as packaged"],
)
def test_old_predictions_stay_and_the_new_head_learns(tmp_path: Path, network: dict[str, Any]) -> None:
    before = saved(tmp_path / "given", **network)
    config = add_tasks(small_config(steps=3, shares={"mine": 1.0}), tmp_path / "given", ["smile=no,yes"], {}, True)
    options = RunOptions(init=tmp_path / "given", partial=True)
    trainer = Trainer(config, {"mine": Smiles()}, tmp_path / "run", options=options)
    start = trainer.model.class_heads["smile"].weight.clone()
    trainer.run()
    assert not torch.equal(trainer.model.class_heads["smile"].weight, start)
    after, images = IFAN.from_pretrained(tmp_path / "run" / "model"), torch.rand(3, 3, 32, 32) * 255
    assert after.config.tasks[-1].classes == ("no", "yes")
    for ours, theirs in zip(after(images), before(images), strict=True):
        pairs = [(ours.parsing_logits, theirs.parsing_logits), (ours.points, theirs.points)]
        for new, old in (*pairs, (ours.class_logits["emotion"], theirs.class_logits["emotion"])):
            assert (new - old).abs().max() <= 1e-5 * old.abs().max()
        assert ours.class_logits["smile"].shape == (3, 2)


def test_classes_come_from_the_data(tmp_path: Path) -> None:
    saved(tmp_path / "given")
    for name in ("off", "on"):
        (tmp_path / "hats" / "train" / name).mkdir(parents=True)
    data = {"mtfl": "nowhere", "hat": f"folders={tmp_path / 'hats'}"}
    config = add_tasks(Config(), tmp_path / "given", ["smile", "hat"], data, False)
    assert [(t.name, t.classes) for t in config.network.tasks[3:]] == [
        ("smile", MTFL.classes["smile"]),
        ("hat", ("off", "on")),
    ]
    assert config.training.only == ()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"add_task": ["emotion"]}, "has it already"),
        ({"add_task": ["age"]}, "no dataset names its classes"),
        ({"add_task": ["age=old"]}, "no dataset names its classes"),
        ({"add_task": ["smile=no,yes"], "init": None}, "expected --init WEIGHTS --add-task NAME"),
        ({"freeze": True}, "expected --init WEIGHTS --add-task NAME"),
    ],
    ids=["known", "no classes", "one class", "no weights", "nothing to add"],
)
def test_mistakes_are_told_before_data_is_read(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    saved(tmp_path / "given")
    given = {"init": tmp_path / "given", "mallopt": False, **options}
    with pytest.raises(ValueError, match=said):
        train(config="paper-64", data=["mtfl=nowhere"], out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()
