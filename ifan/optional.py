"""Imports on first use, and one line for a package that is not installed."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

TORCH = "torch", "PyTorch", "ifan[torch]"
"""Module, name and requirement of PyTorch, for `require`."""


class MissingPackageError(ImportError, ValueError):
    """An optional package that is needed and not installed; the message says how to install it.

    Also a ``ValueError``: the user can mend it, and commands print it as one line.
    """


def missing(what: str, name: str, requirement: str) -> MissingPackageError:
    """The error of ``what`` (a function or command), which needs the package called ``name``."""
    return MissingPackageError(f"{what} needs {name}: pip install {shlex.quote(requirement)}")


def require(what: str, module: str, name: str, requirement: str) -> ModuleType:
    """Import ``module`` for ``what``; raises `MissingPackageError` naming the package and how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing(what, name, requirement) from error


def require_matplotlib() -> None:
    """Raise `MissingPackageError` where plots cannot be drawn."""
    require("drawing plots", "matplotlib", "Matplotlib", "ifan[plot]")


def lazy(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of ``package``, whose names are imported from the modules ``homes`` on first use.

    It raises `MissingPackageError` for a name that needs PyTorch where there is none.
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            value = getattr(importlib.import_module(homes[name]), name)
        except ModuleNotFoundError as error:
            if error.name == TORCH[0]:
                raise missing(f"{package}.{name}", *TORCH[1:]) from error
            raise
        setattr(importlib.import_module(package), name, value)
        return value

    return find
