"""Progress of what takes long: on a terminal one bar after two seconds, elsewhere a line a minute."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

AFTER_SECONDS, EVERY_SECONDS = 2.0, 60.0
"""Seconds of work before a bar is shown; seconds between two lines."""

_shown: list[Progress] = []
"""The display on the terminal: whoever comes later adds a bar to it, as two would overwrite each other."""


class Report(Protocol):
    """Called with units done, expected in all, and failed; the first time with those that need not be done again."""

    def __call__(self, done: int, total: int, failed: int = 0, /) -> None: ...


@contextmanager
def progress(what: str, unit: str = "images", quiet: bool = False) -> Iterator[Report]:
    """Shows on stderr how much of ``what`` is done, and the time left; nothing if ``quiet``."""
    if quiet:
        yield lambda done, total, failed=0: None
    elif sys.stderr.isatty():
        bar = _Bar(what, unit)
        try:
            yield bar
        finally:
            bar.close()
    else:
        yield _Lines(what, unit)


def later(report: Report, before: int, total: int, failed: int = 0) -> Callable[[int], None]:
    """``report`` for a part that counts its own units from 0, after ``before`` of ``total``."""
    return lambda done: report(before + done, total, failed)


def open_bars(console: Console | None = None) -> Progress:
    """A started display of bars that fits 80 columns; lines printed meanwhile come above it. Ends by `close_bars`.

    The bars need the fields ``counts`` and ``note``, which is text in its own column.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.table import Column
    from rich.text import Text

    class Rate(ProgressColumn):
        """Units a second of late."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.finished_speed or task.speed or 0:.1f}/s")

    columns = (
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(12),
        TextColumn("{task.fields[counts]}", table_column=Column(no_wrap=True)),
        Rate(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        TextColumn("left", table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[note]}", table_column=Column()),  # the only one that wraps
    )
    # Lines of stdout go through the display only if they go to the same terminal, not if they go to a file.
    bars = Progress(
        *columns, console=console or Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty()
    )
    bars.start()
    _shown.append(bars)
    return bars


def close_bars(bars: Progress) -> None:
    """End a display; again and again without harm."""
    if bars in _shown:
        _shown.remove(bars)
    bars.stop()


class _Bar:
    """A bar that appears after `AFTER_SECONDS`, in the display that is there or in one of its own."""

    def __init__(self, what: str, unit: str) -> None:
        self.what, self.unit = what, unit
        self.state: tuple[int, int | None, int] = 0, None, 0
        self.bars: Progress | None = None
        self.own = False
        self.lock = threading.Lock()
        self.timer = threading.Timer(AFTER_SECONDS, self._appear)
        self.timer.daemon = True
        self.timer.start()

    def __call__(self, done: int, total: int, failed: int = 0, /) -> None:
        with self.lock:
            self.state = done, total, failed
            if self.bars is not None:
                self.bars.update(self.task, **self._facts())

    def _facts(self) -> dict[str, Any]:
        done, total, failed = self.state
        counts = "" if total is None else f"{done}/{total} {self.unit}"
        return {"completed": done, "total": total, "counts": counts + (f", {failed} failed" if failed else "")}

    def _appear(self) -> None:
        with self.lock:
            if self.timer.finished.is_set():  # closed meanwhile
                return
            self.own = not _shown
            self.bars = open_bars() if self.own else _shown[-1]
            self.task = self.bars.add_task(self.what, note="", **self._facts())

    def close(self) -> None:
        self.timer.cancel()
        with self.lock:
            if self.bars is None:
                return
            self.bars.remove_task(self.task)
            if self.own:
                close_bars(self.bars)
            self.bars = None


class _Lines:
    """A line of text a minute, for log files."""

    def __init__(self, what: str, unit: str) -> None:
        self.what, self.unit = what, unit
        self.first: tuple[int, float] | None = None
        self.last = 0.0

    def __call__(self, done: int, total: int, failed: int = 0, /) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first, self.last = (done, now), now
        if now - self.last >= EVERY_SECONDS:
            rate = (done - self.first[0]) / (now - self.first[1])
            left = timedelta(seconds=round((total - done) / rate)) if rate else "unknown time"
            counts = f"{done}/{total} {self.unit}, {failed} failed" if failed else f"{done}/{total} {self.unit}"
            print(f"{self.what}: {counts}, {rate:.1f} {self.unit}/s, {left} left", file=sys.stderr, flush=True)
            self.last = now
