"""A run's network: how it begins, and how it is released."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from ifan.config import Config
from ifan.data import FaceDataset
from ifan.data.mixture import label_means
from ifan.network import IFAN
from ifan.tensorfile import load_checked
from ifan.training.checkpoint import write_folder


def build_model(config: Config, datasets: dict[str, FaceDataset] | None) -> IFAN:
    """A new network, seeded by the configuration.

    With ``datasets``, the first iteration is fed with their label means, and each dense head begins at them: zero
    weights, and as bias the mean points or the log of the mean class probabilities.
    """
    torch.manual_seed(config.training.seed)
    model = IFAN(config.network)
    if datasets is None:
        return model
    parsing, points, classes = label_means(datasets, config.network, seed=config.training.seed)
    model.set_means(parsing, points, classes)
    with torch.no_grad():
        for _, weight, _ in model.dense_heads():
            weight.zero_()
        state = model.state_dict()
        if config.network.landmarks:
            state["landmark_head.bias"].copy_(points.flatten())
        for task, mean in zip(config.network.classifications, classes.split(list(model.class_sizes)), strict=True):
            state[f"class_heads.{task.name}.bias"].copy_(mean.clamp_min(1e-4).log())
    return model


def load_weights(model: IFAN, source: Path) -> None:
    """Fill ``model`` from a model folder or a safetensors file; `CheckpointError` unless every tensor fits."""
    path = source / "model.safetensors" if source.is_dir() else source
    model.load_state_dict(load_checked(path, model.state_dict(), "this network"))


def export(model: IFAN, target: Path) -> None:
    """Write ``model.safetensors`` and ``config.json`` for ``IFAN.from_pretrained`` to folder ``target`` in one step."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
    write_folder(target, files)
