"""``ifan predict``: photos and clips in; JSON and pictures, or tables, out; a bad photo does not stop the others."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ifan.cli import one_line
from ifan.cli.options import Quiet, Verbose
from ifan.progress import Report, later, progress

if TYPE_CHECKING:
    from ifan.bulk.run import BulkOptions
    from ifan.faces import FaceAnalyzer, PhotoResult

TABLES = (".parquet", ".jsonl", ".csv")
"""Names of ``--out`` that ask for a table."""

ENDINGS = (".json", "_overlay.jpg", "_parsing.png", ".jsonl", "_overlay.mp4")
"""Of the files that a photo or clip may leave in a folder."""

REPORTED = 20
"""Failures of a table that are printed."""

Say = Callable[[str], None]

NAMED = 5
"""Skipped files that are named unless --verbose asks for all."""


def predict(
    photos: Annotated[
        list[str],
        typer.Argument(
            help="Pictures, clips, folders, or patterns such as 'in/*.jpg'; or a camera's number, an address such as "
            "rtsp://... or http://..., or - for raw RGB frames from a pipe."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for overlays and JSON; or a table: NAME.csv, NAME.parquet or NAME.jsonl.")
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
    plot: Annotated[
        Path | None, typer.Option(help="Of one clip or stream: also plot classes, mouth and eyes over time, as PNG.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first bad photo.")] = False,
    batch: Annotated[int, typer.Option(help="Faces the network sees at once.", min=1)] = 32,
    every: Annotated[int, typer.Option(help="Of a clip, each this many frames.", min=1)] = 1,
    size: Annotated[str | None, typer.Option(help="Of raw frames: WIDTHxHEIGHT, such as 640x360.")] = None,
    rate: Annotated[float | None, typer.Option(help="Of raw frames: how many a second.")] = None,
    smooth: Annotated[bool, typer.Option("--smooth", help="Tables: filter the faces of clips over time.")] = False,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Search the folders in folders too.")] = False,
    shards: Annotated[
        int | None, typer.Option(help="Tables: a folder of files of at most so many photos each.", min=1)
    ] = None,
    maps: Annotated[bool, typer.Option("--maps", help="With --shards: also write class maps as PNG.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Analyse faces: for each photo <name>.json, <name>_overlay.jpg and <name>_parsing.png (class ids), or one table.

    A table has a row a face; the same command goes on where it was stopped. Ctrl-C ends a camera or stream, and what
    came of it is kept. Exit code 1: some photo failed.
    """
    from ifan.cli.streams import follow, stem_of, stream_of
    from ifan.faces.sources import expand, unique_stems

    table = out.suffix.lower() in TABLES
    if table and (box or json_file or strict):
        raise ValueError(f"--out {out}: tables go without --box, --json and --strict; leave them out or name a folder")
    if smooth and not table:
        raise ValueError(
            f"--smooth: expected a table as --out; got {out}; overlays are smoothed anyway, so leave it out"
        )
    if (shards or maps) and not (table and shards):
        raise ValueError("--shards, --maps: expected a table as --out, and --maps only with --shards; leave them out")
    stream = stream_of(photos, size, rate)
    if stream and (box or json_file or strict or shards):
        raise ValueError(f"{stream.name}: goes without --box, --json, --strict and --shards; leave them out")
    began, boxes = time.monotonic(), [parse_box(text) for text in box or []]
    paths, skipped = ([], []) if stream else expand(photos, recursive=recursive)
    stems = [stem_of(stream)] if stream else unique_stems(paths)
    if plot:
        _check_plot(plot, paths, table, stream is not None)
    if not table:
        _refuse_to_overwrite(paths, stems, out, json_file)
    if skipped and not quiet:
        typer.echo(_skipped(skipped, verbose), err=True)

    from ifan.faces import CenterFace, FaceAnalyzer
    from ifan.weights import DEFAULT, load_model

    model = load_model(weights or DEFAULT)
    wanted = [name.strip() for name in tasks.split(",")] if tasks else None
    if shards and not (wanted or maps):  # nobody would see the parsing
        wanted = [task.name for task in model.config.tasks if task.kind != "parsing"]
    analyzer = FaceAnalyzer(
        model,
        device,
        detector=None if crops else CenterFace(max_side),
        iterations=iterations,
        tasks=wanted,
        batch_size=batch,
        precision=precision,
    )
    if verbose:
        typer.echo(f"{weights or DEFAULT}: {_described(analyzer)}, {precision} on {device}", err=True)
    say: Say = (lambda _: None) if quiet else lambda text: typer.echo(one_line(text))
    with progress("predict", quiet=quiet) as report:
        if stream:
            failures = follow(analyzer, stream, out, table, every, smooth, say)
        elif table:
            options: BulkOptions = {"every": every, "smooth": smooth}
            if shards:
                options |= {"shard_rows": shards, "maps": maps}
            failures = _table(analyzer, paths, out, options, _Ear(say, report))
        else:
            work = _Folder(analyzer, out, boxes, every, strict, _Ear(say, report))
            failures = work.run(dict(zip(paths, stems, strict=True)), json_file)
    if plot and not failures:
        from ifan.faces.timeline import draw_timeline
        from ifan.files import write_files

        lines = (out / f"{stems[0]}.jsonl").read_text(encoding="utf-8").splitlines()
        write_files({plot: draw_timeline(map(json.loads, lines))})
        say(f"{plot}: {len(lines)} frames over time")
    if verbose:
        typer.echo(f"{time.monotonic() - began:.1f} s", err=True)
    if failures:
        typer.echo("\n".join(failures), err=True)
        raise typer.Exit(1)


