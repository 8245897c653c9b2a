"""``ifan export``: the network for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ifan.optional import TORCH, require


def export(
    out: Annotated[Path, typer.Argument(help="Folder to write; or one graph of one crop: NAME.onnx, NAME.xml.")],
    weights: Annotated[str | None, typer.Option(help="Packaged name, model folder or run folder.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Passes; the network's if not given.", min=1)] = None,
    format: Annotated[Literal["onnx", "openvino"], typer.Option(help="Of the graphs in a folder.")] = "onnx",
) -> None:
    """Write the network for other runtimes: graphs, detector and ifan.json in a folder; any batch size."""
    require("ifan export", *TORCH)

    from ifan.export.folder import export_folder
    from ifan.export.write import FORMATS
    from ifan.export.write import export as write
    from ifan.weights import DEFAULT, load_network

    weights = weights or DEFAULT
    if not out.suffix or out.is_dir():
        ending = next(ending for ending, name in FORMATS.items() if name == format)
        for name, what in export_folder(weights, out, ending, iterations).items():
            typer.echo(f"{out / name}: {what}")
        return
    network = load_network(weights)
    passes = network.config.iterations_per_crop if iterations is None else iterations
    outputs = write(network, out, passes)
    side = network.config.image_size
    number = "1 iteration" if passes == 1 else f"{passes} iterations"
    typer.echo(f"{out}: images (N, 3, {side}, {side}) uint8 RGB -> {', '.join(outputs)}; {number} on the same crop")
