import subprocess
import sys
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


def test_a_run_of_two_steps_ends_quietly(tmp_path: Path) -> None:
    """Its last line says where the model is: no library complains about objects that nothing freed."""
    settings = ("network.size=32", "training.batch_size=4", "training.warmup_steps=1", "training.shares={}")
    options = [part for setting in settings for part in ("--set", setting)]
    out = tmp_path / "run"
    options += ["--steps", "2", "--iterations", "1", "--threads", "1", "--out", str(out)]
    command = [sys.executable, "-m", "ifan.cli.main", "train", "--config", "paper-64", "--data", "toy=toy:8"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).splitlines()[-1] == f"finished after step 2: {out / 'model'}"
    assert (out / "model" / "model.safetensors").exists()
