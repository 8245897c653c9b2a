"""``ifan predict``: photos and clips in; JSON and pictures, or tables, out; a bad photo does not stop the others."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ifan.cli import one_line
from ifan.cli.progress import progress

if TYPE_CHECKING:
    from ifan.faces import FaceAnalyzer, PhotoResult

TABLES = (".parquet", ".jsonl", ".csv")
"""Names of ``--out`` that ask for a table."""

ENDINGS = (".json", "_overlay.jpg", "_parsing.png", ".jsonl", "_overlay.mp4")
"""Of the files that a photo or clip may leave in a folder."""

REPORTED = 20
"""Failures of a table that are printed."""


def predict(
    photos: Annotated[list[str], typer.Argument(help="Pictures, clips, folders, or patterns such as 'in/*.jpg'.")],
    out: Annotated[
        Path,
        typer.Option(help="Folder for overlays and JSON; named .parquet, .jsonl or .csv: for tables of any length."),
    ],
    box: Annotated[
        list[str] | None,
        typer.Option(help="Face as x0,y0,x1,y1 in pixels, hairline to chin; repeat for more. Found if left out."),
    ] = None,
    crops: Annotated[bool, typer.Option("--crops", help="Each photo is the crop of one face; do not detect.")] = False,
    max_side: Annotated[
        int, typer.Option(help="Faces are looked for in photos shrunk to this side; more finds smaller ones.", min=32)
    ] = 1024,
    weights: Annotated[str | None, typer.Option(help="Packaged name, model folder or run folder.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Passes of the network; 1 is fastest.", min=1)] = None,
    tasks: Annotated[str | None, typer.Option(help="Only these, such as parsing,landmarks.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    precision: Annotated[str, typer.Option(help="fp32, or bf16 on a CPU with AVX512_BF16: faster.")] = "fp32",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all results to this file.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first bad photo.")] = False,
    batch: Annotated[int, typer.Option(help="Faces the network sees at once.", min=1)] = 32,
    every: Annotated[int, typer.Option(help="Of a clip, each this many frames.", min=1)] = 1,
    maps: Annotated[bool, typer.Option("--maps", help="Tables: also write class maps as PNG.")] = False,
    shard: Annotated[int, typer.Option(help="Tables: rows a file; what a kill can cost.", min=1)] = 1000,
) -> None:
    """Analyse faces: for each photo <name>.json, <name>_overlay.jpg and <name>_parsing.png (class ids), or one table.

    Tables are folders of shards; the same command goes on where it was stopped. Exit code 1: some photo failed.
    """
    from ifan.faces.sources import expand, unique_stems

    table = out.suffix.lower() in TABLES
    if table and (box or json_file or strict):
        raise ValueError(f"--out {out}: tables go without --box, --json and --strict; leave them out or name a folder")
    boxes = [parse_box(text) for text in box or []]
    paths = expand(photos)
    stems = unique_stems(paths)
    if not table:
        _refuse_to_overwrite(paths, stems, out, json_file)

    from ifan.faces import CenterFace, FaceAnalyzer
    from ifan.weights import DEFAULT, load_model

    model = load_model(weights or DEFAULT)
    wanted = [name.strip() for name in tasks.split(",")] if tasks else None
    if table and not (wanted or maps):  # nobody would see the parsing
        wanted = [task.name for task in model.config.tasks if task.kind != "parsing"]
    detector = None if crops else CenterFace(max_side)
    analyzer = FaceAnalyzer(
        model,
        device,
        detector=detector,
        iterations=iterations,
        tasks=wanted,
        batch_size=batch,
        precision=precision,
    )
    if table:
        _predict_table(analyzer, paths, out, every, maps, shard)
        return
    done, failed = _analyse(analyzer, dict(zip(paths, stems, strict=True)), boxes, out, strict, every)
    if json_file is not None:
        _write_json(json_file, {"photos": done, "failed": failed})
    if failed:
        typer.echo(f"{len(failed)} of {len(paths)} photos failed:", err=True)
        for failure in failed:
            typer.echo(f"error: {failure['reason']}", err=True)
        raise typer.Exit(1)


def _predict_table(analyzer: FaceAnalyzer, paths: Sequence[str], out: Path, every: int, maps: bool, shard: int) -> None:
    from ifan.bulk.run import predict_bulk

    with progress() as report:
        summary = predict_bulk(analyzer, paths, out, every=every, maps=maps, shard_rows=shard, progress=report)
    typer.echo(one_line(f"{out}: {summary.rows} rows, {summary.faces} faces, {summary.shards} shards"))
    if gone := summary.removed:
        named = ", ".join(gone[:3]) + (", ..." if len(gone) > 3 else "")
        typer.echo(one_line(f"{out}: rows of {len(gone)} inputs that are not given any more are gone: {named}"))
    if summary.failures:
        typer.echo(f"{len(summary.failures)} of {summary.rows} rows failed:", err=True)
        for failure in summary.failures[:REPORTED]:
            typer.echo(f"error: {one_line(failure['error'])}", err=True)
        if len(summary.failures) > REPORTED:
            typer.echo(f"and {len(summary.failures) - REPORTED} more; see the column error", err=True)
        raise typer.Exit(1)


def parse_box(text: str) -> tuple[float, float, float, float]:
    """``"x0,y0,x1,y1"`` as numbers; raises ``ValueError``."""
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"--box {text!r}: expected four numbers x0,y0,x1,y1 in pixels, such as 172,68,276,178"
        ) from None
    return x0, y0, x1, y1


def _refuse_to_overwrite(paths: Sequence[str], stems: Sequence[str], out: Path, json_file: Path | None) -> None:
    # Unlike Path.resolve, realpath gives a loop of links back as it is.
    inputs = {os.path.realpath(path) for path in paths}
    targets = [out / f"{stem}{ending}" for stem in stems for ending in ENDINGS]
    for target in [*targets, *([json_file] if json_file else [])]:
        if os.path.realpath(target) in inputs:
            raise ValueError(f"--out {out}: {target} would overwrite a photo that is to be read; choose another folder")
    if json_file and os.path.realpath(json_file) in {os.path.realpath(target) for target in targets}:
        raise ValueError(f"--json {json_file}: a photo's own results go there; choose another name")
    if os.path.exists(out) and not os.path.isdir(out):
        raise ValueError(f"--out {out}: expected a folder; got a file; choose another name")


def _analyse(
    analyzer: FaceAnalyzer,
    stems: dict[str, str],
    boxes: Sequence[tuple[float, ...]],
    out: Path,
    strict: bool,
    every: int,
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Results and failures; what cannot be written stops everything, what cannot be read does not."""
    done: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    for path, stem in stems.items():
        try:
            done.append(_one(analyzer, path, stem, boxes, out, every))
        except (ValueError, MemoryError) as error:
            if strict:
                raise
            failed.append(
                {"photo": path, "reason": one_line(error) or f"{path}: not enough memory; shrink the picture"}
            )
    return done, failed


