"""``ifan predict``: photos in, JSON and pictures out; a bad photo does not stop the others."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ifan.cli import one_line

if TYPE_CHECKING:
    from ifan.inference import FaceAnalyzer, PhotoResult

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""What is taken from a folder."""


def predict(
    photos: Annotated[list[str], typer.Argument(help="Pictures, folders of pictures, or patterns such as 'in/*.jpg'.")],
    out: Annotated[Path, typer.Option(help="Folder for the results; made if needed.")],
    box: Annotated[
        list[str] | None,
        typer.Option(help="Face as x0,y0,x1,y1 in pixels, hairline to chin; repeat for more. Found if left out."),
    ] = None,
    crops: Annotated[bool, typer.Option("--crops", help="Each photo is the crop of one face; do not detect.")] = False,
    weights: Annotated[str | None, typer.Option(help="Packaged name, model folder or run folder.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Feedback iterations.", min=1)] = None,
    tasks: Annotated[str | None, typer.Option(help="Only these, such as parsing,landmarks.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write all results to this file.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first bad photo.")] = False,
) -> None:
    """Analyse faces: for each photo <name>.json, <name>_overlay.png and <name>_parsing.png (class ids)."""
    boxes = [parse_box(text) for text in box or []]
    paths = expand(photos)
    stems = unique_stems(paths)
    wanted = [name.strip() for name in tasks.split(",")] if tasks else None
    _refuse_to_overwrite(paths, stems, out, json_file)

    from ifan.inference import load

    analyzer = load(weights, device, detector=None if crops else "centerface", iterations=iterations, tasks=wanted)
    done, failed = _analyse(analyzer, dict(zip(paths, stems, strict=True)), boxes, out, strict)
    if json_file is not None:
        _write_json(json_file, {"photos": done, "failed": failed})
    if failed:
        typer.echo(f"{len(failed)} of {len(paths)} photos failed:", err=True)
        for failure in failed:
            typer.echo(f"error: {failure['reason']}", err=True)
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


def expand(photos: Sequence[str]) -> list[str]:
    """Paths as they are, folders as their pictures, patterns as their matches; in order, each once.

    A folder without pictures raises ``ValueError``; a pattern without matches stays and fails when it is read.
    """
    paths: list[str] = []
    for photo in photos:
        path = Path(photo)
        if path.is_dir():
            found = sorted(str(p) for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not found:
                raise ValueError(f"{photo}: no pictures in this folder ({', '.join(SUFFIXES)}); pass another one")
            paths += found
        else:
            paths += [photo] if path.exists() else sorted(glob.glob(photo, recursive=True)) or [photo]
    return list(dict.fromkeys(paths))


def unique_stems(paths: Sequence[str]) -> list[str]:
    """A name for each photo's results: its own without suffix, numbered where that is taken (letter case aside).

    Cut to 200 bytes, so that endings still fit into a file name.
    """
    names = [os.fsencode(Path(path).stem)[:200].decode("utf-8", "replace") for path in paths]
    taken = {name.casefold() for name in names}
    used: set[str] = set()
    stems = []
    for name in names:
        stem, number = name, 2
        if stem.casefold() in used:
            while f"{name}_{number}".casefold() in taken | used:
                number += 1
            stem = f"{name}_{number}"
        used.add(stem.casefold())
        stems.append(stem)
    return stems


def _refuse_to_overwrite(paths: Sequence[str], stems: Sequence[str], out: Path, json_file: Path | None) -> None:
    inputs = {Path(path).resolve(): path for path in paths}
    targets = [out / f"{stem}{ending}" for stem in stems for ending in (".json", "_overlay.png", "_parsing.png")]
    for target in [*targets, *([json_file] if json_file else [])]:
        if target.resolve() in inputs:
            raise ValueError(f"--out {out}: {target} would overwrite a photo that is to be read; choose another folder")
    if json_file and json_file.resolve() in {target.resolve() for target in targets}:
        raise ValueError(f"--json {json_file}: a photo's own results go there; choose another name")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: expected a folder; got a file; choose another name")


def _analyse(
    analyzer: FaceAnalyzer, stems: dict[str, str], boxes: Sequence[tuple[float, ...]], out: Path, strict: bool
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Results and failures; what cannot be written stops everything, what cannot be read does not."""
    done, failed = [], []
    for path, stem in stems.items():
        try:
            result = analyzer(path, boxes or None)
        except ValueError as error:
            if strict:
                raise
            failed.append({"photo": path, "reason": one_line(error)})
            continue
        files = result.save(out, stem)
        typer.echo(one_line(f"{path}: {_summary(result)} -> {files[0]}"))
        done.append({**result.to_dict(), "files": [str(file) for file in files]})
    return done, failed


def _summary(result: PhotoResult) -> str:
    moods = ["{} {:.0%}".format(*face.best("emotion")) for face in result.faces if face.emotion]
    return ", ".join(moods) or f"{len(result)} face{'s' if len(result) != 1 else ''}"


def _write_json(path: Path, tree: dict[str, Any]) -> None:
    from ifan.inference.files import write_files

    write_files({path: json.dumps(tree, indent=1).encode()})
