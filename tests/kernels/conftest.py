"""These tests need Triton's interpreter, which is chosen before Triton is imported: ``tests/test_kernels.py`` runs them
in a process of their own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ops"))
