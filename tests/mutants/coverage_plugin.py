"""Which tests run a line, and how long each takes: a plugin of pytest for `tests.mutants.run`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import coverage
import pytest


class LinesOfTests:
    """After the tests: the ``lines`` of each of ``sources``, by number, with the tests that ran them; the ``seconds``
    of each test, and those that ``failed``."""

    def __init__(self, sources: list[str]) -> None:
        self.tracer = coverage.Coverage(data_file=None, include=sources, messages=False)
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []
        self.tracer.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[Any]:
        """A context a test."""
        self.tracer.switch_context(item.nodeid)
        result = yield
        self.tracer.switch_context("")
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Time of all three phases."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.failed.append(report.nodeid)

    def result(self) -> dict[str, Any]:
        """What was seen, in terms of JSON."""
        self.tracer.stop()
        data = self.tracer.get_data()
        lines = {file: data.contexts_by_lineno(file) for file in data.measured_files()}
        return {
            "seconds": self.seconds,
            "failed": self.failed,
            "lines": {f: {str(n): [c for c in names if c] for n, names in found.items()} for f, found in lines.items()},
        }
