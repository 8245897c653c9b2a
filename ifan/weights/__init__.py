"""Weights by name or path: those that ship with the package, saved models, and the runs of ``ifan train``.

Saved weights are two files in a folder, ``config.json`` and ``model.safetensors``. Both are checked before a tensor is
allocated; nothing is unpickled, nothing is downloaded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ifan.config import NetworkConfig, from_dict
from ifan.optional import lazy
from ifan.safetensors_io import load_floats
from ifan.weights.shapes import tensor_shapes

if TYPE_CHECKING:
    from ifan.weights.networks import load_network, model_of, network_of, publish

__all__ = [
    "DEFAULT",
    "SavedModel",
    "available",
    "load_model",
    "load_network",
    "model_of",
    "network_of",
    "publish",
    "read_network_config",
    "resolve",
]

_NETWORKS = ("load_network", "model_of", "network_of", "publish")
__getattr__ = lazy(__name__, dict.fromkeys(_NETWORKS, "ifan.weights.networks"))

DEFAULT = "ifan-128"
"""The packaged weights that are used where none are named."""

FILES = ("config.json", "model.safetensors")
PACKAGED = Path(__file__).parent
MAX_CONFIG = 1 << 20
"""Largest ``config.json`` read, in bytes."""


def available() -> list[str]:
    """Names of the weights that ship with the package."""
    return sorted(folder.name for folder in PACKAGED.iterdir() if _is_saved_model(folder))


def resolve(name_or_path: str | Path) -> Path:
    """The folder with ``config.json`` and ``model.safetensors`` that is meant.

    A path comes first: such a folder itself, or a run folder with one named ``model``. Then a name of `available`.
    Raises ``ValueError`` listing what there is.
    """
    path = Path(name_or_path).expanduser()
    for folder in (path, path / "model", PACKAGED / str(name_or_path)):
        if _is_saved_model(folder):
            return folder
    names = ", ".join(available()) or "none"
    found = "no such folder" if not path.exists() else f"no {' and '.join(FILES)} there or in its folder model/"
    raise ValueError(f"weights {str(name_or_path)!r}: {found}; pass a saved model, a run, or a packaged name ({names})")


@dataclass(frozen=True, slots=True)
class SavedModel:
    """A network without a framework: its configuration and its tensors by name, float32.

    ``folder``: where it was read from; ``None`` if it was made from a network in memory.
    """

    config: NetworkConfig
    tensors: dict[str, np.ndarray]
    folder: Path | None = None


def load_model(name_or_path: str | Path) -> SavedModel:
    """The saved model of `resolve`, float32 whatever the file stores. Needs no PyTorch.

    Raises ``ValueError`` naming the file when it is damaged, or its tensors are not those of its configuration.
    """
    folder = resolve(name_or_path)
    config_file, tensors_file = (folder / name for name in FILES)
    config = read_network_config(config_file)
    return SavedModel(config, load_floats(tensors_file, tensor_shapes(config), str(config_file)), folder)


def read_network_config(path: Path) -> NetworkConfig:
    """The network of a saved model's ``config.json``; ``ValueError`` names the file and the key that is wrong."""
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise ValueError(f"more than {MAX_CONFIG} bytes")
        tree = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(tree, dict):
            raise ValueError("not a JSON object")
        return from_dict(NetworkConfig, tree.get("network", tree), "network")
    except (OSError, ValueError, RecursionError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{path}: not the configuration of a saved network ({why}); copy the model again") from error


def _is_saved_model(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)
