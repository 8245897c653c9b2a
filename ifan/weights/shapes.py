"""Names and shapes of a network's tensors, from its configuration alone."""

from __future__ import annotations

from collections.abc import Iterable

from ifan.config import NetworkConfig, TaskConfig
from ifan.wiring import LEVELS, MIDDLE, Widths, encoder_widths

Shapes = dict[str, tuple[int, ...]]


def tensor_shapes(config: NetworkConfig) -> Shapes:
    """Shapes of everything that a saved network of ``config`` holds, by name: what ``IFAN(config).state_dict()`` has.

    Parameters and running statistics; weights of convolutions are ``(outputs, inputs, k, k)``, those of dense heads
    ``(outputs, inputs)``, values of a normalisation ``(tasks, channels)``.
    """
    widths, tasks = Widths(config), len(config.tasks)
    deeper = sum(t.kind != "landmarks" for t in config.tasks)
    found = _means(config)
    for t, task in enumerate(config.tasks):
        found |= _re_encoder(f"encoders.{t}", task)
    found["stem.weight"] = (config.stem_channels, config.image_channels + widths.planes, 7, 7)
    for block in widths.dense_in:
        rows = tasks if block < MIDDLE else deeper if block == MIDDLE else 1
        found |= _dense(block_name(block), widths.dense_inputs(block), rows, config)
    for level, x in widths.down_in.items():
        rows = deeper if level == LEVELS - 1 else tasks
        found |= _norm(f"down.{level}.norm", rows, x.channels, config)
        found[f"down.{level}.convolution.weight"] = (widths.down_width(level), x.channels, 1, 1)
    for step, x in widths.up_in.items():
        found[f"up.{step}.a.weight"] = (config.up_channels, x.channels, 3, 3)
        found[f"up.{step}.b.weight"] = (config.up_channels, config.up_channels // 4, 3, 3)
    for task in config.tasks:
        found |= _head(task, widths, config)
    return found


def block_name(block: int) -> str:
    """Name of dense block ``block`` of `ifan.wiring` among the tensors."""
    if block == MIDDLE:
        return "middle"
    return f"down_blocks.{block}" if block < MIDDLE else f"up_blocks.{block - MIDDLE - 1}"


def head_name(task: TaskConfig) -> str:
    """Name of a task's head among the tensors."""
    return f"class_heads.{task.name}" if task.kind == "classification" else _HEADS[task.kind]


_HEADS = {"parsing": "parsing_head", "landmarks": "landmark_head"}


def _means(config: NetworkConfig) -> Shapes:
    parsing, points = config.parsing, config.landmarks
    return {
        "mean_parsing": (parsing.width if parsing else 0, config.size, config.size),
        "mean_points": (2, points.width if points else 0),
        "mean_classes": (sum(t.width for t in config.classifications),),
    }


def _re_encoder(name: str, task: TaskConfig) -> Shapes:
    kernels = (1, 1, 1) if task.kind == "classification" else (5, 3, 3)
    widths = (task.planes, *encoder_widths(task))
    return {f"{name}.convolutions.{i}.weight": (widths[i + 1], widths[i], k, k) for i, k in enumerate(kernels)}


def _norm(name: str, tasks: int, channels: int, config: NetworkConfig, affine: bool = True) -> Shapes:
    shape = (tasks if config.task_norm else min(tasks, 1), channels)
    parts = ["running_mean", "running_var"]
    if config.iteration_norm != "shared":
        parts += ["later_mean", "later_var"]
    if affine:
        parts += ["weight", "bias"]
        if config.iteration_norm == "separate":
            parts += ["later_weight", "later_bias"]
    return {f"{name}.{part}": shape for part in parts}


def _dense(name: str, inputs: Iterable[int], tasks: int, config: NetworkConfig, growth: int = 0) -> Shapes:
    found: Shapes = {}
    for i, channels in enumerate(inputs):
        found |= _norm(f"{name}.norms.{i}", tasks, channels, config)
        found[f"{name}.convolutions.{i}.weight"] = (growth or config.growth, channels, 3, 3)
    return found


def _head(task: TaskConfig, widths: Widths, config: NetworkConfig) -> Shapes:
    name, read = head_name(task), widths.heads[task.name]
    if task.kind == "parsing":
        return {f"{name}.weight": (task.width, read[0].channels, 1, 1)}
    found: Shapes = {}
    if task.kind == "landmarks" and config.landmark_head == "heat_maps":
        for level, x in enumerate(read):
            found |= _dense(f"{name}.levels.{level}", [x.channels], 1, config, task.width)
        return found
    outputs = task.width * (2 if task.kind == "landmarks" else 1)
    if config.normalise_heads:
        found = _norm(f"{name}.norm", 1, read[0].values, config, affine=False)
    return found | {f"{name}.weight": (outputs, read[0].values), f"{name}.bias": (outputs,)}
