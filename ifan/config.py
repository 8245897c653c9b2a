"""Configuration: frozen dataclasses, strict YAML in and out, presets by name.

A configuration file has two sections, ``network`` and ``training``. Unknown keys, missing keys without a default and
values of the wrong type raise ``ValueError`` naming the key, what was expected and what came.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

Kind = Literal["parsing", "landmarks", "classification"]
KINDS: tuple[Kind, ...] = ("parsing", "landmarks", "classification")

PARSING_CLASSES = ("background", "skin", "brow", "eye", "nose", "upper_lip", "inside_mouth", "lower_lip", "hair")
POINT_NAMES = ("left_eye", "right_eye", "nose", "left_mouth_corner", "right_mouth_corner")
POINT_NAMES_68 = (
    *(f"left_jaw_{i}" for i in range(1, 9)), "chin", *(f"right_jaw_{i}" for i in range(8, 0, -1)),
    *(f"left_brow_{i}" for i in range(1, 6)), *(f"right_brow_{i}" for i in range(5, 0, -1)),
    "nose_bridge_1", "nose_bridge_2", "nose_bridge_3", "nose",
    "left_nostril_1", "left_nostril_2", "nose_base", "right_nostril_2", "right_nostril_1",
    *(f"left_eye_{i}" for i in range(1, 7)), *(f"right_eye_{i}" for i in (4, 3, 2, 1, 6, 5)),
    "left_mouth_corner", "left_upper_lip_1", "left_upper_lip_2", "upper_lip",
    "right_upper_lip_2", "right_upper_lip_1", "right_mouth_corner",
    "right_lower_lip_1", "right_lower_lip_2", "lower_lip", "left_lower_lip_2", "left_lower_lip_1",
    "left_inner_corner", "left_inner_upper_lip", "inner_upper_lip", "right_inner_upper_lip",
    "right_inner_corner", "right_inner_lower_lip", "inner_lower_lip", "left_inner_lower_lip",
)  # fmt: skip
"""The 68 points of 300-W (Sagonas et al., 2013) in its order; left and right as seen in the picture, pairs numbered
alike. The nose's tip and the mouth's corners are those of `POINT_NAMES`."""

EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")

EPSILON = 1e-3
"""Added to the variance by every normalisation of the network."""

IGNORE = 255
"""Parsing label of a pixel that no loss and no metric counts."""

UNLABELLED = -1
"""Class id of a sample that a classification task says nothing about."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class TaskConfig:
    """One task: ``classes`` names the parsing classes, the points (as seen in the picture) or the categories.

    ``drawn``: how many of the points, the first ones, are drawn as planes and so fed back; ``None``: all.
    ``temperature``: what a classification's logits are divided by where users see probabilities, so that these are as
    often right as they say; what is fed back and trained is without it.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    drawn: int | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _require(
            bool(self.name) and "." not in self.name,
            f"task {self.name!r}: expected a name without dots, such as 'emotion'; rename the task",
        )
        _require(self.kind in KINDS, f"task {self.name!r}: kind must be one of {KINDS}; got {self.kind!r}")
        _require(len(self.classes) > 0, f"task {self.name!r}: classes is empty; list at least one name")
        _require(len(set(self.classes)) == len(self.classes), f"task {self.name!r}: class names repeat: {self.classes}")
        _require(
            0.01 <= self.temperature <= 100 and (self.temperature == 1 or self.kind == "classification"),
            f"task {self.name!r}: temperature is for classifications, from 0.01 to 100; got {self.temperature}",
        )
        _require(
            self.drawn is None or (self.kind == "landmarks" and 1 <= self.drawn <= len(self.classes)),
            f"task {self.name!r}: drawn is for landmarks, from 1 to the number of points; got {self.drawn}",
        )

    @property
    def width(self) -> int:
        """Number of classes or points."""
        return len(self.classes)

    @property
    def planes(self) -> int:
        """Planes this task draws: one a class or a drawn point."""
        return self.width if self.drawn is None else self.drawn


PAPER_TASKS = (
    TaskConfig("parsing", "parsing", PARSING_CLASSES),
    TaskConfig("landmarks", "landmarks", POINT_NAMES),
    TaskConfig("emotion", "classification", EMOTIONS),
)


LARGEST = {"size": 4096, "iterations": 64, "growth": 512, "block_layers": 64, "blocks": 5,
           "stem_channels": 4096, "up_channels": 4096, "point_radius": 256, "image_fold": 8}  # fmt: skip
"""Bounds of what a file from outside may ask for before anything is allocated."""

MAX_BYTES = 1 << 20
"""Largest configuration file that is read."""

MAX_DEPTH = 32
"""Levels of a configuration file; ours have four."""


@dataclass(frozen=True)
class NetworkConfig:
    """The graph. Defaults are the released three-task network at 128 px (PAPER: iFAN, arXiv 1711.06055).

    ``size`` is the side of planes and parsing logits, a multiple of ``2**blocks``. Images have ``image_fold`` times
    that side, and their blocks of ``image_fold`` squared pixels are folded into channels (space to depth) before the
    stem; 1 as released. ``image_scale`` (a factor on the image after its means are taken off) and ``normalise_heads``
    (normalised inputs of the dense heads) are not in the released graph. They change what weights mean, not what the
    network can compute (`fold_training_extras` folds them away), and training from scratch with Adam, whose steps do
    not know the inputs' scale, needs them. ``landmark_head``: points by a dense layer from the coarsest map that they
    reach, as released, or as means of ``heat_maps`` (`ifan.layers.HeatMapHead`). Without ``task_norm`` all tasks share
    one set of normalisation parameters and statistics. ``iteration_norm``: iterations after the first, which see
    predictions instead of constant means, share the first one's normalisation, as released, or have running
    ``statistics`` of their own, or all of it ``separate``. ``iterations``: passes of the network, each after the first
    begun with what those before it found. They see the same crop, as released, or with ``reframe`` a closer one framed
    by the points found so far (`ifan.refine`). Tasks come in the order parsing, landmarks, classifications; at most one
    parsing and one landmark task.
    """

    size: int = 128
    tasks: tuple[TaskConfig, ...] = PAPER_TASKS
    iterations: int = 3
    reframe: bool = False
    feedback_gradient: bool = False
    growth: int = 12
    block_layers: int = 3
    blocks: int = 5
    stem_channels: int = 48
    up_channels: int = 128
    point_radius: int = 5
    image_fold: int = 1
    image_scale: float = 1.0
    normalise_heads: bool = False
    landmark_head: Literal["dense", "heat_maps"] = "dense"
    task_norm: bool = True
    iteration_norm: Literal["shared", "statistics", "separate"] = "shared"
    dropout: float = 0.3

    def __post_init__(self) -> None:
        for name, largest in LARGEST.items():
            value = getattr(self, name)
            _require(1 <= value <= largest, f"network.{name} must be between 1 and {largest}; got {value}")
        side = 2**self.blocks
        _require(self.size % side == 0, f"network.size must be a multiple of {side}; got {self.size}")
        _require(0 <= self.dropout < 1, f"network.dropout must be in [0, 1); got {self.dropout}")
        _require(self.up_channels % 4 == 0, f"network.up_channels must be a multiple of 4; got {self.up_channels}")
        _require(self.blocks == 5, f"network.blocks must be 5, where the three re-encoded maps join; got {self.blocks}")
        names = [t.name for t in self.tasks]
        _require(len(names) > 0, "network.tasks is empty; list at least one task")
        _require(len(set(names)) == len(names), f"network.tasks: names repeat: {names}")
        kinds = [KINDS.index(t.kind) for t in self.tasks]
        _require(
            kinds == sorted(kinds) and kinds.count(0) <= 1 and kinds.count(1) <= 1,
            f"network.tasks must be at most one parsing, at most one landmark task, then classifications; got {names}",
        )
        _require(
            self.reframe or all(t.planes == t.width for t in self.tasks),
            "network.tasks: points can be left undrawn only where reframe is true",
        )
        self.check_iterations(self.iterations)

    def check_iterations(self, iterations: int) -> int:
        """``iterations`` if this network can make so many; else raises ``ValueError``."""
        _require(iterations >= 1, f"iterations must be at least 1; got {iterations}")
        points = self.landmarks.classes if self.landmarks else ()
        _require(
            iterations == 1 or not self.reframe or set(POINT_NAMES) <= set(points),
            f"iterations: expected a network that finds {', '.join(POINT_NAMES)} to reframe a face for {iterations} "
            f"iterations; this one has {[task.name for task in self.tasks]}; use 1, or reframe: false",
        )
        return iterations

    def needed(self, tasks: Collection[TaskConfig], iterations: int) -> list[str]:
        """Names of what each pass over a crop has to predict for ``tasks``, in order: all where a later crop begins
        with it."""
        return [t.name for t in self.tasks if t in tasks or (self.reframe and iterations > 1)]

    @property
    def iterations_per_crop(self) -> int:
        """Iterations that see the same crop: one if the network reframes, else all."""
        return 1 if self.reframe else self.iterations

    def task(self, name: str) -> TaskConfig:
        """The task of that name; ``ValueError`` lists the known ones."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise ValueError(f"unknown task {name!r}; this network has {[t.name for t in self.tasks]}")

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.size * self.image_fold

    @property
    def image_channels(self) -> int:
        """Channels of the folded image: the first ones that the stem reads."""
        return 3 * self.image_fold**2

    @property
    def parsing(self) -> TaskConfig | None:
        """The parsing task; ``None`` without one."""
        return next((t for t in self.tasks if t.kind == "parsing"), None)

    @property
    def landmarks(self) -> TaskConfig | None:
        """The landmark task; ``None`` without one."""
        return next((t for t in self.tasks if t.kind == "landmarks"), None)

    @property
    def classifications(self) -> tuple[TaskConfig, ...]:
        """The classification tasks, in their order."""
        return tuple(t for t in self.tasks if t.kind == "classification")


