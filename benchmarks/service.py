"""``POST /analyze`` in figures: many requests at once, and the same photos one after the other.

    python -m benchmarks.service                # a server of its own, 50 requests at once with the packaged portrait
    python -m benchmarks.service --photo a.jpg --requests 200 --iterations 1

What is printed goes into docs/tutorials/deploy.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import ifan
from ifan.faces.guard import LocalOnly
from ifan.faces.server import HOST, Server
from ifan.faces.service import service

PORTRAIT = Path(ifan.__file__).parent / "assets" / "astronaut.png"


def ask(address: str, photo: bytes) -> tuple[int, float]:
    """Status and seconds of one request."""
    began = time.perf_counter()
    try:
        with urlopen(Request(address, photo), timeout=600) as response:
            response.read()
            status = response.status
    except HTTPError as error:
        status = error.code
    return status, time.perf_counter() - began


def main() -> None:
    """Print what the requests took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, default=PORTRAIT)
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--iterations", type=int)
    options = parser.parse_args()
    server = Server(LocalOnly(service(ifan.load(iterations=options.iterations), at_once=options.requests)), 0)
    address, photo = f"http://{HOST}:{server.port}/analyze", options.photo.read_bytes()
    ask(address, photo)
    alone = [ask(address, photo)[1] for _ in range(5)]
    print(f"one after the other: {statistics.median(alone):.2f} s each, median of {len(alone)}")
    began = time.perf_counter()
    with ThreadPoolExecutor(options.requests) as pool:
        answers = list(pool.map(lambda _: ask(address, photo), range(options.requests)))
    seconds = time.perf_counter() - began
    waits = sorted(took for _, took in answers)
    good = sum(status == 200 for status, _ in answers)
    print(f"{options.requests} at once: {good} answered with 200 in {seconds:.1f} s, {good / seconds:.2f} a second")
    print(f"waits: median {statistics.median(waits):.1f} s, longest {waits[-1]:.1f} s")
    server.close()


if __name__ == "__main__":
    main()
