import errno
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ifan.safetensors_io import CheckpointError
from ifan.training import checkpoint as module
from ifan.training.checkpoint import checkpoints, load_tensors, read_state, save_checkpoint, step_of

CALLS = ["mkdir", "open", "write", "fsync", "close", "rename"]


def tensors(value: float) -> module.Tensors:
    return {name: {"x": torch.full((3,), value)} for name in ("model", "ema", "optimizer")}


def value_of(path: Path) -> float:
    read_state(path)
    loaded = load_tensors(path, tensors(0))
    return {float(part["x"][0]) for part in loaded.values()}.pop()


def newest_sound(folder: Path) -> Path:
    for path in checkpoints(folder):
        try:
            read_state(path)
        except CheckpointError:
            continue
        return path
    raise AssertionError("no checkpoint loads")


def test_keeps_the_last_two(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        save_checkpoint(tmp_path, step, tensors(step), {"config": {"a": 1}})
    assert [step_of(c) for c in checkpoints(tmp_path)] == [100, 10]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000100"]
    assert value_of(checkpoints(tmp_path)[0]) == 100
    state = read_state(checkpoints(tmp_path)[0])
    assert (state["step"], state["config"]) == (100, {"a": 1})


def test_checkpoints_behind_which_a_run_went_back_go(tmp_path: Path) -> None:
    """They are damaged: kept, they would be the newest for ever."""
    for step in (2, 4, 6):
        save_checkpoint(tmp_path, step, tensors(step), {})
    (checkpoints(tmp_path)[0] / "state.json").write_text("{")
    save_checkpoint(tmp_path, 5, tensors(5), {})
    assert [step_of(c) for c in checkpoints(tmp_path)] == [5, 4]


def test_any_failing_call_leaves_a_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the k-th system call for every k, until a write gets through untouched."""
    for k in itertools.count():
        folder = tmp_path / str(k)
        save_checkpoint(folder, 1, tensors(1), {})
        with monkeypatch.context() as patch:
            failed, said = fail_call(patch, k), "the one before it is kept"
            try:
                save_checkpoint(folder, 2, tensors(2), {})
            except CheckpointError as error:
                said = str(error)
        assert "the one before it is kept" in said
        good = newest_sound(folder)
        assert value_of(good) == step_of(good)
        save_checkpoint(folder, 3, tensors(3), {})  # what the failure left behind is in nobody's way
        assert value_of(newest_sound(folder)) == 3
        assert not [p for p in folder.iterdir() if p.name.startswith(".step-00000003")]
        if not failed():
            break
        shutil.rmtree(folder)
    assert k > 20


def fail_call(patch: pytest.MonkeyPatch, k: int) -> Callable[[], bool]:
    """Let the ``k``-th of `CALLS` and all later ones fail, as on a full or vanished disk; says whether one did."""
    count = itertools.count()
    fired: list[str] = []

    def failing(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(count) >= k and name != "close":
                fired.append(name)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **kwargs)

        return call

    for name in CALLS:
        patch.setattr(os, name, failing(name, getattr(os, name)))
    return lambda: bool(fired)


@pytest.mark.parametrize(
    "damage", ["truncate", "flip", "delete", "state", "state list", "step", "setting", "no step", "not a number"]
)
def test_damage_is_noticed(tmp_path: Path, damage: str) -> None:
    path = save_checkpoint(tmp_path, 7, tensors(7), {})
    file = path / "ema.safetensors"
    content = file.read_bytes()
    if damage == "truncate":
        file.write_bytes(content[:-3])
    elif damage == "flip":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "delete":
        file.unlink()
    elif damage.startswith("state"):
        (path / "state.json").write_text("{" if damage == "state" else json.dumps([1]))
    else:
        state = json.loads((path / "state.json").read_bytes())
        state.update({"step": 8} if damage == "step" else {"config": {"a": 2}})
        if damage == "no step":
            del state["step"]
        elif damage == "not a number":
            state = {"step": "7", "sha256": state["sha256"]}
        (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="damaged") as caught:
        read_state(path)
    assert "\n" not in str(caught.value)


def test_names_that_are_no_checkpoints_are_left_alone(tmp_path: Path) -> None:
    for name in ("step-abc", ".step-00000009.new", "notes"):
        (tmp_path / name).mkdir()
    save_checkpoint(tmp_path, 3, tensors(3), {})
    assert [c.name for c in checkpoints(tmp_path)] == ["step-00000003"]
    assert (tmp_path / "notes").is_dir()


def test_checkpoint_of_another_shape(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 3, tensors(3), {})
    other = {**tensors(0), "optimizer": {"x": torch.zeros(4)}}
    with pytest.raises(CheckpointError, match=r"optimizer.safetensors: does not fit this run: 'x' should be \(4,\)"):
        load_tensors(path, other)


def test_a_state_without_its_checksum_is_damaged(tmp_path: Path) -> None:
    """So that damage to the key does not switch the check off."""
    path = save_checkpoint(tmp_path, 7, tensors(7), {"config": {"a": 1}})
    state = read_state(path)
    assert "checksum" not in state
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="damaged"):
        read_state(path)