@dataclass(frozen=True)
class LossConfig:
    """The masked multi-task loss (`ifan.ops.hybrid_loss`). ``parsing_class_weights`` empty = all ones."""

    parsing_class_weights: tuple[float, ...] = ()
    parsing_smoothing: float = 0.0
    class_smoothing: float = 0.0
    points: Literal["wing", "smooth_l1", "l2"] = "wing"
    wing_width: float = 0.1
    wing_curvature: float = 0.02


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of a training crop; the geometric ones move image, label map and points together.

    ``shift`` is in crop sides, ``scale`` multiplies the crop's side (larger = smaller face), ``rotate`` in degrees.
    The rest are probabilities, or strengths in [0, 1].
    """

    flip: float = 0.5
    shift: float = 0.06
    scale: tuple[float, float] = (0.8, 1.2)
    wide: float = 0.0
    """Share of the crops that show the whole head and what is around it: their scale is between ``scale``'s larger one
    and ``widest``."""
    widest: float = 2.2
    rotate: float = 15.0
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.3
    grey: float = 0.2
    low_resolution: float = 0.2
    blur: float = 0.1
    noise: float = 0.1
    erase: float = 0.1


@dataclass(frozen=True)
class TrainingConfig:
    """Cross-dataset hybrid training. ``shares`` are samples a dataset gives to a batch, relative to each other; a
    dataset plugged in without a share has share 1, and shares of absent datasets are ignored."""

    seed: int = 0
    steps: int = 1000
    batch_size: int = 44
    shares: dict[str, float] = field(default_factory=lambda: {"mtfl": 16.0, "fer2013": 24.0, "celebamask": 4.0})
    batches: Literal["hybrid", "alternating"] = "hybrid"
    """Alternating: each hybrid batch is split, one step a dataset in turn (so as many times the steps, all smaller)."""
    repeats: dict[str, int] = field(default_factory=dict)
    """Times that an epoch holds each sample of a rare category, ``{"pose.left_profile": 3}``; all others once."""
    task_weights: dict[str, float] = field(default_factory=dict)
    weighting: Literal["fixed", "uncertainty", "famo"] = "fixed"
    iterations: tuple[float, ...] = (1.0,)
    """Probability of training with 1, 2, ... iterations at a step."""
    refine_share: float = 0.0
    """Share of the steps that train an iteration in a closer crop (`ifan.refine`): a pass that begins with what the
    network finds in another crop of the same picture, moved into its own."""
    feedback_warmup: int = 0
    """Steps over which the planes that are fed back turn from the label means into the predictions. Weights that know
    only the means take later iterations for first ones to begin with, instead of being thrown off."""
    supervise: Literal["last", "all"] = "last"
    """Iterations of a step that are trained: the last, or each one, with the mean of their losses."""
    only: tuple[str, ...] = ()
    """Parts of names: parameters whose names hold none of them are frozen; running statistics follow the data all the
    same. Empty: all are trained."""
    learning_rate: float = 3e-3
    final_learning_rate: float = 0.0
    warmup_steps: int = 50
    weight_decay: float = 1e-2
    clip_norm: float = 5.0
    ema_decay: float = 0.995
    calibrate: int = 0
    """Batches (some hundreds) from which the averaged network's running statistics are estimated anew at the end."""
    precision: Literal["fp32", "bf16"] = "fp32"
    log_every: int = 10
    checkpoint_every: int = 100
    validate_every: int = 0
    """Steps between validations; 0 = only at the end."""
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "checkpoint_every"):
            _require(getattr(self, name) >= 1, f"training.{name} must be at least 1; got {getattr(self, name)}")
        _require(all(n >= 1 for n in self.repeats.values()), f"training.repeats must be at least 1; got {self.repeats}")
        _require(all(s >= 0 for s in self.shares.values()), f"training.shares must not be negative; got {self.shares}")
        _require(
            len(self.iterations) > 0 and min(self.iterations) >= 0 and sum(self.iterations) > 0,
            f"training.iterations must be non-negative probabilities with a positive sum; got {self.iterations}",
        )
        _require(0 <= self.refine_share <= 1, f"training.refine_share must be between 0 and 1; got {self.refine_share}")
        _require(
            self.feedback_warmup >= 0, f"training.feedback_warmup must not be negative; got {self.feedback_warmup}"
        )
        _require(self.calibrate >= 0, f"training.calibrate must not be negative; got {self.calibrate}")
        _require(0 <= self.ema_decay < 1, f"training.ema_decay must be in [0, 1); got {self.ema_decay}")


