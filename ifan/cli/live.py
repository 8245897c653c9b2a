"""``ifan live``: a camera's faces in a window."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import typer


def live(
    camera: Annotated[
        str, typer.Argument(help="A camera's number, or an address such as rtsp://... or http://...")
    ] = "0",
    weights: Annotated[str | None, typer.Option(help="Packaged name, model folder or run folder.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
) -> None:
    """Show a camera with its faces in a window, until it is closed or Escape is pressed.

    Without a screen, or without Python's tkinter: `ifan serve` has a tab for the browser's camera.
    """
    from ifan.cli.streams import ended_by_key, stream_of
    from ifan.faces import load
    from ifan.faces.live import Live, newest

    stream = stream_of([camera])
    if stream is None:
        raise ValueError(f"{camera}: expected a camera's number or an address; for files use ifan predict")
    window, draw = Window(f"ifan: {stream.name}"), Live(load(weights, device))
    with ended_by_key(stream):
        for _, seconds, image in newest(stream):
            picture, _ = draw(image, seconds)
            if not window.show(picture):
                break


class Window:
    """A window that shows pictures. Raises ``ValueError`` where there is none, with the way out."""

    def __init__(self, title: str) -> None:
        hint = "run this on a screen, or run ifan serve and open the tab Live of its page"
        try:
            import tkinter
        except ImportError as error:
            raise ValueError(f"no window can be opened ({error}); install Python's tkinter and {hint}") from error
        try:
            self._root = tkinter.Tk()
        except tkinter.TclError as error:
            raise ValueError(f"no window can be opened ({error}); {hint}") from error
        self._picture = tkinter.PhotoImage
        self._root.title(title)
        self._label = tkinter.Label(self._root, borderwidth=0)
        self._label.pack()
        self._open = True
        self._root.protocol("WM_DELETE_WINDOW", self.close)
        self._root.bind("<Escape>", lambda _: self.close())

    def show(self, picture: np.ndarray) -> bool:
        """Show a picture (H, W, 3) uint8 RGB; False once the window is closed."""
        if self._open:
            height, width = picture.shape[:2]
            self._shown = self._picture(data=b"P6 %d %d 255\n" % (width, height) + picture.tobytes(), format="PPM")
            self._label.configure(image=self._shown)
            self._root.update()
        return self._open

    def close(self) -> None:
        """Close the window."""
        self._open = False
        self._root.destroy()
