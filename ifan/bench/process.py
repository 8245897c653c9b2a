"""A call in a process of its own: what goes wrong in there, a crash even, ends the call and nothing else."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Mark = Callable[[str], None]
"""Notes what the process is at, for `ProcessDied`; costs less than a microsecond."""

LONGEST = 64
"""Of a mark, in bytes."""
LEAVE = 10.0
"""Seconds in which a process that has answered may tidy up."""


class ProcessDied(Exception):
    """A process that gave no answer: why, and in ``mark`` what it was at."""

    def __init__(self, why: str, mark: str) -> None:
        super().__init__(why)
        self.mark = mark


def in_subprocess(function: Callable[..., T], *arguments: Any, timeout: float | None = None) -> T:
    """``function(mark, *arguments)`` in a fresh process, which gets them by pickling; so does its answer this one.

    Raises what the function raises, and `ProcessDied` if its process dies or is not done after ``timeout`` seconds.
    Processes that it started end with it.
    """
    with started(function, *arguments) as answer:
        return answer(timeout)


@contextlib.contextmanager
def started(function: Callable[..., T], *arguments: Any) -> Iterator[Callable[[float | None], T]]:
    """The same begun and not waited for: yields what waits, and ends the process on leaving."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    mark = context.RawArray("c", LONGEST)
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "stderr"
        process = context.Process(target=_answer, args=(sender, mark, said, function, arguments))
        process.start()
        sender.close()
        try:
            yield lambda timeout: _wait(process, receiver, mark, said, timeout)
        finally:
            _end(process)
            receiver.close()


def _wait(process: SpawnProcess, receiver: Connection, mark: Any, said: Path, timeout: float | None) -> Any:
    if not receiver.poll(timeout):
        raise ProcessDied(f"not finished in {timeout:.0f} s", mark.value.decode())
    try:
        good, found = receiver.recv()
    except EOFError:
        process.join()
        raise ProcessDied(_why(process.exitcode or 0, said), mark.value.decode()) from None
    process.join(LEAVE)
    if not good:
        raise found
    return found


def _answer(sender: Connection, mark: Any, said: Path, function: Callable[..., Any], arguments: Any) -> None:
    """In the process: its own group, so that all of it can be ended; what it says kept, to tell why it died."""
    os.setsid()
    threading.Thread(target=_follow_parent, daemon=True).start()
    with said.open("wb") as file:
        os.dup2(file.fileno(), 2)

    def note(text: str) -> None:
        mark.value = text.encode()[: LONGEST - 1]

    try:
        answer = True, function(note, *arguments)
    except Exception as error:
        answer = False, error
    sender.send(answer)


def _follow_parent() -> None:
    """Ends this process and what it started when the one that waits for it is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)


def _end(process: SpawnProcess) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # no group yet, or nobody left in it
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.kill()
    process.join()


def _why(code: int, said: Path) -> str:
    lines = said.read_text(errors="replace").split("\n") if said.exists() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"the process ended by {name}" + (f": {last[:200]}" if last else "")