RENAMED = {
    "network.looks": "network.iterations, with network.reframe: true",
    "network.carry": "network.reframe",
    "training.closer": "training.refine_share",
}
"""Keys of older files, and what says the same today."""


@dataclass(frozen=True)
class Config:
    """Everything that defines a run."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


def mirrored(names: Sequence[str]) -> tuple[int, ...]:
    """For each name the index of its mirror image: ``left`` and ``right`` trade places, the rest stay."""

    def mirror(name: str) -> str:
        swap = {"left": "right", "right": "left"}
        return "_".join(swap.get(word, word) for word in name.split("_"))

    return tuple(names.index(mirror(n)) if mirror(n) in names else i for i, n in enumerate(names))


def presets() -> list[str]:
    """Names of the configurations that ship with the package."""
    folder = resources.files("ifan") / "presets"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def load_config(source: str | Path) -> Config:
    """Read a preset by name or a YAML file by path.

    Raises ``ValueError`` for an unknown preset, unreadable YAML, unknown or missing keys and values of the wrong type.
    """
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        names = presets()
        _require(str(source) in names, f"unknown preset {str(source)!r}; expected one of {names} or a .yaml file")
        text, origin = (resources.files("ifan") / "presets" / f"{source}.yaml").read_text(encoding="utf-8"), str(source)
    else:
        try:
            _require(path.stat().st_size <= MAX_BYTES, f"{path}: a configuration has at most {MAX_BYTES} bytes")
            text, origin = path.read_text(encoding="utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: cannot read the configuration ({error}); check the path") from error
    try:
        tree = parse_yaml(text)
        return from_dict(Config, {} if tree is None else tree)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error


def parse_yaml(text: str) -> Any:
    """Plain data of a YAML text; ``1e-3`` is a number, as in YAML 1.2.

    Raises ``ValueError`` for what is not valid, nested too deeply, or has an alias: a few of these, one in the other,
    stand for more than any memory holds.
    """
    import yaml  # here and below only: a network of a configuration made in Python runs without it

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))
    try:
        depth = 0
        for event in yaml.parse(text, Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > MAX_DEPTH:
                raise ValueError(f"not valid YAML: aliases (*name) and more than {MAX_DEPTH} levels are not taken")
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML ({' '.join(str(error).split())})") from error


def dump_config(config: Config) -> str:
    """The YAML text that `load_config` reads back to an equal configuration."""
    import yaml

    return yaml.safe_dump(to_dict(config), sort_keys=False)


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain dicts, lists, numbers and strings (JSON and YAML)."""
    return typing.cast(dict[str, Any], _plain(dataclasses.asdict(config)))


