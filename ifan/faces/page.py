"""A page to try the network: photos, clips or the camera, all packaged weights (``pip install 'ifan[serve]'``)."""

from __future__ import annotations

import base64
import os
import threading
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from ifan.data.limited import read_limited
from ifan.faces.analyzer import FaceAnalyzer, load
from ifan.faces.jpeg import encode_jpeg
from ifan.faces.live import Live
from ifan.faces.outputs import Outputs, Shelf
from ifan.faces.result import PhotoResult
from ifan.faces.sources import is_clip
from ifan.optional import require
from ifan.weights import DEFAULT, available

KEPT_SECONDS = 3600
"""Uploads and what the page has made of them are deleted when they are older."""

PHOTO = "photo"
"""Name of the untouched photo beside a result."""


class Comparison:
    """The same faces after different numbers of iterations, each of which the network was trained for.

    Args:
        analyzer: its network, detector and margin are used; faces are found once.
    """

    def __init__(self, analyzer: FaceAnalyzer) -> None:
        self.finder = analyzer
        self.analyzers = {
            count: FaceAnalyzer(
                analyzer.model, analyzer._device, detector=analyzer.detector, iterations=count, margin=analyzer.margin
            )
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
                self._read[name] = Comparison(load(name, self.first._device, detector=self.first.detector))
            return self._read[name]


def build(models: Models) -> Any:
    """The page as ``gradio.Blocks``. Raises ``ImportError`` without Gradio."""
    gr = gradio()
    first, outputs = models.names[0], Outputs(gr, Shelf(KEPT_SECONDS))

    def offer(name: str) -> list[Any]:
        counts = [_iterations(count) for count in models[name].analyzers]
        return [
            gr.Radio(counts, value=counts[-1], visible=len(counts) > 1),
            gr.Radio([PHOTO, *counts[:-1]], value=PHOTO, visible=len(counts) > 1),
        ]

    def show(path: str | None, name: str, counted: str, beside: str) -> list[Any]:
        if path is None:
            return outputs.nothing()
        try:
            compare, count = models[name], int(counted.split()[0])
            if is_clip(path):
                return outputs.clip(compare.analyzers[count], path)
            counts = [count] if beside == PHOTO else [count, int(beside.split()[0])]
            return outputs.photo(compare(path, counts), compare.finder.config.tasks)
        except (ValueError, MemoryError) as error:
            said = str(error) or f"{path}: not enough memory; shrink it"
            line = " ".join(said.replace(path, Path(path).name).split())
            gr.Warning(line, title="Cannot be analysed")
            return outputs.nothing(line)

    def watch(picture: np.ndarray | None, name: str, seen: Live | None) -> tuple[Any, Live | None]:
        if picture is None:
            return gr.HTML(), seen
        analyzer = models[name].finder
        seen = seen if seen is not None and seen.analyzer is analyzer else Live(analyzer)
        drawn, _ = seen(picture, time.monotonic())
        data = base64.b64encode(encode_jpeg(drawn)).decode()  # a file for each picture would fill the disk
        return f'<img src="data:image/jpeg;base64,{data}" style="width: 100%">', seen

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
                with gr.Tab("Live") as live_tab:
                    live = gr.Image(
                        label="live camera",
                        sources=["webcam"],
                        type="numpy",
                        streaming=True,
                        webcam_options=gr.WebcamOptions(mirror=False),
                        elem_id="live",
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
                watched = gr.HTML(visible=False, elem_id="watched")
                slider = gr.ImageSlider(
                    label="the wheel zooms, the line compares",
                    interactive=False,
                    format="png",
                    buttons=["fullscreen"],
                    max_height=760,
                    slider_position=6,  # most of the result is seen
                    elem_id="result",
                )
                clip = gr.Video(label="clip", visible=False, interactive=False, elem_id="clip")
                plot = gr.Image(
                    label="over time", visible=False, interactive=False, format="png", type="filepath", elem_id="plot"
                )
                legend = gr.HTML(elem_id="legend")
                faces = gr.Gallery(
                    label="faces", columns=6, object_fit="contain", height="auto", format="png", visible=False,
                    interactive=False, elem_id="faces",
                )  # fmt: skip
        chosen = gr.State(None)
        file.change(lambda path: path, file, chosen, api_visibility="private")
        camera.change(lambda path: path, camera, chosen, api_visibility="private")
        quiet = {"api_visibility": "private", "show_progress": "hidden"}
        live_tab.select(lambda: gr.HTML(visible=True), None, watched, **quiet)
        chosen.change(lambda: gr.HTML("", visible=False), None, watched, **quiet)
        seen = gr.State(None)
        live.stream(
            watch,
            [live, weights, seen],
            [watched, seen],
            stream_every=0.04,
            time_limit=None,
            concurrency_limit=1,  # its own, as photos would wait until the camera ends
            **quiet,
        )
        example.click(_example, None, chosen, api_visibility="private")
        asked = {
            "fn": show,
            "inputs": [chosen, weights, count, beside],
            "outputs": [slider, clip, plot, legend, faces, said, *downloads],
            "api_visibility": "private",
            "concurrency_limit": 1,
            "concurrency_id": "network",
        }
        gr.on([chosen.change, count.change, beside.change], **asked, trigger_mode="always_last")
        weights.change(offer, weights, [count, beside], api_visibility="private").then(**asked)
    return page


def _example() -> str:
    return str(resources.files("ifan") / "assets" / "astronaut.png")


def _iterations(count: int) -> str:
    return f"{count} iteration{'s' if count > 1 else ''}"


def gradio() -> Any:
    """The module ``gradio``, set to call nobody. Raises ``ImportError`` without it."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # else it reports to its makers
    return require("the page", "gradio", "Gradio", "ifan[serve]")
