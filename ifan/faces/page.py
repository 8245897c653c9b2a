"""A page to try the network: a photo or the camera, one to three iterations (``pip install 'ifan[serve]'``).

Everything stays on this machine: the server listens to it alone, and neither the server nor the page calls anyone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ifan.data.limited import read_limited
from ifan.faces.analyzer import FaceAnalyzer
from ifan.faces.guard import guarded
from ifan.faces.result import PhotoResult
from ifan.optional import require

HOST, PORT = "127.0.0.1", 7860
MOST = 3
"""Iterations that the page offers at most."""

KEPT_SECONDS = 3600
"""Uploads and pictures that the page has shown are deleted when they are older."""


class Comparison:
    """The same faces after different numbers of iterations, each of which the network was trained for.

    Args:
        analyzer: its network, detector and margin are used; faces are found once.
    """

    def __init__(self, analyzer: FaceAnalyzer) -> None:
        self.finder = analyzer
        self.analyzers = {
            count: FaceAnalyzer(analyzer.model, detector=None, iterations=count, margin=analyzer.margin)
            for count in range(1, min(MOST, analyzer.config.iterations) + 1)
        }

    @property
    def choices(self) -> dict[str, tuple[int, ...]]:
        """Numbers of iterations by the name of a choice: each alone, then all side by side."""
        counts = tuple(self.analyzers)
        alone: dict[str, tuple[int, ...]] = {_iterations(count): (count,) for count in counts}
        return {**alone, f"1 to {counts[-1]}, side by side": counts} if len(counts) > 1 else alone

    def __call__(self, photo: Any, iterations: Sequence[int]) -> list[PhotoResult]:
        """A result for each of ``iterations``. Raises ``ValueError`` for what cannot be read."""
        name = Path(photo).name
        image = read_limited(photo, name)
        found = self.finder.detect([image], [None], [name])
        results = []
        for count in iterations:
            analyzer = self.analyzers[count]
            (prepared,) = analyzer.crop([image], found)
            faces = analyzer.faces(prepared, analyzer.predict([prepared]))
            results.append(PhotoResult(None, prepared.size, faces, image))
        return results


def build(analyzer: FaceAnalyzer) -> Any:
    """The page as ``gradio.Blocks``. Raises ``ImportError`` without Gradio."""
    gr = _gradio()
    compare = Comparison(analyzer)
    choices = compare.choices

    def show(photo: str | None, choice: str) -> list[Any]:
        if photo is None:
            return [gr.Image(None), *[gr.Image(None, visible=False)] * (MOST - 1), ""]
        try:
            results = compare(photo, choices[choice])
        except ValueError as error:
            raise gr.Error(" ".join(str(error).split()), print_exception=False) from error
        pictures: list[Any] = [
            gr.Image(result.plot(), label=_iterations(n), visible=True)
            for n, result in zip(choices[choice], results, strict=True)
        ]
        pictures += [gr.Image(None, visible=False)] * (MOST - len(pictures))
        return [*pictures, f"{len(results[0])} faces" if len(results[0]) != 1 else "1 face"]

    with gr.Blocks(title="ifan", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as page:
        gr.Markdown("# ifan\nBoxes, parsing, points and emotion of every face. Photos do not leave this machine.")
        with gr.Row():
            with gr.Column(scale=1):
                photo = gr.Image(
                    label="photo",
                    sources=["upload", "webcam", "clipboard"],
                    type="filepath",  # as it was sent: the library reads it, with its own limits
                    image_mode=None,
                    webcam_options=gr.WebcamOptions(mirror=False),  # left stays left
                    height=360,
                    elem_id="photo",
                )
                choice = gr.Radio(list(choices), value=next(iter(choices)), label="iterations", elem_id="iterations")
                count = gr.Markdown(elem_id="count")
            with gr.Column(scale=3), gr.Row():
                shown = [
                    gr.Image(interactive=False, format="png", visible=i == 1, buttons=[], elem_id=f"result-{i}")
                    for i in range(1, MOST + 1)
                ]
        gr.on(
            [photo.change, choice.change],
            show,
            [photo, choice],
            [*shown, count],
            api_visibility="private",
            concurrency_limit=1,
            trigger_mode="always_last",
        )
    return page


def serve(analyzer: FaceAnalyzer, port: int = PORT, max_mb: int = 20, block: bool = True) -> Any:
    """Serve the page on this machine only, until interrupted.

    Args:
        analyzer: see `Comparison`.
        port: of 127.0.0.1.
        max_mb: uploads above so many megabytes are refused.
        block: wait until interrupted; else returns at once, the page with its ``close()``.

    Raises:
        ValueError: a number out of range.
        ImportError: Gradio is missing.
        OSError: the port is taken.
    """
    if not (1 <= port <= 65535 and max_mb >= 1):
        raise ValueError(f"expected a port between 1 and 65535 and max_mb of at least 1; got {port} and {max_mb}")
    gr = _gradio()
    page = build(analyzer)
    page.launch(
        server_name=HOST,
        server_port=port,
        share=False,
        max_file_size=f"{max_mb}mb",
        app_kwargs=guarded(),
        prevent_thread_lock=not block,
        show_error=True,
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # no fonts from elsewhere
    )
    return page


def _iterations(count: int) -> str:
    return f"{count} iteration{'s' if count > 1 else ''}"


def _gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # else it reports to its makers
    return require("the page", "gradio", "Gradio", "ifan[serve]")
