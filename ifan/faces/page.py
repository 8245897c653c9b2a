"""A page to try the network: photos, clips or the camera, all packaged weights (``pip install 'ifan[serve]'``).

Everything stays on this machine: the server listens to it alone, and neither the server nor the page calls anyone.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ifan.crop import Crop, covered
from ifan.data.limited import read_limited
from ifan.faces.analyzer import FaceAnalyzer, load
from ifan.faces.clip import save_clip
from ifan.faces.draw import enlargement, label_of, labelled
from ifan.faces.guard import LocalOnly
from ifan.faces.palette import palette
from ifan.faces.result import PhotoResult
from ifan.faces.service import AT_ONCE, service
from ifan.faces.sources import count_frames, is_clip
from ifan.files import write_files
from ifan.optional import require
from ifan.weights import DEFAULT, available

HOST, PORT = "127.0.0.1", 7860
FRAMES = 300
"""Of a longer clip every so many frames are left out that about this many remain."""

KEPT_SECONDS = 3600
"""Uploads and what the page has made of them are deleted when they are older."""

PHOTO = "photo"
"""Name of the untouched photo beside a result."""

CSS = """
#result img { image-rendering: auto }
#legend span { display: inline-flex; align-items: center; gap: .35em; margin-right: 1.1em }
#legend i { width: .9em; height: .9em; border: 1px solid var(--body-text-color); display: inline-block }
"""


class Comparison:
    """The same faces after different numbers of iterations, each of which the network was trained for.

    Args:
        analyzer: its network, detector and margin are used; faces are found once.
    """

    def __init__(self, analyzer: FaceAnalyzer) -> None:
        self.finder = analyzer
        self.analyzers = {
            count: FaceAnalyzer(analyzer.model, detector=analyzer.detector, iterations=count, margin=analyzer.margin)
            for count in range(1, analyzer.config.iterations + 1)
        }

    def __call__(self, photo: str | Path, iterations: Sequence[int]) -> list[PhotoResult]:
        """A result for each of ``iterations``. Raises ``ValueError`` for what cannot be read."""
        name = Path(photo).name
        image = read_limited(photo, name)
        found = self.finder.detect([image], [None], [name])
        results = []
        for count in iterations:
            analyzer = self.analyzers[count]
            (prepared,) = analyzer.crop([image], found)
            faces = analyzer.faces(prepared, analyzer.predict([prepared]))
            results.append(PhotoResult(name, prepared.size, faces, image))
        return results


class Models:
    """Weights that the page offers, read when they are first asked for: the analyzer's, and the packaged ones."""

    def __init__(self, analyzer: FaceAnalyzer, name: str = DEFAULT) -> None:
        self.first, self.names = analyzer, [name, *(other for other in available() if other != name)]
        self._read: dict[str, Comparison] = {name: Comparison(analyzer)}
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> Comparison:
        with self._lock:
            if name not in self._read:
                self._read[name] = Comparison(load(name, detector=self.first.detector))
            return self._read[name]


class Shelf:
    """Folders for downloads, removed when they are older than `KEPT_SECONDS`, and all when the program ends."""

    def __init__(self) -> None:
        self._root = tempfile.TemporaryDirectory(prefix="ifan-page-")

    def folder(self) -> Path:
        """A new folder."""
        for old in Path(self._root.name).iterdir():
            if time.time() - old.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(dir=self._root.name))


