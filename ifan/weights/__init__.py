"""Weights by name or path: those that ship with the package, saved models, and the runs of ``ifan train``.

Saved weights are two files in a folder, ``config.json`` and ``model.safetensors``. Both are checked before a tensor is
allocated; nothing is unpickled, nothing is downloaded.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from ifan.config import NetworkConfig, from_dict
from ifan.network import IFAN, released
from ifan.safetensors_io import load_checked, read_header

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


def load_network(name_or_path: str | Path, device: torch.device | str = "cpu") -> IFAN:
    """The network of `resolve` in eval mode, fp32 whatever the file stores.

    Raises ``ValueError`` naming the file when it is damaged, or its tensors are not those of its configuration, and for
    a device that is not there.
    """
    folder, device = resolve(name_or_path), _usable(device)
    config = read_network_config(folder / FILES[0])
    with torch.device("meta"):
        model = IFAN(config)
    path = folder / FILES[1]
    stored = {name: dtype for name, (dtype, _) in read_header(path).items()}
    own = model.state_dict()
    either = {name for name, t in own.items() if t.is_floating_point() and stored.get(name, t.dtype).is_floating_point}
    expected = {name: t.to(stored.get(name, t.dtype)) if name in either else t for name, t in own.items()}
    state = load_checked(path, expected, str(folder / FILES[0]))
    model.load_state_dict({name: t.to(device, own[name].dtype, copy=True) for name, t in state.items()}, assign=True)
    return model.eval()


def publish(source: str | Path, target: str | Path) -> None:
    """Write the weights of `resolve` to folder ``target`` for shipping: in the released graph, as fp16.

    What only training needs is folded away (`ifan.network.released`), and of a network of one iteration, whose looks do
    not carry over, what later ones have of their own; rounding to fp16 is all that changes.
    """
    network = load_network(source)
    if network.config.iterations == 1 and not network.config.carry:
        state, network = network.state_dict(), IFAN(replace(network.config, iteration_norm="shared")).eval()
        network.load_state_dict({name: state[name] for name in network.state_dict()})
    released(network).half().save_pretrained(target)


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


def _usable(device: torch.device | str) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"device {str(device)!r}: cannot be used here ({first}); use cpu") from error


def _is_saved_model(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)
