"""``POST /analyze``: the schema holds, what is wrong is one line, and there are limits of size, number and time."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import cv2
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the service needs FastAPI: pip install 'ifan[serve]'")

from ifan.data.images import FORMATS
from ifan.faces import FaceAnalyzer, service
from ifan.faces.guard import LocalOnly
from ifan.faces.server import HOST, Server


class Gate:
    """An analyzer whose work waits until ``open`` is set."""

    def __init__(self, analyzer: FaceAnalyzer) -> None:
        self.analyzer, self.open = analyzer, threading.Event()
        self.open.set()

    def __call__(self, image: np.ndarray) -> Any:
        assert self.open.wait(120)
        return self.analyzer(image)


@pytest.fixture
def gate(analyzer: FaceAnalyzer) -> Gate:
    return Gate(analyzer)


@pytest.fixture
def address(gate: Gate) -> Iterator[str]:
    server = Server(LocalOnly(service.service(gate, max_mb=1, at_once=4)), 0)
    yield f"http://{HOST}:{server.port}"
    gate.open.set()
    server.close()


def png(photo: np.ndarray) -> bytes:
    return cv2.imencode(".png", photo[..., ::-1])[1].tobytes()


def post(address: str, data: bytes) -> tuple[int, dict[str, Any]]:
    """Status and answer."""
    try:
        with urlopen(Request(address, data), timeout=120) as response:
            return response.status, json.load(response)
    except HTTPError as error:
        return error.code, json.load(error)


def test_the_answer_is_the_result_and_follows_the_schema(address: str, gate: Gate, photo: np.ndarray) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="answers are checked by jsonschema: pip install jsonschema")
    with urlopen(f"{address}/schema.json") as response:
        schema = json.load(response)
    expected = gate.analyzer(photo)
    for query, runs in (("", False), ("?runs=1", True)):
        status, found = post(f"{address}/analyze{query}", png(photo))
        assert status == 200
        assert found == json.loads(json.dumps(expected.to_dict(runs)))
        jsonschema.validate(found, schema)
    for broken in ({"faces": []}, {**found, "more": 1}, {**found, "faces": [{**found["faces"][0], "box": "x"}]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)


def test_what_is_no_photo_is_one_line(address: str) -> None:
    line = f"photo: not a picture this program reads ({FORMATS}); convert it"
    assert post(f"{address}/analyze", b"hello") == (400, {"error": line})


def test_large_photos_are_refused(address: str) -> None:
    status, said = post(f"{address}/analyze", bytes((1 << 20) + 1))
    assert (status, said["error"]) == (413, "expected at most 1 MB; got more; shrink the photo")


def test_more_at_once_than_allowed_are_told_to_come_back(address: str, gate: Gate, photo: np.ndarray) -> None:
    gate.open.clear()
    with ThreadPoolExecutor(9) as pool:
        answers = [pool.submit(post, f"{address}/analyze", png(photo)) for _ in range(9)]
        refused = 0
        while refused < 5:
            refused = sum(answer.done() for answer in answers)
        gate.open.set()
        found = sorted(answer.result()[0] for answer in answers)
    assert found == [200] * 4 + [503] * 5
    assert post(f"{address}/analyze", png(photo))[0] == 200


def test_a_photo_that_does_not_come_is_given_up(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "READ_SECONDS", 0.01)
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        raise AssertionError("the photo was waited for")

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/analyze", "headers": [], "query_string": b""}
    asyncio.run(service.service(gate)(scope, receive, send))
    assert sent[0]["status"] == 408
    assert b"expected the photo within 0.01 s" in sent[1]["body"]


def test_other_sites_are_refused(address: str, photo: np.ndarray) -> None:
    request = Request(f"{address}/analyze", png(photo), {"Origin": "https://example.org"})
    with pytest.raises(HTTPError, match="403"):
        urlopen(request)
