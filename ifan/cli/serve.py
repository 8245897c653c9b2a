"""``ifan serve``: a page to try the network, on this machine only."""

from __future__ import annotations

from typing import Annotated

import typer


def serve(
    port: Annotated[int, typer.Option(help="Of 127.0.0.1; nobody else can reach it.", min=1, max=65535)] = 7860,
    weights: Annotated[str | None, typer.Option(help="Packaged name, model folder or run folder.")] = None,
    max_mb: Annotated[int, typer.Option(help="Largest upload in megabytes.", min=1)] = 20,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
) -> None:
    """Serve a page: drag a photo or use the camera; boxes, parsing, points and emotion, one to three iterations."""
    from ifan.faces import load
    from ifan.faces.page import serve as serve_page

    serve_page(load(weights, device), port, max_mb)
