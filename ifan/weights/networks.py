"""Saved models as PyTorch networks, and networks as saved models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ifan.device import usable_device
from ifan.network import IFAN, fold_training_extras
from ifan.weights import SavedModel, load_model


def load_network(name_or_path: str | Path, device: torch.device | str = "cpu") -> IFAN:
    """The PyTorch network of `load_model` in eval mode on ``device``.

    Raises ``ValueError`` as `load_model` does and for a device that is not there.
    """
    place = usable_device(device)
    return network_of(load_model(name_or_path)).to(place)


def model_of(network: IFAN) -> SavedModel:
    """The model with copies of a PyTorch network's tensors."""
    tensors = {name: np.array(t.detach().cpu().float().numpy()) for name, t in network.state_dict().items()}
    return SavedModel(network.config, tensors)


def network_of(model: SavedModel) -> IFAN:
    """The PyTorch network with copies of a model's tensors, in eval mode on the CPU."""
    with torch.device("meta"):
        network = IFAN(model.config)
    tensors = {name: torch.from_numpy(value.copy()) for name, value in model.tensors.items()}
    network.load_state_dict(tensors, assign=True)
    return network.eval()


def publish(source: str | Path, target: str | Path) -> None:
    """Write the weights of `resolve` to folder ``target`` for shipping: in the released graph, as fp16.

    What only training needs is folded away (`ifan.network.fold_training_extras`), and of a network of one iteration,
    what later ones have of their own; rounding to fp16 is all that changes.
    """
    network = load_network(source)
    if network.config.iterations == 1:
        state, network = network.state_dict(), IFAN(replace(network.config, iteration_norm="shared")).eval()
        network.load_state_dict({name: state[name] for name in network.state_dict()})
    fold_training_extras(network).half().save_pretrained(target)
