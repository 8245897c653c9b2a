"""Checkpoints that survive a failure at any moment.

A checkpoint is a folder ``step-00000100`` of safetensors files and a ``state.json`` with their checksums. It is written
under another name, every file is flushed to the disk, and only then renamed; the one before it goes when the new one is
in place.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from ifan.files import checksum, write_folder
from ifan.safetensors_io import CheckpointError, check_header, load_checked, specs_of

KEEP = 2
"""Checkpoints left in a run folder."""

Tensors = dict[str, dict[str, Tensor]]
"""File name without suffix (model, ema, optimizer) -> tensor name -> tensor."""

_NAME = re.compile(r"step-(\d{8,})")


def save_checkpoint(folder: Path, step: int, tensors: Tensors, state: Mapping[str, Any]) -> Path:
    """Write ``folder/step-<step>`` and remove all but the newest `KEEP` up to ``step``.

    Later ones can only be damaged ones that a resumed run went back behind. Raises `CheckpointError` when the disk
    refuses; the checkpoints that were there still load then.
    """
    target = folder / f"step-{step:08d}"
    files = {
        f"{name}.safetensors": save({k: t.contiguous() for k, t in part.items()}) for name, part in tensors.items()
    }
    sums = {name: checksum(content) for name, content in files.items()}
    whole = {**state, "step": step, "sha256": sums}
    files["state.json"] = json.dumps({**whole, "checksum": _state_sum(whole)}, indent=1).encode()
    try:
        write_folder(target, files)
    except OSError as error:
        raise CheckpointError(
            f"{target}: cannot write the checkpoint ({error.strerror or error}); the one before it is kept: make room"
            " and continue with --resume"
        ) from error
    kept = [c for c in checkpoints(folder) if step_of(c) <= step][:KEEP]
    for other in set(checkpoints(folder)) - set(kept):
        shutil.rmtree(other, ignore_errors=True)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints in ``folder``, newest first."""
    found = [p for p in folder.iterdir() if _NAME.fullmatch(p.name)] if folder.is_dir() else []
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step-"))


def read_state(checkpoint: Path) -> dict[str, Any]:
    """``state.json`` after comparing every file with its checksum; `CheckpointError` if one is missing or damaged."""
    try:
        state = json.loads((checkpoint / "state.json").read_bytes())
        sums = state["sha256"]
        for name, expected in sums.items():
            if checksum((checkpoint / name).read_bytes()) != expected:
                raise CheckpointError(f"{checkpoint / name}: damaged (checksum differs)")
        if state.pop("checksum") != _state_sum(state) or state["step"] != step_of(checkpoint):
            raise CheckpointError(f"{checkpoint / 'state.json'}: damaged (checksum or step differs)")
    except OSError as error:
        raise CheckpointError(f"{error.filename or checkpoint}: damaged ({error.strerror})") from error
    except (KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{checkpoint / 'state.json'}: damaged (not a checkpoint's state)") from error
    return dict(state)


def load_tensors(checkpoint: Path, expected: Tensors) -> Tensors:
    """All tensors of a checkpoint; every header is compared with ``expected`` before anything is allocated."""
    paths = {name: checkpoint / f"{name}.safetensors" for name in expected}
    for name, path in paths.items():
        check_header(path, specs_of(expected[name]), "this run")
    return {name: load_checked(path, expected[name], "this run") for name, path in paths.items()}


def _state_sum(state: Mapping[str, Any]) -> str:
    """Checksum of what ``state.json`` says, of its own checksum aside."""
    return checksum(json.dumps(state, sort_keys=True).encode())
