"""Who may talk to the page: programs of this machine, and in a browser the page itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

HOSTS = ("127.0.0.1", "localhost", "[::1]")
"""Names under which the page is asked for; the port is free, as it may be forwarded."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class LocalOnly:
    """ASGI middleware that refuses requests under a foreign host's name, and those that pages of other sites send.

    Listening on this machine alone does not keep a web site out: its pages run in a browser on this machine. They can
    send uploads to any address, and read the answers if the site's own name leads here (DNS rebinding).
    """

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        why = refusal(scope["headers"]) if scope["type"] in ("http", "websocket") else None
        if why is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": why})
        else:
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": f"{why}\n".encode()})


def refusal(headers: list[tuple[bytes, bytes]]) -> str | None:
    """Line that says why a request with these ``headers`` is refused; ``None`` if it is not."""
    named = {
        wanted: [value.decode("latin-1").lower() for name, value in headers if name == wanted]
        for wanted in (b"host", b"origin")
    }
    hosts, origins = named[b"host"], named[b"origin"]
    if len(hosts) != 1 or _without_port(hosts[0]) not in HOSTS:
        return f"expected a request to {' or '.join(HOSTS)}; got {', '.join(hosts)[:100] or 'none'}; use one of these"
    if any(origin.partition("://")[2] != hosts[0] for origin in origins):
        return f"expected a request of the page itself; got one of {', '.join(origins)[:100]}; open the page instead"
    return None


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host
