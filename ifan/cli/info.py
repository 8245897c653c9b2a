"""``ifan info``: what is installed, what runs here, and how to get what does not."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import Annotated, Any

import typer

PACKAGES = ("torch", "numpy", "opencv-python-headless", "safetensors", "huggingface_hub", "triton")
ENVIRONMENT = {
    "IFAN_BACKEND": "backend of the ops: auto, reference, cpu, triton or cuda",
    "IFAN_NATIVE": "native modules when building: build (default), require or off",
    "IFAN_CUDA": "CUDA kernels when building: build (where nvcc is found), require or off (default)",
    "IFAN_DEBUG": "1 = tracebacks instead of one-line errors",
}


def info(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False) -> None:
    """Show versions, processor, backends (and why one is missing), settings and weights."""
    facts = gather()
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
    else:
        _print(facts)


def gather() -> dict[str, Any]:
    """All that ``ifan info`` shows, as plain data; without PyTorch, what needs none."""
    import platform

    from ifan import __version__
    from ifan.native import bf16_refusal, cpu_module, thread_count
    from ifan.processor import processor
    from ifan.weights import available

    name, features = processor()
    missing = bf16_refusal()
    return {
        "versions": {"ifan": __version__, "python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
        "processor": {
            "name": name,
            "features": features,
            "cores": os.cpu_count(),
            "threads": thread_count(),
            "bf16_missing": missing,
            "bf16_by": None if missing else "AMX" if cpu_module().features()["tiles"] else "AVX512_BF16",
        },
        **_torch(),
        "environment": {variable: os.environ.get(variable) for variable in ENVIRONMENT},
        "weights": available(),
    }


def _torch() -> dict[str, Any]:
    """Devices and backends of the PyTorch that is installed; none without it."""
    try:
        import torch

        from ifan.ops import dispatch, gpu
    except ModuleNotFoundError:
        return {"gpus": [], "cuda_graphs": None, "backends": []}

    return {
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda_graphs": _checked(gpu.checked_on("graphs")),
        "backends": [asdict(status) for status in dispatch.backend_status()],
    }


def _checked(name: str | None) -> str:
    return f"checked on {name}" if name else "has not run on a GPU: run make gpu-check"


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _print(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console, cpu = Console(), facts["processor"]
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, version in facts["versions"].items():
        table.add_row(name, version or "[dim]not installed[/]")
    table.add_row("processor", f"{escape(cpu['name'])}, {cpu['cores']} cores, {cpu['threads']} threads in use")
    table.add_row("features", " ".join(cpu["features"]) or "unknown")
    missing = cpu["bf16_missing"]
    table.add_row(
        "bf16",
        escape(
            f"no: {missing}" if missing else f"yes, by {cpu['bf16_by']}: the CPU engine's --precision bf16 runs here"
        ),
    )
    if facts["backends"]:
        table.add_row("gpu", escape(", ".join(facts["gpus"])) or "none that PyTorch can use")
        table.add_row("gpu inference", f"one CUDA graph a batch size; {facts['cuda_graphs']}")
    else:
        table.add_row("gpu", escape("needs PyTorch: pip install 'ifan[torch]'"))
    table.add_row("weights", ", ".join(facts["weights"]) or "none ship with this installation; see `ifan train --help`")
    console.print(table)

    backends = Table(
        "backend", "loaded", "why not", "what to do", "note", title="Backends of the ops", title_justify="left"
    )
    for status in facts["backends"]:
        mark = "[green]yes[/]" if status["available"] else "[red]no[/]"
        backends.add_row(status["name"], mark, *(escape(status[field] or "") for field in ("reason", "fix", "note")))
    if facts["backends"]:
        console.print(backends)

    settings = Table("variable", "value", "meaning", title="Environment", title_justify="left")
    for variable, meaning in ENVIRONMENT.items():
        value = facts["environment"][variable]
        settings.add_row(variable, "[dim]unset[/]" if value is None else escape(value), meaning)
    console.print(settings)
