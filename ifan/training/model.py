"""A run's network: how it begins, and how it is released."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ifan.config import EPSILON, Config, NetworkConfig, TaskConfig
from ifan.data import FaceDataset
from ifan.data.mixture import Batch, label_means
from ifan.files import write_folder
from ifan.hub import Training
from ifan.layers import HeatMapHead
from ifan.network import IFAN
from ifan.refine import moved
from ifan.safetensors_io import CheckpointError, load_checked
from ifan.torch_runner import face_predictions, torch_predictions
from ifan.training.added_tasks import widened
from ifan.weights import load_network
from ifan.wiring import LEVELS


def build_model(config: Config, datasets: dict[str, FaceDataset] | None) -> IFAN:
    """A new network, seeded by the configuration.

    With ``datasets``, the first iteration is fed with their label means, and each dense head begins at them: zero
    weights, and as bias the mean points or the log of the mean class probabilities. Heat maps begin flat.
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
        if config.network.landmarks and isinstance(model.landmark_head, HeatMapHead):
            for layer in model.landmark_head.convolutions():
                layer.weight.zero_()
        elif config.network.landmarks:
            state["landmark_head.bias"].copy_(points.flatten())
        for task, mean in zip(config.network.classifications, classes.split(list(model.class_sizes)), strict=True):
            state[f"class_heads.{task.name}.bias"].copy_(mean.clamp_min(1e-4).log())
    return model


def load_weights(model: IFAN, source: Path) -> None:
    """Fill ``model`` from a model folder or a safetensors file; `CheckpointError` unless every tensor fits."""
    path = source / "model.safetensors" if source.is_dir() else source
    model.load_state_dict(load_checked(path, model.state_dict(), "this network"))


def train_only(model: IFAN, parts: Sequence[str]) -> None:
    """Freeze the parameters whose names hold none of ``parts``; none if ``parts`` is empty.

    Raises ``ValueError`` for a part that no name holds.
    """
    names = [name for name, _ in model.named_parameters()]
    for part in parts:
        if not any(part in name for name in names):
            raise ValueError(
                f"training.only: no parameter's name holds {part!r}; expected parts of names such as {names[0]!r}"
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not parts or any(part in name for part in parts))


@torch.no_grad()
def planes_before(model: IFAN, batch: Batch) -> Tensor | None:
    """Planes that a pass over ``batch`` begins with where its crops are closer ones: what ``model``, with running
    statistics, finds in the crops before, moved into these; else ``None``."""
    if batch.earlier is None:
        return None
    mode = model.training
    found = face_predictions(model.eval()(batch.earlier, iterations=1)[-1])
    model.train(mode)
    begun = moved(model.config, found, batch.reframed)
    return model.encode(torch_predictions(begun, batch.earlier.device), len(batch.reframed))


@dataclass(frozen=True)
class Fitting:
    """Tensors that `load_fitting` took, and those it left: names, and the values of this network they hold.

    ``heads`` are those whose weights read inputs as they are, while this network normalises them: until
    `ifan.training.calibration.normalise_heads` their statistics change nothing.
    """

    taken: tuple[str, ...]
    left: tuple[str, ...]
    values: int
    of: int
    heads: tuple[str, ...] = ()

    def __str__(self) -> str:
        groups = sorted({_group(name) for name in self.left}) or ["nothing"]
        return (
            f"took {len(self.taken)} of {len(self.taken) + len(self.left)} tensors ({self.values:,} of {self.of:,}"
            f" values); left as in a fresh run: {', '.join(groups)}"
        )