def build(models: Models) -> Any:
    """The page as ``gradio.Blocks``. Raises ``ImportError`` without Gradio."""
    gr = _gradio()
    first, shelf = models.names[0], Shelf()

    def offer(name: str) -> list[Any]:
        counts = [_iterations(count) for count in models[name].analyzers]
        return [
            gr.Radio(counts, value=counts[-1], visible=len(counts) > 1),
            gr.Radio([PHOTO, *counts[:-1]], value=PHOTO, visible=len(counts) > 1),
        ]

    def show(path: str | None, name: str, counted: str, beside: str) -> list[Any]:
        if path is None:
            return _nothing(gr)
        try:
            compare, count = models[name], int(counted.split()[0])
            if is_clip(path):
                return _shown_clip(gr, compare.analyzers[count], path, shelf.folder())
            counts = [count] if beside == PHOTO else [count, int(beside.split()[0])]
            return _shown_photo(gr, compare(path, counts), shelf.folder())
        except ValueError as error:
            line = " ".join(str(error).replace(path, Path(path).name).split())
            raise gr.Error(line, title="Cannot be analysed", print_exception=False) from error

    with gr.Blocks(title="ifan", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as page:
        gr.Markdown("# ifan\nRegions, points and emotion of every face. Photos and clips do not leave this machine.")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                with gr.Tab("File"):
                    # A component for pictures would decode the file itself, with messages and limits of its own.
                    file = gr.File(label="photo or clip", height=150, elem_id="file")
                    example = gr.Button("Example photo", size="sm", elem_id="example")
                with gr.Tab("Camera"):
                    camera = gr.Image(
                        label="camera",
                        sources=["webcam"],
                        type="filepath",
                        webcam_options=gr.WebcamOptions(mirror=False),  # left stays left
                        elem_id="camera",
                    )
                weights = gr.Dropdown(models.names, value=first, label="weights", elem_id="weights")
                counts = [_iterations(count) for count in models[first].analyzers]
                several = len(counts) > 1
                count = gr.Radio(counts, value=counts[-1], label="right", visible=several, elem_id="right")
                beside = gr.Radio([PHOTO, *counts[:-1]], value=PHOTO, label="left", visible=several, elem_id="left")
                said = gr.Markdown(elem_id="count")
                with gr.Row():
                    downloads = [
                        gr.DownloadButton(kind, size="sm", visible=False, min_width=60, elem_id=f"download-{kind}")
                        for kind in ("overlay", "JSON", "CSV")
                    ]
            with gr.Column(scale=3):
                slider = gr.ImageSlider(
                    label="the wheel zooms, the line compares",
                    interactive=False,
                    format="jpeg",
                    buttons=["fullscreen"],
                    max_height=760,
                    slider_position=6,  # most of the result is seen
                    elem_id="result",
                )
                clip = gr.Video(label="clip", visible=False, interactive=False, elem_id="clip")
                legend = gr.HTML(elem_id="legend")
                faces = gr.Gallery(
                    label="faces", columns=6, object_fit="contain", height="auto", format="jpeg", visible=False,
                    interactive=False, elem_id="faces",
                )  # fmt: skip
        chosen = gr.State(None)
        file.change(lambda path: path, file, chosen, api_visibility="private")
        camera.change(lambda path: path, camera, chosen, api_visibility="private")
        example.click(_example, None, chosen, api_visibility="private")
        weights.change(offer, weights, [count, beside], api_visibility="private")
        gr.on(
            [chosen.change, count.change, beside.change],
            show,
            [chosen, weights, count, beside],
            [slider, clip, legend, faces, said, *downloads],
            api_visibility="private",
            concurrency_limit=1,
            trigger_mode="always_last",
        )
    return page


def serve(models: Models, port: int = PORT, max_mb: int = 20, at_once: int = AT_ONCE, block: bool = True) -> Any:
    """Serve the page and ``POST /analyze`` on this machine only, until interrupted.

    Args:
        models: the first one answers ``POST /analyze``, see `ifan.faces.service.service`.
        port: of 127.0.0.1.
        max_mb: uploads above so many megabytes are refused.
        at_once: requests to ``/analyze`` beyond so many are refused.
        block: wait until interrupted; else return at once a server with a method ``close()``.

    Raises:
        ValueError: a number out of range.
        ImportError: Gradio is missing.
        OSError: the port is taken.
    """
    if not (1 <= port <= 65535 and max_mb >= 1 and at_once >= 1):
        raise ValueError(
            f"expected a port between 1 and 65535, max_mb and at_once of at least 1; got {port}, {max_mb} and {at_once}"
        )
    gr = _gradio()
    app = gr.mount_gradio_app(
        service(models.first, max_mb, at_once),
        build(models),
        path="/",
        max_file_size=f"{max_mb}mb",
        show_error=True,
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # no fonts from elsewhere
        css=CSS,
    )
    server = Server(LocalOnly(app), port)
    if block:
        server.wait()
    return server


class Server:
    """An ASGI application served at a port of this machine, by a thread of its own."""

    def __init__(self, app: Any, port: int) -> None:
        import socket

        import uvicorn

        self._socket = socket.create_server((HOST, port))  # raises before the thread starts
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when interrupted."""
        try:
            while self._thread.is_alive():
                self._thread.join(1)
        except KeyboardInterrupt:
            self.close()

    def close(self) -> None:
        """Let go of the port; answers under way have five seconds."""
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()


def _nothing(gr: Any) -> list[Any]:
    """Outputs of a page without a photo."""
    hidden = [gr.DownloadButton(visible=False)] * 3
    return [
        gr.ImageSlider(None, visible=True),
        gr.Video(None, visible=False),
        "",
        gr.Gallery(visible=False),
        "",
        *hidden,
    ]


def _shown_photo(gr: Any, results: list[PhotoResult], folder: Path) -> list[Any]:
    """Outputs for a photo: the first of ``results``, beside the second one or the photo."""
    result = results[0]
    right = labelled(result.image, result.faces)
    size = right.shape[1], right.shape[0]
    left = labelled(result.image, results[1].faces) if results[1:] else cv2.resize(result.image, size)
    files = result.files(folder)
    paths = [path for path in files if path.suffix != ".png"]
    table = folder / f"{paths[0].stem.removesuffix('_overlay')}.csv"
    write_files({**files, table: _csv([{"photo": result.path, **face.to_dict()} for face in result])})
    tiles = [_tile(right, enlargement(result.image, result.faces), face, i) for i, face in enumerate(result, 1)]
    return [
        gr.ImageSlider((left, right), visible=True),
        gr.Video(None, visible=False),
        _legend(result),
        gr.Gallery(tiles, visible=bool(tiles)),
        f"{len(result)} faces" if len(result) != 1 else "1 face",
        *(gr.DownloadButton(value=str(path), visible=True) for path in (*paths, table)),
    ]


def _shown_clip(gr: Any, analyzer: FaceAnalyzer, path: str, folder: Path) -> list[Any]:
    """Outputs for a clip: the clip with overlays."""
    every = max(1, round(count_frames(path) / FRAMES))
    (film, lines), frames, faces = save_clip(analyzer, path, folder, Path(path).stem, every)
    table = lines.with_suffix(".csv")
    rows = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    named = [
        {"photo": Path(path).name, "frame": row["frame"], "time": row["time"], **f}
        for row in rows
        for f in row["faces"]
    ]
    write_files({table: _csv(named)})
    return [
        gr.ImageSlider(None, visible=False),
        gr.Video(str(film), visible=True),
        "",
        gr.Gallery(visible=False),
        f"{faces} faces in {frames} frames",
        *(gr.DownloadButton(value=str(path), visible=True) for path in (film, lines, table)),
    ]


def _tile(picture: np.ndarray, scale: float, face: Any, number: int) -> tuple[np.ndarray, str]:
    """A face of the drawn picture alone, and its label."""
    crop = Crop(face.crop.cx * scale, face.crop.cy * scale, face.crop.side * scale)
    x0, y0, x1, y1 = covered(crop, picture.shape)
    return picture[y0:y1, x0:x1], label_of(face, number)


def _legend(result: PhotoResult) -> str:
    """The colours' names as HTML."""
    names = next((face.parsing_classes for face in result if face.parsing is not None), ())
    colours = palette(max(len(names), 1))
    parts = [
        f'<span><i style="background: rgb({r}, {g}, {b})"></i>{name.replace("_", " ")}</span>'
        for name, (r, g, b) in list(zip(names, colours, strict=True))[1:]
    ]
    return "".join(parts)


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    """Nested ``rows`` as one table; a nested value is a column named after all that leads to it."""
    flat = [_flat(row) for row in rows]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in flat for name in row)))
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue().encode()


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, (dict, list)):
        return {name: value}
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    return {k: v for key, part in parts for k, v in _flat(part, f"{name}_{key}" if name else str(key)).items()}


def _example() -> str:
    return str(resources.files("ifan") / "assets" / "astronaut.png")


def _iterations(count: int) -> str:
    return f"{count} iteration{'s' if count > 1 else ''}"


def _gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # else it reports to its makers
    return require("the page", "gradio", "Gradio", "ifan[serve]")
