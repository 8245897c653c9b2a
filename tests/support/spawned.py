"""What tests run in processes of their own; it imports nothing that is slow to import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ifan.bench.process import Mark


def aborting() -> Any:
    """As glibc does where it finds its heap damaged."""
    os.write(2, b"first\ndouble free or corruption (!prev)\n\n")
    os.abort()


def behave(mark: Mark, how: str, folder: Path) -> int:
    """Abort, raise, wait for a process whose id ``folder`` tells, or return the own process' id."""
    mark(how)
    if how == "abort":
        aborting()
    if how == "raise":
        raise ValueError("no")
    if how == "wait":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        (folder / "new").write_text(str(child.pid))
        (folder / "new").rename(folder / "pid")
        child.wait()
    return os.getpid()
