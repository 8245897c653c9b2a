"""A web server on this machine that gives out what a test wants."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = tuple[str, int | None, Iterable[bytes]]
"""Kind of content, length that is promised (``None`` = none), and the parts that are sent."""


@contextmanager
def serving(answers: Mapping[str, Answer]) -> Iterator[str]:
    """Address of a server whose paths have ``answers``; it sends the parts and hangs up."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path not in answers:
                self.send_error(404)
                return
            kind, length, parts = answers[self.path]
            self.send_response(200)
            self.send_header("Content-Type", kind)
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            try:
                for part in parts:
                    self.wfile.write(part)
            except OSError:  # whoever asked has gone
                return

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
