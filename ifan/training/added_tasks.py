"""Classifications added to saved weights: the configuration, checked before any data is read, and the widened tensors.

Whatever joins the graph for a task added last stands last in its concatenation (`ifan.wiring`). So the saved values
are the leading block of every widened tensor. With zero weights behind them the old tasks' predictions stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ifan.config import Config, TaskConfig
from ifan.data import class_names
from ifan.weights import read_network_config, resolve

if TYPE_CHECKING:
    from torch import Tensor


def add_tasks(config: Config, init: str | Path, added: Sequence[str], data: Mapping[str, str], freeze: bool) -> Config:
    """``config`` with the network of the weights ``init`` and one classification more for each of ``added``.

    An item is ``NAME=CLASS,CLASS,...``, or ``NAME`` alone if one of ``data``, dataset names and paths, names its
    classes without reading a picture. With ``freeze`` nothing but the new heads is trained. Raises ``ValueError`` for a
    name that the weights have already, or classes that nobody names.
    """
    network = read_network_config(resolve(init) / "config.json")
    known = {task.name for task in network.tasks}
    tasks = list(network.tasks)
    for item in added:
        name, _, listed = item.partition("=")
        if name in known:
            raise ValueError(f"--add-task {name}: {init} has it already; leave it out, or choose another name")
        named = [class_names(*at) for at in data.items()]
        found = [known_classes[name] for known_classes in named if name in known_classes]
        classes = tuple(filter(None, listed.split(","))) or next(iter(found), ())
        if len(classes) < 2:
            raise ValueError(f"--add-task {name}: no dataset names its classes; say --add-task {name}=CLASS,CLASS")
        tasks.append(TaskConfig(name, "classification", classes))
        known.add(name)
    new = [task.name for task in tasks[len(network.tasks) :]]
    training = config.training
    if freeze:
        training = replace(training, only=tuple(f"class_heads.{name}." for name in new))
    return replace(config, network=replace(network, tasks=tuple(tasks)), training=training)


def widened(given: Mapping[str, Tensor], own: Mapping[str, Tensor], pixels: int) -> dict[str, Tensor]:
    """Tensors ``given`` in the shapes of ``own``, a network of the same tasks and classifications after them.

    What is new is zero in weights; a new task's normalisation is that of the last given task; label means are those of
    ``own``. ``pixels``: of the map that a dense head for points reads, whose inputs are all channels of each pixel.
    """
    found = dict(given)
    for name, old in given.items():
        new = own.get(name)
        if new is None or new.dim() != old.dim() or new.shape == old.shape:
            continue
        value = new.clone() if ".norm" in name or name == "mean_classes" else new.new_zeros(new.shape)
        if name.startswith("landmark_head.") and name.count(".") < 3 and old.dim() == 2:
            value, old = (x.unflatten(1, (pixels, -1)) for x in (value, old))
        value[tuple(slice(count) for count in old.shape)] = old
        if ".norm" in name:
            value[old.shape[0] :, : old.shape[1]] = old[-1].to(value.dtype)
        found[name] = value.reshape(new.shape)
    return found
