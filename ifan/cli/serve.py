"""``ifan serve``: a page to try the network, and ``POST /analyze`` for programs, on this machine only."""

from __future__ import annotations

from typing import Annotated

import typer


def serve(
    port: Annotated[int, typer.Option(help="Of 127.0.0.1; nobody else can reach it.", min=1, max=65535)] = 7860,
    weights: Annotated[str | None, typer.Option(help="Packaged name, model folder or run folder.")] = None,
    max_mb: Annotated[int, typer.Option(help="Largest upload in megabytes.", min=1)] = 20,
    at_once: Annotated[int, typer.Option(help="Most requests to /analyze at once; others get 503.", min=1)] = 64,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
) -> None:
    """Serve a page for photos, clips and the camera; POST /analyze takes a photo's file and answers in JSON."""
    from ifan.faces import load
    from ifan.faces.page import Models
    from ifan.faces.server import HOST
    from ifan.faces.server import serve as serve_page
    from ifan.weights import DEFAULT

    models = Models(load(weights, device), weights or DEFAULT)
    typer.echo(f"page: http://{HOST}:{port}   service: POST http://{HOST}:{port}/analyze   stop: Ctrl-C")
    serve_page(models, port, max_mb, at_once)
