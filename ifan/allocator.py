"""glibc's allocator, tuned for tensors; only commands call this, importing the library changes nothing."""

from __future__ import annotations

import ctypes
import platform
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Raise glibc's thresholds above which memory is taken from and given back to the system for every tensor.

    Page faults otherwise cost training on the CPU up to half of its time. Affects this process only; False elsewhere.
    """
    return _set(_MMAP_THRESHOLD, 1 << 30) and _set(_TRIM_THRESHOLD, -1)


def return_freed_memory() -> bool:
    """Give every large tensor pages of its own that go back to the system when it is freed; False elsewhere.

    Slow, but resident memory then follows what is alive, which is what measuring a peak needs.
    """
    return _set(_MMAP_THRESHOLD, 1 << 17) and _set(_TRIM_THRESHOLD, 1 << 17)


def trim() -> None:
    """Give what is free in glibc's heaps back to the system."""
    if _glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _set(option: int, value: int) -> bool:
    try:
        return _glibc() and bool(ctypes.CDLL(None).mallopt(option, value))
    except (OSError, AttributeError):
        return False


def _glibc() -> bool:
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
