"""Train on a Ray cluster: one process a worker, each with its share of every batch.

    python examples/ray_train.py paper-64 runs/paper-64 4 mtfl=packed/mtfl fer2013=packed/fer2013

Every worker reads the data and the first one writes the run, so both lie on a disk that all of them share. Needs Ray
and PyTorch: pip install 'ifan[train]' 'ray[train]'. With ``ray.init(address="auto")`` the same lines run on a cluster.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

from ifan.config import load_config
from ifan.data import open_dataset
from ifan.training import Trainer


def work(settings: dict[str, Any]) -> None:
    """A worker's part of the run; Ray has told PyTorch where the other workers are."""
    datasets = {name: open_dataset(name, path, "train") for name, path in settings["data"].items()}
    Trainer(settings["config"], datasets, settings["out"]).run()


def main(config: str, out: str, workers: str, *data: str) -> None:
    """Train ``config``, a preset or a YAML file, on ``data`` (NAME=PATH each) into the folder ``out``."""
    paths = dict(entry.split("=", 1) for entry in data)
    settings = {
        "config": load_config(config),
        "out": Path(out).absolute(),  # workers run in a folder of their own
        "data": {name: str(Path(path).absolute()) if Path(path).exists() else path for name, path in paths.items()},
    }
    TorchTrainer(work, train_loop_config=settings, scaling_config=ScalingConfig(num_workers=int(workers))).fit()
    print(f"weights in {Path(out) / 'model'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