def _check_plot(plot: Path, paths: Sequence[str], table: bool, is_stream: bool) -> None:
    """Refuse to plot what is no clip, and without what it takes, before anything is analysed."""
    from ifan.faces.sources import is_clip
    from ifan.optional import require_matplotlib

    if table or plot.suffix.lower() != ".png" or not (is_stream or (len(paths) == 1 and is_clip(paths[0]))):
        raise ValueError(f"--plot {plot}: expected NAME.png, one clip or stream, and a folder as --out; change that")
    require_matplotlib()


@dataclass(frozen=True)
class _Ear:
    """Receiver of what is done, in lines on stdout, and of how far it is."""

    say: Say
    report: Report


def _table(analyzer: FaceAnalyzer, paths: Sequence[str], out: Path, options: BulkOptions, ear: _Ear) -> list[str]:
    """Write one table, or with ``shard_rows`` a folder of shards; returns lines about what failed."""
    from ifan.bulk.flat import predict_table
    from ifan.bulk.run import predict_bulk

    if "shard_rows" in options:
        summary = predict_bulk(analyzer, paths, out, progress=ear.report, **options)
        ear.say(f"{out}: {summary.rows} rows, {summary.faces} faces, {summary.shards} shards")
        if gone := summary.removed:
            named = ", ".join(gone[:NAMED]) + (", ..." if len(gone) > NAMED else "")
            ear.say(f"{out}: rows of {len(gone)} inputs that are not given any more are gone: {named}")
    else:
        every, smooth = options["every"], options["smooth"]
        summary = predict_table(analyzer, paths, out, every=every, smooth=smooth, progress=ear.report)
        ear.say(f"{out}: {summary.faces} faces in {summary.rows} photos and frames")
    lines = [f"error: {one_line(failure['error'])}" for failure in summary.failures[:REPORTED]]
    if len(summary.failures) > REPORTED:
        lines.append(f"and {len(summary.failures) - REPORTED} more; see the column error")
    return lines and [f"{len(summary.failures)} of {summary.rows} rows failed:", *lines]


