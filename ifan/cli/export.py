"""``ifan export``: the network as one ONNX or OpenVINO file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ifan.optional import TORCH, require


def export(
    out: Annotated[Path, typer.Argument(help="File to write: NAME.onnx, or NAME.xml for OpenVINO.")],
    weights: Annotated[str | None, typer.Option(help="Packaged name, model folder or run folder.")] = None,
    iterations: Annotated[
        int | None, typer.Option(help="Passes over one crop; the network's if not given.", min=1)
    ] = None,
) -> None:
    """Write the network, feedback loop included, as one graph for other runtimes; any batch size."""
    require("ifan export", *TORCH)

    from ifan.export.graph import export as write
    from ifan.weights import DEFAULT, load_network

    network = load_network(weights or DEFAULT)
    outputs = write(network, out, iterations)
    side = network.config.image_size
    typer.echo(f"{out}: images (N, 3, {side}, {side}) uint8 RGB -> {', '.join(outputs)}")