def _one(
    analyzer: FaceAnalyzer, path: str, stem: str, boxes: Sequence[tuple[float, ...]], out: Path, every: int
) -> dict[str, Any]:
    """Analyse and save a photo or clip, say so, and return what ``--json`` keeps of it."""
    from ifan.faces.clip import save_clip
    from ifan.faces.sources import is_clip

    if is_clip(path):
        files, frames, faces = save_clip(analyzer, path, out, stem, every)
        typer.echo(one_line(f"{path}: {faces} faces in {frames} frames -> {files[0]}"))
        return {"photo": path, "frames": frames, "files": [str(file) for file in files]}
    result = analyzer(path, boxes or None)
    files = result.save(out, stem)
    typer.echo(one_line(f"{path}: {_summary(result)} -> {files[0]}"))
    return {**result.to_dict(), "files": [str(file) for file in files]}


def _summary(result: PhotoResult) -> str:
    moods = ["{} {:.0%}".format(*face.best("emotion")) for face in result.faces if face.emotion]
    count = f"{len(result)} face{'s' if len(result) != 1 else ''}"
    return f"{count}: {', '.join(moods)}" if moods else count


def _write_json(path: Path, tree: dict[str, Any]) -> None:
    from ifan.files import write_files

    write_files({path: json.dumps(tree, indent=1).encode()})
