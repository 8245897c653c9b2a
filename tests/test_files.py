"""The one writer: whole files or none, names that nobody shares, one process a folder."""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ifan.files import FolderLock, remove_parts, write_files, write_folder


def test_400_saves_by_8_threads_keep_their_own_contents(tmp_path: Path) -> None:
    def save(number: int) -> None:
        files = {tmp_path / f"{number}.{ending}": f"{number} {ending}".encode() * 999 for ending in ("json", "png")}
        write_files(files)
        for path, data in files.items():
            assert path.read_bytes() == data

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(save, range(400)))
    assert len(list(tmp_path.iterdir())) == 800
    for path in tmp_path.iterdir():
        assert path.read_bytes() == f"{path.stem} {path.suffix[1:]}".encode() * 999


def test_a_name_that_is_taken_is_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines with one folder could draw one number: the second notices."""
    monkeypatch.setattr(secrets, "token_hex", lambda size: "0" * 2 * size)
    taken = tmp_path / f".ifan-{'0' * 16}.part"
    taken.write_bytes(b"of another process")
    with pytest.raises(FileExistsError, match=r"a\.json"):
        write_files({tmp_path / "a.json": b"mine"})
    assert taken.read_bytes() == b"of another process"
    assert not (tmp_path / "a.json").exists()


def test_all_files_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"old")
    count, real = itertools.count(), os.fsync

    def second_fails(handle: int) -> None:
        if next(count) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", second_fails)
        with pytest.raises(OSError, match=r"No space left on device: .*b'"):
            write_files({tmp_path / "a": b"new", tmp_path / "b": b"new"})
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"old")]
    write_files({tmp_path / "a": b"new", tmp_path / "deep" / "b": b"new"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "deep" / "b").read_bytes() == b"new"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~mask()


def mask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def test_only_own_leftovers_are_removed(tmp_path: Path) -> None:
    own = tmp_path / ".ifan-0123456789abcdef.part"
    others = [
        tmp_path / name for name in (".thesis.part", ".1-0.part", ".ifan-0123.part", "ifan-0123456789abcdef.part")
    ]
    for path in (own, *others):
        path.write_bytes(b"x")
    remove_parts(tmp_path, tmp_path / "none")
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_leftovers_beside_other_writers_are_removed_when_they_are_old(tmp_path: Path) -> None:
    old, fresh = (tmp_path / f".ifan-{number:016x}.part" for number in (1, 2))
    for path in (old, fresh):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 4000,) * 2)
    remove_parts(tmp_path, older=3600)
    assert list(tmp_path.iterdir()) == [fresh]


HOLD = "import sys; from pathlib import Path; from ifan.files import FolderLock; lock = FolderLock(Path(sys.argv[1]));"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    out, wait = tmp_path / "new" / "out", "print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD + wait, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ValueError, match=f"{out}: another process is writing there; wait for it, or choose"):
            FolderLock(out)
        other.kill()
    lock = FolderLock(out)  # a killed process holds nothing
    with pytest.raises(ValueError, match="another process"):
        FolderLock(out)
    lock.release()
    lock.release()
    with FolderLock(out):
        pass
    with FolderLock(out):
        pass
    assert list(out.iterdir()) == []


def test_one_failing_call_on_replacing_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever single call fails, one of the two folders is in place."""
    for k in itertools.count():
        target = tmp_path / str(k) / "model"
        write_folder(target, {"a": b"old"})
        count, fired = itertools.count(), []

        def once(real: Callable[..., Any], k: int = k, count: Any = count, fired: Any = fired) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                if next(count) == k:
                    fired.append(k)
                    raise OSError(errno.EIO, "failed")
                return real(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in ("mkdir", "open", "write", "fsync", "close", "rename"):
                patch.setattr(os, name, once(getattr(os, name)))
            try:
                write_folder(target, {"a": b"new"})
                assert (target / "a").read_bytes() == b"new"
            except OSError:
                assert (target / "a").read_bytes() in (b"old", b"new")
        if not fired:
            break
    assert k > 8
