"""The page and ``POST /analyze`` at one port of this machine (``pip install 'ifan[serve]'``).

Everything stays on this machine: the server listens to it alone, and neither the server nor the page calls anyone.
"""

from __future__ import annotations

import socket
import threading
from typing import Any

from ifan.faces.guard import LocalOnly
from ifan.faces.page import Models, build, gradio
from ifan.faces.service import AT_ONCE, service

HOST, PORT = "127.0.0.1", 7860

CSS = """
#legend span { display: inline-flex; align-items: center; gap: .35em; margin-right: 1.1em }
#legend i { width: .9em; height: .9em; border: 1px solid var(--body-text-color); display: inline-block }
"""


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
    gr = gradio()
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
    """An ASGI application served at a port of this machine, by a thread of its own; 0 = any free ``port``."""

    def __init__(self, app: Any, port: int) -> None:
        import uvicorn

        self._socket = socket.create_server((HOST, port))  # raises before the thread starts
        self.port = self._socket.getsockname()[1]
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
