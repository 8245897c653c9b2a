"""The analyzer of an untrained network."""

from __future__ import annotations

from tests.faces.conftest import analyzer

__all__ = ["analyzer"]