@torch.no_grad()
def load_fitting(model: IFAN, source: str | Path) -> Fitting:
    """Fill ``model`` with what fits of saved weights (a folder, a run, or a packaged name) of another size or variant.

    Label means are never taken, unless classifications stand behind those of the weights
    (`ifan.training.added_tasks`). A dense head is taken whole or not at all, one of a published network without the
    statistics of its inputs (`Fitting.heads`). A later iteration's normalisation that the weights lack begins as the
    first one's. A differing ``image_scale``, or an ``image_fold`` where they have none, is made up for. Landmarks that
    the weights lack begin as in a fresh run, if the same points are drawn. Raises ``ValueError`` for weights of other
    tasks, and `CheckpointError` when less than half of the convolutions' weights fit.
    """
    other = load_network(source)
    ours, theirs = model.config.tasks, other.config.tasks
    added = ours[len(theirs) :] if len(ours) >= len(theirs) and all(map(_continues, ours, theirs)) else None
    if added is None or any(task.kind != "classification" for task in added):
        raise ValueError(
            f"{source}: its tasks are {[t.name for t in theirs]} with their classes; this network's differ:"
            f" {[t.name for t in ours]}; begin from weights of the same tasks, or --add-task"
        )
    given, own = other.state_dict(), model.state_dict()
    _place_points(given, own, other.config, model.config)
    given["stem.weight"] = _stem(other, model.config)
    given = widened(given, own, (model.config.size >> (LEVELS - 1)) ** 2) if added else given
    found = {name: given.get(name, given.get(_first_iterations(name))) for name in own}
    odd = {name for name, value in found.items() if value is None or value.shape != own[name].shape}
    both = own.keys() & given.keys()  # a dense head may lack the statistics of its inputs
    lacking = {name for name in odd if found[name] is None and f"{_group(name)}.weight" in both}
    left = {_group(name) for name in odd - lacking} | set(() if added else _MEANS)
    heads = {_group(name) for name in lacking} - left
    taken = {name: value for name, value in found.items() if value is not None and _group(name) not in left}
    fit, all_ = (sum(v.numel() for v in values if v.dim() == 4) for values in (taken.values(), own.values()))
    if 2 * fit < all_:
        raise CheckpointError(
            f"{source}: only {fit:,} of {all_:,} convolution weights fit this network; use weights of the same widths"
        )
    for name, value in taken.items():
        own[name].copy_(value)
    for name in lacking:
        if _group(name) in heads:
            own[name].fill_(0.0 if name.endswith("_mean") else 1.0 - EPSILON)
    values = sum(value.numel() for value in taken.values())
    rest = tuple(name for name in own if _group(name) in left)
    return Fitting(tuple(taken), rest, values, sum(v.numel() for v in own.values()), tuple(sorted(heads)))


def _continues(task: TaskConfig, known: TaskConfig) -> bool:
    """True if a head for ``known`` can go on as one for ``task``: the same classes, or landmarks more."""
    more = task.kind == "landmarks" and set(known.classes) <= set(task.classes)
    same = task.classes == known.classes or (more and task.classes[: task.planes] == known.classes[: known.planes])
    return (task.name, task.kind) == (known.name, known.kind) and same


def _place_points(
    given: dict[str, Tensor], own: dict[str, Tensor], known: NetworkConfig, config: NetworkConfig
) -> None:
    """The landmark head's outputs ``given`` in the order of ``config``, those of points not ``known`` from ``own``."""
    if not config.landmarks or not known.landmarks or config.landmarks.classes == known.landmarks.classes:
        return
    at = torch.tensor([config.landmarks.classes.index(name) for name in known.landmarks.classes])
    for name, value in given.items():
        outputs = re.fullmatch(r"landmark_head\.(levels\.\d\.convolutions\.0\.)?(weight|bias)", name)
        if outputs and name in own and own[name].shape[1:] == value.shape[1:]:
            axes = len(value) // known.landmarks.width  # a dense head has all points' x, then their y
            points = own[name].clone().unflatten(0, (axes, -1))
            points[:, at] = value.unflatten(0, (axes, -1))
            given[name] = points.flatten(0, 1)


def _stem(given: IFAN, config: NetworkConfig) -> Tensor:
    """The stem's weight of ``given`` for images of another scale and, from unfolded ones, another fold: there each
    pixel of a block has its equal part, so that the network sees the blocks' means."""
    image, planes = given.stem_filters()
    image = image * (given.config.image_scale / config.image_scale)
    if given.config.image_fold == 1:
        block = config.image_fold**2
        image = image.repeat_interleave(block, 1) / block
    return torch.cat([image, planes], 1)


_MEANS = ("mean_parsing", "mean_points", "mean_classes")


def _first_iterations(name: str) -> str:
    """First iteration's tensor in the place of a later iteration's."""
    return re.sub(r"\.later_(?=mean|var)", ".running_", name).replace(".later_", ".")


def _group(name: str) -> str:
    """The dense head, or the tensor, that a name in the state belongs to."""
    parts = name.split(".")
    heads = {"landmark_head": 1, "class_heads": 2}
    return ".".join(parts[: heads.get(parts[0], len(parts))])


def export(model: IFAN, target: Path, training: Training) -> None:
    """Write what `IFAN.from_pretrained` reads, with a card of the run, to folder ``target`` in one step."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, training=training)
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
    write_folder(target, files)
