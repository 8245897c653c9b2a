"""A trained network in the released graph: what only training needs is folded into the weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ifan.config import EPSILON, NetworkConfig
from ifan.weights import SavedModel
from ifan.weights.shapes import head_name, tensor_shapes


def folded(model: SavedModel) -> SavedModel:
    """The same function with ``image_scale`` 1, without normalised heads, with a normalisation each task.

    A normalisation that iterations do not share has no place in the released graph: it stays, and with it the heads'
    normalisation, which then differs between iterations (`folded_head`). So does ``image_fold``. Tensors that do not
    change are those of ``model``.
    """
    config, plain = model.config, folded_config(model.config)
    shapes = tensor_shapes(plain)
    tensors = {name: np.broadcast_to(model.tensors[name], shape) for name, shape in shapes.items()}
    stem = np.array(tensors["stem.weight"])
    stem[:, : config.image_channels] *= config.image_scale
    tensors["stem.weight"] = stem
    for name in map(head_name, config.tasks):
        if config.normalise_heads and not plain.normalise_heads and f"{name}.norm.running_mean" in model.tensors:
            weight, bias = folded_head(model, name, later=False)
            tensors[f"{name}.weight"] = weight.astype(stem.dtype)
            tensors[f"{name}.bias"] = bias.astype(stem.dtype)
    return SavedModel(plain, tensors, model.folder)


def folded_config(config: NetworkConfig) -> NetworkConfig:
    """Configuration of what `folded` makes of a model of ``config``."""
    heads = config.normalise_heads and config.iteration_norm != "shared"
    return replace(config, image_scale=1.0, normalise_heads=heads, task_norm=True)


def folded_head(model: SavedModel, name: str, later: bool) -> tuple[np.ndarray, np.ndarray]:
    """Weight ``(outputs, inputs)`` and bias, float64, of the plain layer that computes what dense head ``name`` does
    in the first or a later iteration."""
    tensors = model.tensors
    weight, bias = (tensors[f"{name}.{part}"].astype(np.float64) for part in ("weight", "bias"))
    if not model.config.normalise_heads:
        return weight, bias
    kind = "later" if later and model.config.iteration_norm != "shared" else "running"
    mean, var = (tensors[f"{name}.norm.{kind}_{part}"].astype(np.float64) for part in ("mean", "var"))
    weight = weight * (1 / np.sqrt(var + EPSILON))
    return weight, bias - (weight * mean).sum(1)
