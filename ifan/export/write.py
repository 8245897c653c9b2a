"""Graphs as files: ONNX by PyTorch's exporter, OpenVINO's format by way of ONNX."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from ifan import optional
from ifan.export.graph import FeedbackGraph
from ifan.network import IFAN

FORMATS = {".onnx": "onnx", ".xml": "openvino"}
"""File names' endings and the package each format needs."""

BEGUN = "begun_"
"""Prefix of the inputs from which a later iteration begins: this before the name of an output of the one before."""

Arguments = tuple[Tensor | tuple[Tensor, ...], ...]
"""Arguments that a graph is traced with: tensors and tuples of such."""


@dataclass(frozen=True)
class Signature:
    """Names of a graph's inputs and outputs, and the ``metadata`` that its file carries."""

    inputs: Sequence[str]
    outputs: Sequence[str]
    metadata: Mapping[str, str] = field(default_factory=dict)


def export(network: IFAN, path: Path, iterations: int | None = None) -> tuple[str, ...]:
    """Write all iterations of the network on one crop as one graph to ``path``.

    ``path`` ends in ``.onnx``, or in ``.xml`` (with a ``.bin``) for OpenVINO. The input ``images`` and the outputs are
    those of `FeedbackGraph`; any batch size from 1. Returns the outputs' names. Raises ``ValueError`` for another
    ending or a missing package, ``OSError`` where the file cannot be written.
    """
    _check_ending(path)
    return write(FeedbackGraph(network, iterations), path)


def write(
    model: FeedbackGraph, path: Path, later: bool = False, metadata: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """Write a graph as `export` does, with ``metadata``; returns the outputs' names.

    ``later``: one iteration that begins with further inputs, an earlier iteration's outputs by the same names after
    `BEGUN`.
    """
    _check_ending(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    arguments = _example(model, later)
    begun = [BEGUN + name for name in model.outputs] if later else []
    signature = Signature(["images", *begun], model.outputs, metadata or {})
    (to_onnx if path.suffix == ".onnx" else to_openvino)(model, arguments, path, signature)
    return model.outputs


def to_onnx(model: nn.Module, arguments: Arguments, path: Path, signature: Signature, dynamic: bool = True) -> None:
    """Write ``model`` as ONNX, ``dynamic`` with a free first dimension of every input and output.

    The exporter's notes on each node, which name source files of this machine, are left out.
    """
    require("onnx")
    require("onnxscript")
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    batch = torch.export.Dim("batch", min=1)
    free = tuple({0: batch} if isinstance(a, Tensor) else tuple({0: batch} for _ in a) for a in arguments)
    with _quiet():
        program = torch.onnx.export(
            model.eval(),
            arguments,
            input_names=list(signature.inputs),
            output_names=list(signature.outputs),
            dynamic_shapes=free if dynamic else None,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    ClearMetadataAndDocStringPass()(program.model)
    program.model.metadata_props.update(signature.metadata)
    program.save(str(path))


def to_openvino(model: nn.Module, arguments: Arguments, path: Path, signature: Signature) -> None:
    """Write ``model`` as OpenVINO's ``.xml`` and ``.bin`` in float32, by way of ONNX."""
    openvino = require("openvino")
    with tempfile.TemporaryDirectory() as folder:
        between = Path(folder) / "graph.onnx"
        to_onnx(model, arguments, between, signature)
        converted = openvino.convert_model(between)
    for name, text in signature.metadata.items():
        converted.set_rt_info(text, [name])
    openvino.save_model(converted, path, compress_to_fp16=False)


def require(package: str) -> ModuleType:
    """A package of the extra ``export``; raises `ifan.optional.MissingPackageError` where it is not installed."""
    return optional.require("ifan export", package, package, "ifan[export]")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages and dimension names that do not matter here."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _check_ending(path: Path) -> None:
    if path.suffix not in FORMATS:
        raise ValueError(
            f"{path}: expected a file name ending in {' or '.join(FORMATS)}; got {path.suffix or 'none'!r}"
        )


def _example(model: FeedbackGraph, later: bool) -> Arguments:
    """Inputs to trace with, of a batch that no dimension of the network is likely to equal."""
    config, batch = model.config, 2
    images = torch.zeros(batch, 3, config.image_size, config.image_size, dtype=torch.uint8)
    return (images, model(images)) if later else (images,)
