"""The one writer: files and folders that are whole or not there, and folders that one process writes to."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_PART = re.compile(r"\.ifan-[0-9a-f]{16}\.part")


def part_beside(path: Path) -> Path:
    """Name beside ``path`` for what will be renamed to it: no other process, machine or thread takes the same."""
    return path.with_name(f".ifan-{secrets.token_hex(8)}.part")


def is_part(path: Path) -> bool:
    """True if ``path`` has a name of `part_beside`."""
    return _PART.fullmatch(path.name) is not None


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write all files or none: to temporary names beside their places first, then renamed in order.

    Folders are made as needed; a file that was there is replaced. Raises ``OSError``, which names the file, and leaves
    nothing half-written.
    """
    waiting: dict[Path, Path] = {}
    try:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = part_beside(path)
            try:
                handle = _create(part)
                waiting[path] = part
                _fill(handle, data)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error
        for path, temporary in waiting.items():
            temporary.replace(path)
    finally:
        for temporary in waiting.values():
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Name beside ``path`` for a file that is too large for `write_files`: it takes its place at the end of the block.

    Where the block raises nothing changes. Folders are made as needed. Raises ``OSError``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_beside(path)
    try:
        yield part
        _sync(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Put a folder of ``files`` in place in one step, replacing one of that name; raises ``OSError``."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    if old.exists() and not target.exists():  # an earlier run stopped between the two renames below
        os.rename(old, target)
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    os.mkdir(fresh)
    for name, content in files.items():
        _fill(_create(fresh / name), content)
    _sync(fresh)
    if target.exists():
        os.rename(target, old)
    try:
        os.rename(fresh, target)
    except OSError:
        if old.exists():
            os.rename(old, target)
        raise
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


class FolderLock:
    """Lock on ``folder``, which is made if needed, until `release`, or until this process ends.

    Raises ``ValueError`` if another process or another lock of this one holds it, ``OSError`` if the folder cannot be
    made. Where the system has no such locks, nobody is kept out.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor: int | None = None
        folder.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            return
        self._descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise ValueError(
                f"{folder}: another process is writing there; wait for it, or choose another name"
            ) from None
        except OSError:  # some network file systems
            pass

    def release(self) -> None:
        """Let others in; again and again without harm."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()


def remove_parts(*folders: Path, older: float = 0.0) -> None:
    """Remove what a killed `write_files` left in ``folders``, as far as these are there.

    Where others may be writing, ``older`` says for how many seconds a part must not have changed.
    """
    for folder in folders:
        for path in folder.iterdir() if folder.is_dir() else ():
            if is_part(path) and (not older or time.time() - path.stat().st_mtime > older):
                path.unlink()


def checksum(data: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


def _create(path: Path) -> int:
    """Descriptor of a new file; ``FileExistsError`` if there is one."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)


def _fill(handle: int, content: bytes) -> None:
    """Write ``content`` down to the disk and close."""
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync(path: Path) -> None:
    """Make a file, or the names in a folder, durable; systems that cannot open folders do it on their own."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
