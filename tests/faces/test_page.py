"""The page in a real browser: a photo, the camera, a clip, weights, limits, and nobody else is called."""

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
from ifan.cli.demo import nine_of
from ifan.data.images import read_image
from ifan.faces.page import Comparison, Models
from ifan.faces.server import HOST, serve
from tests.support.clips import write_clip, write_pictures

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver on the PATH")
PORTRAIT = resources.files("ifan") / "assets" / "astronaut.png"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    server = serve(Models(ifan.load()), port, max_mb=1, block=False)
    yield f"http://{HOST}:{port}"
    server.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium whose camera plays a clip: the bundled portrait, which moves to and fro."""
    folder = tmp_path_factory.mktemp("browser")
    camera = cv2.resize(cv2.imdecode(np.frombuffer(PORTRAIT.read_bytes(), np.uint8), 1)[:384], (640, 480))
    places = [*range(0, 40, 4), *range(40, 0, -4)]
    pictures = [cv2.imencode(".jpg", np.roll(camera, place, 1))[1].tobytes() for place in places]
    (folder / "camera.mjpeg").write_bytes(b"".join(pictures))
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


def eventually(found: Callable[[], Any], seconds: float = 120) -> Any:
    """What ``found`` gives as soon as it gives something."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, f"nothing after {seconds} s"
        time.sleep(0.1)
    return value


def shown(browser: Any, selector: str = "#result img") -> list[tuple[str, int]]:
    """Address and width of each picture of ``selector`` that is on the page and loaded."""
    script = """return [...document.querySelectorAll(arguments[0])]
        .filter(i => i.complete && i.naturalWidth && i.offsetWidth).map(i => [i.src, i.naturalWidth])"""
    return [tuple(pair) for pair in browser.execute_script(script, selector)]


def sources(browser: Any) -> list[str]:
    """Addresses of the left and the right picture, once both are there."""
    eventually(lambda: len(shown(browser)) == 2)
    return [src for src, _ in shown(browser)]


def text(browser: Any, selector: str) -> str:
    return browser.execute_script("return document.querySelector(arguments[0])?.innerText || ''", selector)


def upload(browser: Any, path: Path) -> None:
    """Into an empty page."""
    eventually(lambda: browser.find_elements("css selector", "#file input[type=file]"))[0].send_keys(str(path))


def fetch(browser: Any, src: str) -> bytes:
    """The bytes at an address, as the browser gets them."""
    script = """const done = arguments[1]; fetch(arguments[0]).then(r => r.arrayBuffer())
        .then(b => done([...new Uint8Array(b)]))"""
    return bytes(browser.execute_async_script(script, src))


def download(browser: Any, kind: str, folder: Path) -> bytes:
    """The file that a button gives."""
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    browser.find_element("css selector", f"#download-{kind}").click()
    return eventually(lambda: [p for p in folder.glob("*") if p.suffix != ".crdownload"])[0].read_bytes()


@pytest.fixture
def page(browser: Any, address: str) -> Any:
    """A fresh page."""
    browser.get_log("performance")
    browser.get(address)
    eventually(lambda: browser.find_elements("css selector", "#file input[type=file]"))
    return browser


def test_the_example_beside_its_first_iteration(page: Any, address: str) -> None:
    eventually(lambda: page.find_elements("css selector", "#example"))[0].click()
    eventually(lambda: text(page, "#count") == "1 face")
    photo, drawn = sources(page)
    eventually(lambda: len(shown(page, "#faces img")) == 1)
    assert "inside mouth" in text(page, "#legend")
    page.find_elements("css selector", "#left input")[1].click()
    eventually(lambda: [src for src, _ in shown(page)][:1] not in ([], [photo]))
    once, again = sources(page)
    pictures = [cv2.imdecode(np.frombuffer(fetch(page, src), np.uint8), 1) for src in (drawn, once, again)]
    assert pictures[0].shape == pictures[1].shape
    assert np.array_equal(pictures[0], pictures[2])
    assert not np.array_equal(pictures[1], pictures[2])
    called = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = {m["params"]["request"]["url"] for m in called if m["method"] == "Network.requestWillBeSent"}
    assert len(urls) > 5
    assert [url for url in urls if not url.startswith((address, "data:", "blob:"))] == []


def test_nine_faces_and_three_downloads(page: Any, tmp_path: Path) -> None:
    photo = nine_of(read_image(PORTRAIT.read_bytes()))
    cv2.imwrite(str(tmp_path / "nine.jpg"), photo[..., ::-1])
    upload(page, tmp_path / "nine.jpg")
    eventually(lambda: text(page, "#count") == "9 faces")
    eventually(lambda: len(shown(page, "#faces img")) >= 9)
    assert "9 happy" in text(page, "#faces")
    overlay, numbers, table = (download(page, k, tmp_path / f"out-{k}") for k in ("overlay", "JSON", "CSV"))
    assert overlay.startswith(b"\xff\xd8")
    assert len(json.loads(numbers)["faces"]) == 9
    lines = table.decode().splitlines()
    assert len(lines) == 10
    assert "left_eye_x" in lines[0]


