from pathlib import Path

import pytest

from ifan.cli.train import override, train
from ifan.config import Config


def test_override() -> None:
    changed = override(Config(), ["training.steps=7", "training.iterations=[0.5, 0.5]", "training.augment.flip=0"])
    assert (changed.training.steps, changed.training.iterations, changed.training.augment.flip) == (7, (0.5, 0.5), 0.0)
    assert override(Config(), ["training.shares.toy=2.5"]).training.shares["toy"] == 2.5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("steps=7", "expected SECTION.KEY=VALUE"),
        ("training.steps", "expected SECTION.KEY=VALUE"),
        ("training.stepz=7", "training: unknown key 'stepz'"),
        ("training.steps=many", "training.steps: expected int; got 'many'"),
        ("training.augmentation.flip=1", "there is no section 'training.augmentation'"),
        ("training.steps=[", "is not a YAML value"),
    ],
)
def test_override_refuses(change: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        override(Config(), [change])


def test_data_option(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected NAME=PATH"):
        train(config="paper-128", data=["mtfl"], out=tmp_path / "run", mallopt=False)
    assert not (tmp_path / "run").exists()