@dataclass(frozen=True)
class _Folder:
    """A folder that gets files of its own for each photo and clip."""

    analyzer: FaceAnalyzer
    out: Path
    boxes: Sequence[tuple[float, ...]]
    every: int
    strict: bool
    ear: _Ear

    def run(self, stems: dict[str, str], json_file: Path | None) -> list[str]:
        """Analyse the photos and clips ``stems``, with the names of their files; returns lines about what failed.

        What cannot be written stops everything, what cannot be read does not unless ``strict``.
        """
        from ifan.faces.sources import count_frames, is_clip
        from ifan.files import write_files

        weights = {path: count_frames(path, self.every) if is_clip(path) else 1 for path in stems}
        total, before = sum(weights.values()), 0
        done: list[dict[str, Any]] = []
        failed: list[dict[str, str]] = []
        for path, stem in stems.items():
            self.ear.report(before, total, len(failed))
            try:
                done.append(self._one(path, stem, later(self.ear.report, before, total, len(failed))))
            except (ValueError, MemoryError) as error:
                if self.strict:
                    raise
                reason = one_line(error) or f"{path}: not enough memory; shrink the picture"
                failed.append({"photo": path, "reason": reason})
            before += weights[path]
        if json_file is not None:
            write_files({json_file: json.dumps({"photos": done, "failed": failed}, indent=1).encode()})
        lines = [f"error: {failure['reason']}" for failure in failed]
        return lines and [f"{len(failed)} of {len(stems)} photos failed:", *lines]

    def _one(self, path: str, stem: str, progress: Callable[[int], None]) -> dict[str, Any]:
        """Analyse and save a photo or clip, say so, and return what ``--json`` keeps of it."""
        from ifan.faces.clip import save_clip
        from ifan.faces.sources import is_clip

        if is_clip(path):
            files, frames, faces = save_clip(self.analyzer, path, self.out, stem, self.every, progress)
            self.ear.say(f"{path}: {faces} faces in {frames} frames -> {files[0]}")
            return {"photo": path, "frames": frames, "files": [str(file) for file in files]}
        result = self.analyzer(path, self.boxes or None)
        files = result.save(self.out, stem)
        self.ear.say(f"{path}: {_summary(result)} -> {files[0]}")
        return {**result.to_dict(), "files": [str(file) for file in files]}


def _skipped(paths: Sequence[str], all_of_them: bool) -> str:
    """Line about ``paths`` that are not read; folders end in a separator."""
    folders = [path for path in paths if path.endswith(os.sep)]
    files = [path for path in paths if not path.endswith(os.sep)]
    parts = []
    for some, kind, why in (
        (files, "file", "neither picture nor clip"),
        (folders, "folder", "--recursive searches it"),
    ):
        named = some if all_of_them else some[:NAMED]
        more = [] if len(named) == len(some) else [f"and {len(some) - len(named)} more (named by --verbose)"]
        if some:
            kind, why = (kind, why) if len(some) == 1 else (f"{kind}s", why.replace(" it", " them"))
            parts.append(f"skipped {len(some)} {kind} ({why}): {', '.join([*named, *more])}")
    return one_line("; ".join(parts))


def _described(analyzer: FaceAnalyzer) -> str:
    from ifan.native import cpu_refusal, thread_count

    passes = f"{analyzer.iterations} iteration{'' if analyzer.iterations == 1 else 's'}"
    tasks = ", ".join(task.name for task in analyzer.predictor.tasks)
    kernels = "PyTorch" if cpu_refusal() else f"native kernels, {thread_count()} threads"
    return f"{passes} of {tasks}; {kernels}; detector {analyzer.detector or 'none'}"


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


def _summary(result: PhotoResult) -> str:
    moods = ["{} {:.0%}".format(*face.best("emotion")) for face in result.faces if face.emotion]
    count = f"{len(result)} face{'s' if len(result) != 1 else ''}"
    return f"{count}: {', '.join(moods)}" if moods else count
