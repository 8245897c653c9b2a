"""The command line: one file a command, gathered in `ifan.cli.main`; no logic of its own."""

from __future__ import annotations


def one_line(text: object) -> str:
    """``text`` for a terminal: without line breaks, and with a ? for each byte of a path that is not text."""
    return " ".join(str(text).split()).encode("utf-8", "replace").decode()
