"""``POST /analyze``: the bytes of a photo in, its faces as JSON out."""

from __future__ import annotations

import asyncio
from typing import Any

from ifan.data.limited import read_limited
from ifan.faces.analyzer import FaceAnalyzer
from ifan.optional import require

AT_ONCE = 64
"""Requests that are read, wait or are at work together, where nothing else is said."""

READ_SECONDS = 30
"""A photo that has not arrived after so long is given up."""

DECODED_AT_ONCE = 2
"""Processes that decode photos, each within the limits of `ifan.data.limited`."""

_NUMBER = {"type": "number"}
_NUMBERS = {"type": "array", "items": _NUMBER}
_COUNTS = {"type": "object", "additionalProperties": {"type": "integer"}}


def _object(optional: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


SCHEMA: dict[str, Any] = _object(
    photo={"type": ["string", "null"], "description": "its path; null if it came from memory"},
    width={"type": "integer"},
    height={"type": "integer"},
    faces={
        "type": "array",
        "items": _object(
            optional=("parsing",),
            box={**_NUMBERS, "description": "x0, y0, x1, y1 in pixels"},
            score={"type": ["number", "null"], "description": "certainty of the detector; null for a given box"},
            crop=_object(cx=_NUMBER, cy=_NUMBER, side=_NUMBER, angle_deg=_NUMBER),
            landmarks={"type": "object", "additionalProperties": {**_NUMBERS, "description": "x, y in pixels"}},
            classes={
                "type": "object",
                "additionalProperties": {"type": "object", "additionalProperties": {"type": "number"}},
                "description": "classification task to class to probability",
            },
            parsing=_object(
                optional=("runs",),
                region={**_NUMBERS, "description": "x0, y0, x1, y1 in pixels, where the map lies"},
                pixels={**_COUNTS, "description": "pixels of each class"},
                runs={**_NUMBERS, "description": "the map row by row: class id, number of pixels, next id, ..."},
            ),
        ),
    },
)
"""JSON Schema of `PhotoResult.to_dict`."""


def service(analyzer: FaceAnalyzer, max_mb: int = 20, at_once: int = AT_ONCE) -> Any:
    """A ``fastapi.FastAPI`` with ``POST /analyze``, and `SCHEMA` at ``/schema.json``.

    The body is the file of a photo; ``?runs=1`` asks for the class maps too. Photos are analysed one after the other.
    An answer other than 200 is ``{"error": line}``: 400 = no photo, 408 = sent too slowly, 413 = more than ``max_mb``
    megabytes, 503 = ``at_once`` requests are there already. Raises ``ImportError`` without FastAPI.
    """
    fastapi = require("the service", "fastapi", "FastAPI", "ifan[serve]")
    desk = _Desk(analyzer, max_mb << 20, at_once)
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_route("/analyze", desk.analyze, methods=["POST"])
    app.add_route("/schema.json", _schema, methods=["GET"])
    return app


class _Refusal(Exception):
    """Status and line of an answer without a result."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


class _Desk:
    """Requests that are here: all are received at once, two decoded, one analysed."""

    def __init__(self, analyzer: FaceAnalyzer, max_bytes: int, at_once: int) -> None:
        self.analyzer, self.max_bytes, self.at_once = analyzer, max_bytes, at_once
        self.here, self.work, self.decoding = 0, asyncio.Lock(), asyncio.Semaphore(DECODED_AT_ONCE)

    async def analyze(self, request: Any) -> Any:
        from starlette.responses import JSONResponse

        self.here += 1
        try:
            return JSONResponse(await self._answer(request))
        except _Refusal as refusal:
            headers = {"Retry-After": "1"} if refusal.status == 503 else None
            return JSONResponse({"error": str(refusal)}, refusal.status, headers)
        finally:
            self.here -= 1

    async def _answer(self, request: Any) -> dict[str, Any]:
        from starlette.concurrency import run_in_threadpool
        from starlette.requests import ClientDisconnect

        if self.here > self.at_once:
            raise _Refusal(503, f"expected at most {self.at_once} requests at once; got more; try again in a second")
        try:
            data = await asyncio.wait_for(self._read(request), READ_SECONDS)
        except asyncio.TimeoutError:
            raise _Refusal(
                408, f"expected the photo within {READ_SECONDS} s; got a part of it; send it again"
            ) from None
        except ClientDisconnect:
            raise _Refusal(400, "the connection was closed before the photo was there") from None
        runs = request.query_params.get("runs") == "1"
        try:
            async with self.decoding:
                image = await run_in_threadpool(read_limited, data, "photo")
            async with self.work:
                result = await run_in_threadpool(self.analyzer, image)
        except ValueError as error:
            raise _Refusal(400, " ".join(str(error).split())) from error
        except MemoryError as error:
            raise _Refusal(400, "photo: not enough memory; shrink the picture") from error
        return result.to_dict(runs)

    async def _read(self, request: Any) -> bytes:
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > self.max_bytes:
                raise _Refusal(413, f"expected at most {self.max_bytes >> 20} MB; got more; shrink the photo")
        return bytes(data)


async def _schema(request: Any) -> Any:
    from starlette.responses import JSONResponse

    return JSONResponse({"$schema": "https://json-schema.org/draft/2020-12/schema", **SCHEMA})
