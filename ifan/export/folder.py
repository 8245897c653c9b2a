"""A folder from which any runtime rebuilds `ifan.load`: graphs of the first and of later iterations, the detector, and
``ifan.json``, which says all that stands between a photo and these graphs.

The numbers in ``ifan.json`` are read from the modules that use them. The same text is in each graph's metadata under
the key ``ifan``.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from ifan import __version__, crop, refine
from ifan.config import POINT_NAMES, NetworkConfig, TaskConfig, mirrored
from ifan.export.graph import OUTPUTS, FeedbackGraph
from ifan.export.write import BEGUN, FORMATS, require, write
from ifan.faces import framing
from ifan.faces.detect import CenterFace
from ifan.weights import load_network, resolve
from ifan.wiring import BGR_MEAN

ABOUT = "ifan.json"
DETECTOR = "detector.onnx"

CITATION = (
    "Li, Xiao, Zhao, Zhao, Li, Feng, Yan, Sim: Integrated Face Analytics Networks through Cross-Dataset Hybrid "
    "Training. ACM Multimedia 2017. arXiv 1711.06055"
)


def export_folder(
    weights: str | Path, folder: Path, ending: str = ".onnx", iterations: int | None = None
) -> dict[str, str]:
    """Write what another program needs to give the results of ``ifan.load(weights)``.

    Args:
        weights: packaged name, model folder or run folder.
        folder: where to; made if it is not there. Files of an earlier export are replaced.
        ending: ``".onnx"``, or ``".xml"`` for OpenVINO's format.
        iterations: passes that ``ifan.json`` asks for; the network's if ``None``.

    Returns:
        The names of the files that were written, and what each is.

    Raises:
        ValueError: unknown weights, ending or a missing package.
        OSError: a file that cannot be written.
    """
    if ending not in FORMATS:
        raise ValueError(f"export: expected one of the endings {', '.join(FORMATS)}; got {ending!r}")
    network = load_network(weights)
    model = FeedbackGraph(network, 1)
    files = {"first": f"first{ending}", "later": f"later{ending}", "detector": DETECTOR}
    about = describe(network.config, files, resolve(weights), iterations)
    text = json.dumps(about, indent=2)
    folder.mkdir(parents=True, exist_ok=True)
    write(model, folder / files["first"], metadata={"ifan": text})
    write(model, folder / files["later"], later=True, metadata={"ifan": text})
    write_detector(folder / DETECTOR)
    (folder / ABOUT).write_text(text + "\n", encoding="utf-8")
    passes, side = about["iterations"], network.config.image_size
    written = {
        files["first"]: f"images (N, 3, {side}, {side}) uint8 RGB -> {', '.join(model.outputs)}",
        files["later"]: f"the same, begun with the outputs of the iteration before; {passes - 1} of these follow",
        DETECTOR: "CenterFace, which finds the faces",
        ABOUT: "classes, cropping, iterations, licence",
    }
    if ending == ".xml":
        written |= {f"{name}.bin": f"weights of {name}.xml" for name in ("first", "later")}
    return written


def write_detector(path: Path) -> None:
    """Write the packaged detector as ONNX, its picture of any size."""
    onnx = require("onnx")
    with resources.as_file(resources.files("ifan") / "assets" / "centerface.onnx") as source:
        model = onnx.load(source)
    graph = model.graph
    picture = graph.input[0]
    used = {name for node in graph.node for name in node.input}
    for values, kept in ((graph.initializer, used), (graph.input, {picture.name})):
        for value in [value for value in values if value.name not in kept]:
            values.remove(value)  # counters of training, and weights as inputs: runtimes warn of both
    for value, step in [(picture, ""), *((output, f"/{CenterFace.STRIDE}") for output in graph.output)]:
        sizes = value.type.tensor_type.shape.dim
        for size, name in ((sizes[0], "batch"), (sizes[2], f"height{step}"), (sizes[3], f"width{step}")):
            size.dim_param = name
    onnx.helper.set_model_props(model, {"license": "MIT, Copyright (c) 2019 StarClouds"})
    onnx.save(model, path)


def describe(
    config: NetworkConfig, files: Mapping[str, str], weights: Path, iterations: int | None = None
) -> dict[str, Any]:
    """The content of ``ifan.json``; sides are in pixels or in sides of a crop as their names say."""
    outputs = {task.name: OUTPUTS.get(task.kind, f"{task.name}_logits") for task in config.tasks}
    passes, reframe = config.iterations if iterations is None else iterations, config.reframe
    return {
        "ifan": __version__,
        "weights": weights.name,
        "weights_license": _license(weights),
        "code_license": "Apache-2.0",
        "citation": CITATION,
        "precision": "float32",
        "iterations": config.check_iterations(passes),
        "reframe": reframe,
        "first": {"file": files["first"], "inputs": ["images"], "outputs": list(outputs.values())},
        "later": {
            "file": files["later"],
            "inputs": ["images", *(BEGUN + name for name in outputs.values())],
            "outputs": list(outputs.values()),
        },
        "images": {
            "shape": ["N", 3, config.image_size, config.image_size],
            "type": "uint8 RGB, 0 to 255",
            "normalisation": "(BGR - mean) * scale, in the graph",
            "mean_bgr": list(BGR_MEAN),
            "scale": config.image_scale,
        },
        "parsing_side": config.size,
        "tasks": [_task(task, outputs[task.name]) for task in config.tasks],
        "crop": _cropping(),
        "refinement": _refinement() if reframe else None,
        "detector": _detector(files["detector"]),
    }


def _task(task: TaskConfig, output: str) -> dict[str, Any]:
    meaning = {
        "parsing": "logits (N, classes, side, side); probabilities are the softmax over the classes",
        "landmarks": "(N, 2, points): x's then y's in sides of the crop from its centre",
        "classification": "logits (N, classes); probabilities are the softmax of logits / temperature",
    }[task.kind]
    return {
        "name": task.name,
        "kind": task.kind,
        "classes": list(task.classes),
        "mirrored": list(mirrored(task.classes)),
        "output": output,
        "meaning": meaning,
        **({"temperature": task.temperature} if task.kind == "classification" else {}),
    }


def _cropping() -> dict[str, Any]:
    """From a face to its crop, and from the crop to its pixels."""
    return {
        "coordinates": "continuous: pixel (row i, column j) covers [j, j + 1) x [i, i + 1)",
        "matrix": (
            "photo to crop of I pixels: [[m c, m s, I / 2 - m (c cx + s cy)], [-s, c, I / 2 + s cx - c cy]] where "
            "c = I / side cos(angle), s = I / side sin(angle), m = -1 if mirrored else 1"
        ),
        "border": "the border pixel repeats outside the photo",
        "shrink_above": crop.SHRINK_ABOVE,
        "shrink": "a crop with a larger side / I is drawn at 2 I from averaged areas, then halved",
        "box": {
            "side": "margin times the root of the box's area; centre drop sides of that root below the box's",
            "margin": framing.FACE_MARGIN,
            "drop": framing.FACE_DROP,
        },
        "points": {
            "side": "factor times the larger extent of the five points, after they are turned upright",
            "names": list(POINT_NAMES),
            "factor": inspect.signature(crop.box_around).parameters["factor"].default,
            "smallest_extent": framing.SMALLEST_EXTENT,
        },
    }


def _refinement() -> dict[str, Any]:
    """Crops of the iterations after the first, and the mean of predictions; see `ifan.refine`."""
    return {
        "wider": refine.WIDER,
        "window": refine.WINDOW,
        "sides": list(refine.SIDES),
        "reach": refine.REACH,
        "nearest": refine.NEAREST,
        "farthest": refine.FARTHEST,
        "mirrored": "every other iteration, beginning with the second",
        "first_weight": refine.FIRST,
        "feather": refine.FEATHER,
        "around": {"class": refine.HAIR, "touching": refine.TOUCHING, "side": refine.AROUND},
    }


def _detector(file: str) -> dict[str, Any]:
    default = CenterFace()
    return {
        "file": file,
        "license": "MIT",
        "input": "float32 RGB 0 to 255 (N, 3, H, W), sides filled with zeros to a multiple",
        "outputs": dict(zip(("heat", "size", "offset", "points"), CenterFace.OUTPUTS, strict=True)),
        "stride": CenterFace.STRIDE,
        "multiple": CenterFace.MULTIPLE,
        "max_side": default.max_side,
        "min_score": default.min_score,
        "max_overlap": default.max_overlap,
    }


def _license(weights: Path) -> str:
    """The licence that the card of these weights states."""
    import yaml

    try:
        _, header, _ = (weights / "README.md").read_text(encoding="utf-8").split("---\n", 2)
        card = yaml.safe_load(header)
        return str(card.get("license_name") or card["license"])
    except (OSError, ValueError, KeyError, AttributeError, yaml.YAMLError):
        return "not stated; that of the data that the weights were trained on"
