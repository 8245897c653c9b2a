"""Fixtures: where the reference material and the real datasets lie, if they are there; and testing without PyTorch."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parents[1].parent / "shared"
WITHOUT_TORCH = importlib.util.find_spec("torch") is None
NEEDS_TORCH = "needs PyTorch: pip install 'ifan[torch]'"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--at-least", type=int, default=0, metavar="N", help="fail unless N tests or more have passed")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """Skip files that import torch where there is none, as `make test-analysis` has it."""
    report: Any = yield
    why = str(getattr(report, "longrepr", ""))
    if WITHOUT_TORCH and report.failed and ("No module named 'torch" in why or NEEDS_TORCH in why):
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, f"Skipped: {NEEDS_TORCH}")
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of minutes begin first: at the end the other processes would wait for them."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail where skipping has left fewer tests than ``--at-least`` says."""
    least, reporter = (
        session.config.getoption("--at-least"),
        session.config.pluginmanager.get_plugin("terminalreporter"),
    )
    passed = len(reporter.stats.get("passed", ())) if reporter else 0
    if session.exitstatus == 0 and passed < least:
        print(f"\nexpected at least {least} tests to pass; {passed} did: the others were skipped")
        session.exitstatus = 1


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the repository with the reference port, datasets and photos; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no folder {SHARED.name}/ beside the repository: reference material is optional")
    return SHARED


@pytest.fixture(scope="session")
def real_data(shared: Path) -> Path:
    """MTFL/, CelebAMask-HQ/ and fer2013/ in their true layouts, unpacked once into $IFAN_TEST_DATA or a temporary
    folder."""
    folder = Path(os.environ.get("IFAN_TEST_DATA", Path(tempfile.gettempdir()) / "ifan-test-data"))
    script = shared / "data" / "unpack.py"
    if not script.exists():
        pytest.skip(f"no {script.name}: the datasets are optional")
    subprocess.run([sys.executable, str(script), str(folder), "--csv"], check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(autouse=True)
def _seed() -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