T = TypeVar("T")


def from_dict(kind: type[T], tree: Any, at: str = "") -> T:
    """Build dataclass ``kind`` from plain data; strict about keys and types. ``at`` names the place in messages."""
    return typing.cast(T, _build(kind, tree, at))


def _build(kind: Any, value: Any, at: str) -> Any:
    where = at or "configuration"
    if dataclasses.is_dataclass(kind):
        _require(isinstance(value, dict), f"{where}: expected a mapping; got {type(value).__name__}")
        hints = typing.get_type_hints(kind)
        known = {f.name: f for f in dataclasses.fields(kind)}
        for key in value:
            renamed = RENAMED.get(f"{at}.{key}")
            _require(renamed is None, f"{where}: the key {key!r} is no longer used; set {renamed}")
            _require(key in known, f"{where}: unknown key {key!r}; expected one of {sorted(known)}")
        for name, f in known.items():
            has_default = f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
            _require(name in value or has_default, f"{where}: key {name!r} is missing")
        build: Any = kind
        return build(**{k: _build(hints[k], v, f"{at}.{k}" if at else k) for k, v in value.items()})
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _build(next(a for a in args if a is not type(None)), value, at)
    if origin is Literal:
        _require(value in args, f"{where}: expected one of {list(args)}; got {value!r}")
        return value
    if origin is tuple:
        _require(isinstance(value, (list, tuple)), f"{where}: expected a list; got {value!r}")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_build(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
        _require(len(value) == len(args), f"{where}: expected {len(args)} values; got {len(value)}")
        return tuple(_build(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
    if origin is dict:
        _require(isinstance(value, dict), f"{where}: expected a mapping; got {value!r}")
        return {_build(args[0], k, where): _build(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    _require(fits, f"{where}: expected {kind.__name__}; got {value!r}")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
