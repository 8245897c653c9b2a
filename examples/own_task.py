"""A task of one's own: train it on pictures in folders, one a class, and use it.

    python examples/own_task.py hat hats runs/hats 500

``hats`` holds ``with_hat/*.jpg``, ``without_hat/*.jpg``; or these in ``train``, ``val`` and ``test``. Each
picture shows one face. Needs PyTorch: pip install 'ifan[train]'.
"""

from __future__ import annotations

import sys
from pathlib import Path

import ifan
from ifan.config import Config, NetworkConfig, TaskConfig, TrainingConfig
from ifan.data import open_dataset
from ifan.evaluation import evaluate
from ifan.training import Trainer


def main(task: str, pictures: str, out: str, steps: str = "500", size: str = "64") -> None:
    """Train the classification ``task`` for so many ``steps``; say how well it does on pictures it has not seen."""
    train, val = (open_dataset(task, f"folders={pictures}", split) for split in ("train", "val"))
    classes = train.classes[task]
    network = NetworkConfig(size=int(size), iterations=1, tasks=(TaskConfig(task, "classification", classes),))
    training = TrainingConfig(steps=int(steps), batch_size=16, shares={task: 1.0})
    trainer = Trainer(Config(network, training), {task: train}, Path(out))
    trainer.run()

    analyzer = ifan.load(Path(out) / "model", detector=None)  # each picture is a face
    for index in range(min(3, len(val))):
        name, probability = analyzer(val[index].image)[0].best(task)
        print(f"{classes[val.labels_of(index)[task]]}: {name} {probability:.0%}")
    report = evaluate(ifan.IFAN.from_pretrained(Path(out) / "model"), {task: val})
    measured = report["datasets"][task]["tasks"][task]
    print(f"accuracy {measured['accuracy']:.0%} of {len(val)} pictures")


if __name__ == "__main__":
    main(*sys.argv[1:])
