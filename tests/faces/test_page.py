"""The page in a real browser: a photo, the camera, one to three iterations, limits, and nobody else is called."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import cv2
import numpy as np
import pytest

pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'ifan[serve]'")
pytest.importorskip("selenium", reason="the browser is driven by selenium: pip install selenium")

from selenium import webdriver

import ifan
from ifan.faces.page import HOST, Comparison, serve

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver on the PATH")
PORTRAIT = resources.files("ifan") / "assets" / "astronaut.png"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    page = serve(ifan.load(), port, max_mb=1, block=False)
    yield f"http://{HOST}:{port}"
    page.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium whose camera shows the bundled portrait."""
    folder = tmp_path_factory.mktemp("browser")
    camera = cv2.resize(cv2.imdecode(np.frombuffer(PORTRAIT.read_bytes(), np.uint8), 1)[:384], (640, 480))
    (folder / "camera.mjpeg").write_bytes(cv2.imencode(".jpg", camera)[1].tobytes())
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "window-size=1400,1500", f"user-data-dir={folder / 'profile'}",
        "use-fake-ui-for-media-stream", "use-fake-device-for-media-stream",
        f"use-file-for-fake-video-capture={folder / 'camera.mjpeg'}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


def eventually(found: Callable[[], Any], seconds: float = 40) -> Any:
    """What ``found`` gives as soon as it gives something."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, f"nothing after {seconds} s"
        time.sleep(0.1)
    return value


def shown(browser: Any) -> list[tuple[str, int]]:
    """Address and width of each result that is on the page and loaded."""
    script = """return [...document.querySelectorAll('[id^=result-] img')]
        .filter(i => i.complete && i.naturalWidth && i.offsetWidth).map(i => [i.src, i.naturalWidth])"""
    return [tuple(pair) for pair in browser.execute_script(script)]


def text(browser: Any, selector: str) -> str:
    return browser.execute_script("return document.querySelector(arguments[0])?.innerText || ''", selector)


def upload(browser: Any, path: Path) -> None:
    """Into an empty page."""
    eventually(lambda: browser.find_elements("css selector", "#photo input[type=file]"))[0].send_keys(str(path))


@pytest.fixture
def page(browser: Any, address: str) -> Any:
    """A fresh page."""
    browser.get_log("performance")
    browser.get(address)
    eventually(lambda: browser.find_elements("css selector", "#photo input[type=file]"))
    return browser


def test_a_photo_one_iteration_and_all_side_by_side(page: Any, address: str, tmp_path: Path) -> None:
    upload(page, Path(str(PORTRAIT)))
    ((_, width),) = eventually(lambda: shown(page))
    assert text(page, "#count") == "1 face"
    assert width == ifan.load()(PORTRAIT.read_bytes()).plot().shape[1]
    page.find_elements("css selector", "#iterations input")[3].click()
    results = eventually(lambda: len(found := shown(page)) == 3 and found)
    assert page.save_screenshot(str(tmp_path / "page.png"))
    assert "1 iteration" in text(page, "#result-1")
    assert "3 iterations" in text(page, "#result-3")
    tops = page.execute_script("return [...document.querySelectorAll('[id^=result-]')].map(e => e.offsetTop)")
    assert len(set(tops)) == 1
    once, _, often = (cv2.imdecode(np.frombuffer(fetch(page, src), np.uint8), 1) for src, _ in results)
    assert once.shape == often.shape
    assert not np.array_equal(once, often)
    called = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = {m["params"]["request"]["url"] for m in called if m["method"] == "Network.requestWillBeSent"}
    assert len(urls) > 5
    assert [url for url in urls if not url.startswith((address, "data:", "blob:"))] == []


def fetch(browser: Any, src: str) -> bytes:
    """The bytes of a picture, as the browser gets them."""
    script = """const done = arguments[1]; fetch(arguments[0]).then(r => r.arrayBuffer())
        .then(b => done([...new Uint8Array(b)]))"""
    return bytes(browser.execute_async_script(script, src))


def test_the_camera(page: Any, tmp_path: Path) -> None:
    eventually(lambda: page.find_elements("css selector", "#photo button[aria-label*=camera]"))[0].click()
    eventually(lambda: [b for b in page.find_elements("css selector", "#photo button") if "access" in b.text.lower()])[
        0
    ].click()
    eventually(lambda: page.execute_script("return document.querySelector('#photo video')?.videoWidth"))
    eventually(lambda: page.find_elements("css selector", "#photo button[aria-label*=apture]"))[0].click()
    eventually(lambda: shown(page))
    assert text(page, "#count") == "1 face"
    assert page.save_screenshot(str(tmp_path / "page.png"))


def test_what_is_no_photo_is_one_line(page: Any, tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(PORTRAIT.read_bytes()[:20_000])
    upload(page, tmp_path / "cut.png")
    said = eventually(lambda: text(page, ".toast-wrap"))
    assert "cut.png: the picture is cut short or damaged; replace it" in said
    assert shown(page) == []


def test_large_uploads_are_refused(page: Any, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(PORTRAIT.read_bytes() + bytes(1 << 20))
    upload(page, tmp_path / "large.png")
    said = eventually(lambda: text(page, ".toast-wrap"))
    assert "exceed the maximum" in said
    assert shown(page) == []


def test_the_server_refuses_large_uploads_too(address: str) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    request = Request(f"{address}/gradio_api/upload", head + bytes(2 << 20) + b"\r\n--x--\r\n")
    request.add_header("Content-Type", "multipart/form-data; boundary=x")
    with pytest.raises(HTTPError, match="413"):
        urlopen(request)


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="open ports are read from /proc")
def test_only_this_machine_is_served(address: str) -> None:
    port = f"{int(address.rpartition(':')[2]):04X}"
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    assert {line[1] for line in lines if line[3] == "0A" and line[1].endswith(f":{port}")} == {f"0100007F:{port}"}


def test_comparison_finds_faces_once_and_runs_them_as_often_as_asked() -> None:
    analyzer = ifan.load()
    compare = Comparison(analyzer)
    assert list(compare.choices) == ["1 iteration", "2 iterations", "3 iterations", "1 to 3, side by side"]
    results = compare(PORTRAIT, (1, 2, 3))
    assert len({result[0].box for result in results}) == 1
    for count, result in enumerate(results, 1):
        alone = ifan.load(iterations=count)(PORTRAIT.read_bytes())
        assert result[0].emotion == pytest.approx(alone[0].emotion, abs=1e-5)
    assert results[0][0].emotion != results[2][0].emotion


def test_only_trained_iterations_are_offered() -> None:
    assert Comparison(ifan.load("paper-64")).choices == {"1 iteration": (1,)}


def test_options_out_of_range() -> None:
    for options in ({"port": 0}, {"max_mb": 0}):
        with pytest.raises(ValueError, match="expected a port between"):
            serve(ifan.load(), **options)
