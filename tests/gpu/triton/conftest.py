"""Tests that need Triton's interpreter, which is chosen before Triton is imported.

``test_triton_kernels.py`` runs them in a process of their own.
"""

from __future__ import annotations

import dataclasses
import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED else ["test_*.py"]

if INTERPRETED:
    from triton.runtime.interpreter import interpreter_builder

    # Its checks of integer overflow cost half the time and are thrown away; the checker makes them count.
    interpreter_builder.options = dataclasses.replace(interpreter_builder.options, sanitize_overflow=False)
