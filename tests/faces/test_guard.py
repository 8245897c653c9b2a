"""The page answers programs of this machine and itself, and no other site."""

from __future__ import annotations

import asyncio
import http.client
import socket
from collections.abc import Iterator
from typing import Any

import pytest

import ifan
from ifan.faces.guard import LocalOnly, refusal

OWN = "127.0.0.1:7860"


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ({"host": OWN}, None),
        ({"host": "localhost:8080"}, None),
        ({"host": "LocalHost"}, None),
        ({"host": "[::1]:7860"}, None),
        ({"host": OWN, "origin": f"http://{OWN}"}, None),
        ({"host": "evil.example:7860"}, "got evil.example:7860"),
        ({"host": "127.0.0.1.evil.example"}, "got 127.0.0.1.evil.example"),
        ({"host": "192.168.0.7:7860"}, "got 192.168.0.7:7860"),
        ({"host": "evil.example:7860", "origin": "http://evil.example:7860"}, "expected a request to 127.0.0.1"),
        ({}, "got none"),
        ({"host": OWN, "origin": "https://evil.example"}, "got one of https://evil.example"),
        ({"host": OWN, "origin": "http://localhost:7860"}, "got one of http://localhost:7860"),
        ({"host": OWN, "origin": "http://127.0.0.1:80"}, "got one of"),
        ({"host": OWN, "origin": "null"}, "got one of null"),
        ({"host": OWN, "origin": ""}, "got one of"),
    ],
)
def test_who_is_refused(headers: dict[str, str], why: str | None) -> None:
    said = refusal([(name.encode(), value.encode()) for name, value in headers.items()])
    assert said is None if why is None else why in said


def test_two_hosts_are_refused() -> None:
    assert refusal([(b"host", OWN.encode()), (b"host", b"evil.example")]) is not None


def answer(scope: dict[str, Any]) -> list[Any]:
    """What goes out; ``inside`` if the guarded application was reached."""
    sent: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send("inside")

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(LocalOnly(application)(scope, None, send))
    return sent


def test_refused_requests_do_not_reach_the_page() -> None:
    foreign, own = [(b"host", b"evil.example")], [(b"host", OWN.encode())]
    for kind in ("http", "websocket"):
        assert answer({"type": kind, "headers": own}) == ["inside"]
    assert answer({"type": "lifespan"}) == ["inside"]
    start, body = answer({"type": "http", "headers": foreign})
    assert (start["status"], body["body"].count(b"\n")) == (403, 1)
    (closed,) = answer({"type": "websocket", "headers": foreign})
    assert closed["type"] == "websocket.close"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'ifan[serve]'")
    from ifan.faces.page import Models
    from ifan.faces.server import serve

    with socket.create_server(("127.0.0.1", 0)) as probe:
        number = probe.getsockname()[1]
    server = serve(Models(ifan.load()), number, block=False)
    yield number
    server.close()


@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/config"), ("POST", "/gradio_api/upload")])
def test_the_page_is_guarded(port: int, method: str, path: str) -> None:
    own = f"127.0.0.1:{port}"
    for headers, refused in (
        ({"Host": own}, False),
        ({"Host": own, "Origin": f"http://{own}"}, False),
        ({"Host": f"evil.example:{port}"}, True),
        ({"Host": own, "Origin": "http://evil.example"}, True),
    ):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request(method, path, b"", headers)
        assert (connection.getresponse().status == 403) == refused, headers
        connection.close()
