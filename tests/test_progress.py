"""The one progress bar: late, sane at 80 columns, one display at a time."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest
from rich.console import Console

from ifan import progress as module
from ifan.progress import close_bars, later, open_bars, progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Standard error, 80 columns wide; called within a test, as pytest sets its own before."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    return stream


def wait_for(text: str, stream: io.StringIO) -> None:
    for _ in range(500):
        if text in stream.getvalue():
            return
        time.sleep(0.02)
    raise AssertionError(f"{text!r} did not appear in {stream.getvalue()!r}")


def lines(stream: io.StringIO) -> list[str]:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).replace("\r", "\n").splitlines()


def test_what_is_quick_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with progress("predict") as report:
        report(1, 2)
        report(2, 2)
    assert terminal.getvalue() == ""
    assert not module._shown


def test_a_bar_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    monkeypatch.setattr(module, "AFTER_SECONDS", 0.0)
    with progress("predict") as report:
        report(1200, 123_456)
        wait_for("1200/123456 images", terminal)
        report(1234, 123_456, 12)
        wait_for("1234/123456 images, 12 failed", terminal)
    shown = [line for line in lines(terminal) if "images" in line]
    assert all(len(line) <= 80 and line.rstrip().endswith(" left") for line in shown)
    assert not module._shown


def test_a_bar_within_another_display_joins_it(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    monkeypatch.setattr(module, "AFTER_SECONDS", 0.0)
    text = Terminal()
    bars = open_bars(Console(file=text, force_terminal=True, width=80))
    bars.add_task(
        "train", total=9, counts="1/9", note="parsing 0.5000  landmarks 0.5000  emotion 0.5000  9.0 samples/s"
    )
    with progress("validation") as report:
        report(3, 7)
        wait_for("3/7 images", text)
        assert len(bars.tasks) == 2
    assert len(bars.tasks) == 1
    close_bars(bars)
    close_bars(bars)
    assert terminal.getvalue() == ""
    assert "emotion 0.5000" in text.getvalue()
    assert all(len(line) <= 80 for line in lines(text))


def test_quiet_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    monkeypatch.setattr(module, "AFTER_SECONDS", 0.0)
    with progress("predict", quiet=True) as report:
        report(1, 2)
    assert terminal.getvalue() == ""


def test_parts_count_on() -> None:
    said: list[tuple[int, ...]] = []
    later(lambda *counts: said.append(counts), 5, 9, 1)(2)
    assert said == [(7, 9, 1)]