def test_other_weights_offer_the_iterations_they_were_trained_for(page: Any) -> None:
    assert "3 iterations" in text(page, "#right")
    field = page.find_element("css selector", "#weights input")
    field.click()
    eventually(lambda: page.find_elements("css selector", "[role=option][data-value=paper-64], [aria-label=paper-64]"))[
        0
    ].click()
    eventually(lambda: not text(page, "#right"))


def test_the_camera(page: Any) -> None:
    eventually(lambda: [b for b in page.find_elements("css selector", "button[role=tab]") if b.text == "Camera"])[
        0
    ].click()
    eventually(lambda: [b for b in page.find_elements("css selector", "#camera button") if "access" in b.text.lower()])[
        0
    ].click()
    eventually(lambda: page.execute_script("return document.querySelector('#camera video')?.videoWidth"))
    eventually(lambda: page.find_elements("css selector", "#camera button[aria-label*=apture]"))[0].click()
    eventually(lambda: text(page, "#count") == "1 face")


def test_the_camera_as_a_stream(page: Any) -> None:
    tabs = lambda: page.find_elements("css selector", "button[role=tab]")  # noqa: E731
    eventually(lambda: [tab for tab in tabs() if tab.text == "Live"])[0].click()
    buttons = lambda: page.find_elements("css selector", "#live button")  # noqa: E731
    eventually(lambda: [b for b in buttons() if "access" in b.text.lower()])[0].click()
    eventually(lambda: page.execute_script("return document.querySelector('#live video')?.videoWidth"))
    eventually(lambda: [b for b in buttons() if b.text.strip() == "Record"])[0].click()
    seen: list[str] = []

    def another() -> bool:
        seen.extend(src for src, _ in shown(page, "#watched img") if src not in seen)
        return len(seen) >= 2

    eventually(another)
    pictures = [cv2.imdecode(np.frombuffer(fetch(page, src), np.uint8), 1) for src in seen]
    assert {picture.shape for picture in pictures} == {(480, 640, 3)}
    eventually(lambda: [b for b in buttons() if b.text.strip() == "Stop"])[0].click()


def test_a_clip(page: Any, tmp_path: Path) -> None:
    upload(page, write_clip(tmp_path / "a.mp4", 2))
    eventually(lambda: "in 2 frames" in text(page, "#count"))
    eventually(lambda: page.find_elements("css selector", "#clip video"))
    assert not page.find_elements("css selector", "#plot img"), "no face"


def test_a_clip_with_a_face_over_time(page: Any, tmp_path: Path) -> None:
    portrait = read_image(PORTRAIT)[:384, 64:448]
    upload(page, write_pictures(tmp_path / "face.mp4", [np.roll(portrait, 4 * i, 1) for i in range(3)]))
    eventually(lambda: "3 faces in 3 frames" in text(page, "#count"))
    plot = eventually(lambda: page.find_elements("css selector", "#plot img"))[0]
    eventually(lambda: int(plot.get_attribute("naturalWidth")) > 300)


@pytest.mark.parametrize(
    ("name", "data", "line"),
    [
        ("cut.png", PORTRAIT.read_bytes()[:20_000], "cut.png: the picture is cut short or damaged; replace it"),
        ("text.jpg", b"hello", "text.jpg: not a picture this program reads"),
        ("bad.mp4", b"hello", "bad.mp4: the clip cannot be read"),
    ],
)
def test_what_is_no_photo_is_one_line(page: Any, tmp_path: Path, name: str, data: bytes, line: str) -> None:
    (tmp_path / name).write_bytes(data)
    upload(page, tmp_path / name)
    said = eventually(lambda: text(page, ".toast-wrap"))
    assert line in said
    assert "/" not in said
    assert shown(page) == []


def test_large_uploads_are_refused(page: Any, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(PORTRAIT.read_bytes() + bytes(1 << 20))
    upload(page, tmp_path / "large.png")
    assert "exceed the maximum" in eventually(lambda: text(page, ".toast-wrap"))
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
    compare = Comparison(ifan.load())
    results = compare(str(PORTRAIT), (1, 2, 3))
    assert len({result[0].box for result in results}) == 1
    for count, result in enumerate(results, 1):
        alone = ifan.load(iterations=count)(PORTRAIT.read_bytes())
        assert result[0].emotion == pytest.approx(alone[0].emotion, abs=1e-5)
    assert results[0][0].emotion != results[2][0].emotion


def test_only_trained_iterations_are_offered() -> None:
    models = Models(ifan.load())
    assert [len(models[name].analyzers) for name in ("ifan-128", "paper-64")] == [3, 1]


def test_options_out_of_range() -> None:
    for options in ({"port": 0}, {"max_mb": 0}, {"at_once": 0}):
        with pytest.raises(ValueError, match="expected a port between"):
            serve(Models(ifan.load()), **options)
