"""Progress of a long command: a bar on a terminal, elsewhere a line a minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import typer

EVERY_SECONDS = 60.0

Report = Callable[[int, int, int], None]
"""Called with images done, expected in all, and failed; the first time with those that need not be done again."""


@contextmanager
def progress() -> Iterator[Report]:
    """Shows images/s and time left on stderr."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        """Images a second of late."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.finished_speed or task.speed or 0:.1f} images/s")

    counts = TextColumn("{task.completed}/{task.total} images, {task.fields[failed]} failed")
    columns = (*Progress.get_default_columns()[:2], counts, Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("predict", failed=0, start=False)

        def show(done: int, total: int, failed: int) -> None:
            if bars.tasks[bar].started:
                bars.update(bar, completed=done, total=total, failed=failed)
            else:  # what was done before says nothing about the speed
                bars.reset(bar, completed=done, total=total, failed=failed)

        yield show


class _Lines:
    """A line of text a minute, for log files."""

    def __init__(self) -> None:
        self.first: tuple[int, float] | None = None
        self.last = 0.0

    def __call__(self, done: int, total: int, failed: int) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first, self.last = (done, now), now
        if now - self.last >= EVERY_SECONDS:
            rate = (done - self.first[0]) / (now - self.first[1])
            left = timedelta(seconds=round((total - done) / rate)) if rate else "unknown time"
            typer.echo(f"{done}/{total} images, {failed} failed, {rate:.1f} images/s, {left} left", err=True)
            self.last = now
