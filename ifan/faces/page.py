"""A page to try the network: a photo or the camera, one or three feedback iterations (``pip install 'ifan[serve]'``).

Everything stays on this machine: the server listens to it alone, and neither the server nor the page calls anyone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ifan.data.images import read_image
from ifan.faces.analyzer import FaceAnalyzer
from ifan.faces.result import PhotoResult

HOST, PORT = "127.0.0.1", 7860
CHOICES = {"1 iteration": (1,), "3 iterations": (3,), "1 and 3, side by side": (1, 3)}
KEPT_SECONDS = 3600
"""Uploads and pictures that the page has shown are deleted when they are older."""


class Comparison:
    """The same faces after different numbers of feedback iterations.

    Args:
        analyzer: its network, detector and margin are used; faces are found once.
    """

    def __init__(self, analyzer: FaceAnalyzer) -> None:
        self.analyzers = {
            count: FaceAnalyzer(
                analyzer.network, detector=None, iterations=count, margin=analyzer.margin, looks=analyzer.looks
            )
            for count in sorted({count for counts in CHOICES.values() for count in counts})
        }
        self.finder = analyzer

    def __call__(self, photo: Any, iterations: Sequence[int]) -> list[PhotoResult]:
        """A result for each of ``iterations``. Raises ``ValueError`` for what cannot be read."""
        image = read_image(photo, Path(photo).name)
        (prepared,) = self.finder.prepare([image], [None], [Path(photo).name])
        results = []
        for count in iterations:
            analyzer = self.analyzers[count]
            faces = analyzer.faces(prepared, analyzer.predict([prepared]))
            results.append(PhotoResult(None, prepared.size, faces, image))
        return results


def build(analyzer: FaceAnalyzer) -> Any:
    """The page as ``gradio.Blocks``. Raises ``ValueError`` without Gradio."""
    gr = _gradio()
    compare = Comparison(analyzer)

    def show(photo: str | None, choice: str) -> list[Any]:
        if photo is None:
            return [gr.Image(None), gr.Image(None, visible=False), ""]
        try:
            results = compare(photo, CHOICES[choice])
        except ValueError as error:
            raise gr.Error(" ".join(str(error).split()), print_exception=False) from error
        pictures: list[Any] = [
            gr.Image(result.plot(), label=f"{n} iteration{'s' if n > 1 else ''}", visible=True)
            for n, result in zip(CHOICES[choice], results, strict=True)
        ]
        pictures += [gr.Image(None, visible=False)] * (2 - len(pictures))
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
                choice = gr.Radio(list(CHOICES), value=next(iter(CHOICES)), label="feedback", elem_id="feedback")
                count = gr.Markdown(elem_id="count")
            with gr.Column(scale=3), gr.Row():
                shown = [
                    gr.Image(interactive=False, format="png", visible=i == 1, buttons=[], elem_id=f"result-{i}")
                    for i in (1, 2)
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
        ValueError: Gradio is missing, or a number out of range.
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
        prevent_thread_lock=not block,
        show_error=True,
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # no fonts from elsewhere
    )
    return page


def _gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # else it reports to its makers
    try:
        import gradio
    except ImportError as error:
        raise ValueError("the page needs Gradio; pip install 'ifan[serve]'") from error
    return gradio
