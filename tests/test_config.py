"""Configurations survive YAML, and every mistake in one is a single clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ifan.cli.train import override
from ifan.config import (
    Config,
    NetworkConfig,
    TaskConfig,
    TrainingConfig,
    dump_config,
    from_dict,
    load_config,
    mirrored,
    parse_yaml,
    presets,
    to_dict,
)


@pytest.mark.parametrize("name", presets())
def test_presets_survive_yaml(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    path = tmp_path / "again.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config
    assert from_dict(Config, to_dict(config)) == config


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert load_config(path) == Config()


AT_LEAST_ONE = ("steps", "batch_size", "log_every", "checkpoint_every")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("network: {siez: 64}", "network: unknown key 'siez'; expected one of ['block_layers'"),
        ("network: {size: 60}", "network.size must be a multiple of 32; got 60"),
        ("network: {size: 64.5}", "network.size: expected int; got 64.5"),
        ("network: {size: true}", "network.size: expected int; got True"),
        ("network: {growth: 1000000000}", "network.growth must be between 1 and 512"),
        ("network: {iterations: 0}", "network.iterations must be between 1 and 64; got 0"),
        (
            "network: {iterations: 2, reframe: true, tasks: [{name: smile, kind: classification, classes: [a, b]}]}",
            "to reframe a face for 2 iterations; this one has ['smile']; use 1, or reframe: false",
        ),
        ("network: {looks: 3}", "the key 'looks' is no longer used; set network.iterations, with network.reframe"),
        ("network: {carry: true}", "network: the key 'carry' is no longer used; set network.reframe"),
        ("training: {closer: 0.5}", "training: the key 'closer' is no longer used; set training.refine_share"),
        ("training: {refine_share: 2}", "training.refine_share must be between 0 and 1; got 2"),
        ("network: {tasks: []}", "network.tasks is empty"),
        ("network: {tasks: [{name: a, kind: b, classes: [c]}]}", "network.tasks[0].kind: expected one of ['parsing'"),
        ("network: {tasks: [{name: a, kind: parsing}]}", "network.tasks[0]: key 'classes' is missing"),
        ("network: {tasks: [{name: a, kind: parsing, classes: [yes, no]}]}", "classes[0]: expected str; got True"),
        ("training: {weighting: magic}", "training.weighting: expected one of ['fixed', 'uncertainty', 'famo']"),
        ("training: {steps: 0}", "training.steps must be at least 1; got 0"),
        ("training: {iterations: [0]}", "training.iterations must be non-negative probabilities with a positive sum"),
        ("training: {shares: {mtfl: -1}}", "training.shares must not be negative"),
        ("training: {augment: {scale: [1]}}", "training.augment.scale: expected 2 values; got 1"),
        ("network: {dropout: 1}", "network.dropout must be in [0, 1); got 1"),
        ("network: {up_channels: 6}", "network.up_channels must be a multiple of 4; got 6"),
        ("network: {blocks: 4}", "network.blocks must be 5, where the three re-encoded maps join; got 4"),
        ("network: {tasks: [{name: a, kind: landmarks, classes: []}]}", "task 'a': classes is empty"),
        ("network: {tasks: [{name: a, kind: landmarks, classes: [x, x]}]}", "task 'a': class names repeat: ('x', 'x')"),
        (
            "network: {tasks: [{name: a, kind: classification, classes: [x]}, {name: a, kind: classification, "
            "classes: [y]}]}",
            "network.tasks: names repeat: ['a', 'a']",
        ),
        ("network: {tasks: {a: 1}}", "network.tasks: expected a list; got {'a': 1}"),
        ("network: [1]", "network: expected a mapping; got list"),
        ("training: {shares: [1]}", "training.shares: expected a mapping; got [1]"),
        ("training: {shares: {mtfl: much}}", "training.shares.mtfl: expected float; got 'much'"),
        ("training: {feedback_warmup: -1}", "training.feedback_warmup must not be negative; got -1"),
        ("training: {calibrate: -1}", "training.calibrate must not be negative; got -1"),
        ("training: {ema_decay: 1}", "training.ema_decay must be in [0, 1); got 1"),
        ("training: {refine_share: -0.1}", "training.refine_share must be between 0 and 1; got -0.1"),
        ("training: {repeats: {pose.left: 0}}", "training.repeats must be at least 1; got {'pose.left': 0}"),
        ("training: {iterations: [1, -1]}", "training.iterations must be non-negative probabilities"),
        ("training: {iterations: []}", "training.iterations must be non-negative probabilities"),
        *((f"training: {{{key}: 0}}", f"training.{key} must be at least 1; got 0") for key in AT_LEAST_ONE),
        ("- 1", "configuration: expected a mapping; got list"),
        ("a: [", "not valid YAML"),
    ],
)
def test_mistakes_are_one_clear_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"bad\.yaml") as error:
        load_config(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_preset_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown preset 'paper-65'; expected one of \["):
        load_config("paper-65")
    with pytest.raises(ValueError, match="cannot read the configuration"):
        load_config(tmp_path / "nothing.yaml")


def test_tasks_come_in_the_order_of_the_planes() -> None:
    points = TaskConfig("landmarks", "landmarks", ("nose",))
    smile = TaskConfig("smile", "classification", ("smiling", "not_smiling"))
    assert NetworkConfig(tasks=(points, smile)).task("smile") is smile
    with pytest.raises(ValueError, match="at most one landmark task, then classifications"):
        NetworkConfig(tasks=(smile, points))
    with pytest.raises(ValueError, match=r"unknown task 'frown'; this network has \['smile'\]"):
        NetworkConfig(tasks=(smile,)).task("frown")


ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def test_aliases_that_stand_for_more_than_any_memory_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(ALIASES + "training: {iterations: *i}\n")
    with pytest.raises(ValueError, match=r"bomb\.yaml: not valid YAML: aliases"):
        load_config(path)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="not valid YAML: aliases"):
        load_config(path)
    path.write_text("#" * (1 << 20) + "\n")
    with pytest.raises(ValueError, match="at most 1048576 bytes"):
        load_config(path)


@pytest.mark.parametrize("name", ["", "a.b", "."])
def test_a_task_without_a_usable_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected a name without dots"):
        TaskConfig(name, "classification", ("a", "b"))


def test_a_radius_that_fills_the_memory_is_refused() -> None:
    with pytest.raises(ValueError, match=r"network\.point_radius must be between 1 and 256; got 4096"):
        NetworkConfig(point_radius=4096)


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "+1e-3", "0.001", "1.0e-3"])
def test_numbers_in_every_spelling(text: str) -> None:
    assert parse_yaml(text) == 1e-3
    assert parse_yaml("1e-3x") == "1e-3x"
    assert override(Config(), [f"training.learning_rate={text}"]).training.learning_rate == 1e-3


def test_the_ends_of_every_range_are_taken() -> None:
    largest = {"size": 4096, "iterations": 64, "growth": 512, "block_layers": 64, "stem_channels": 4096,
               "up_channels": 4096, "point_radius": 256, "image_fold": 8}  # fmt: skip
    smallest = {**dict.fromkeys(largest, 1), "size": 32, "up_channels": 4}
    for ends in (largest, smallest):
        assert {name: getattr(NetworkConfig(**ends), name) for name in ends} == ends
    for name, value in largest.items():
        step = {"size": 32, "up_channels": 4}.get(name, 1)
        with pytest.raises(ValueError, match=rf"network\.{name} must be between 1 and {value}; got {value + step}"):
            NetworkConfig(**{name: value + step})
    assert NetworkConfig(dropout=0.0).dropout == 0
    rest: dict[str, Any] = {
        "shares": {"a": 0.0},
        "repeats": {"a.b": 1},
        "iterations": (0.0, 1.0),
        "feedback_warmup": 0,
        "calibrate": 0,
    }
    for share in (0.0, 1.0):
        assert TrainingConfig(refine_share=share, ema_decay=0.0, **rest).refine_share == share
    assert all(getattr(TrainingConfig(**{name: 1}), name) == 1 for name in AT_LEAST_ONE)


def test_defaults_stay_what_they_are() -> None:
    """A file says only what differs: another default would make another network, or another run, of it."""
    found = to_dict(Config())
    assert [task["name"] for task in found["network"].pop("tasks")] == ["parsing", "landmarks", "emotion"]
    assert found == {"network": NETWORK, "training": TRAINING}


NETWORK = {
    "size": 128, "iterations": 3, "reframe": False, "feedback_gradient": False, "growth": 12, "block_layers": 3,
    "blocks": 5, "stem_channels": 48, "up_channels": 128, "point_radius": 5, "image_fold": 1, "image_scale": 1.0,
    "normalise_heads": False, "landmark_head": "dense", "task_norm": True, "iteration_norm": "shared", "dropout": 0.3,
}  # fmt: skip
TRAINING = {
    "seed": 0, "steps": 1000, "batch_size": 44, "shares": {"mtfl": 16.0, "fer2013": 24.0, "celebamask": 4.0},
    "batches": "hybrid", "repeats": {}, "task_weights": {}, "weighting": "fixed", "iterations": [1.0],
    "refine_share": 0.0, "feedback_warmup": 0, "supervise": "last", "only": [], "learning_rate": 3e-3,
    "final_learning_rate": 0.0, "warmup_steps": 50, "weight_decay": 1e-2, "clip_norm": 5.0, "ema_decay": 0.995,
    "calibrate": 0, "precision": "fp32", "log_every": 10, "checkpoint_every": 100, "validate_every": 0,
    "loss": {
        "parsing_class_weights": [], "parsing_smoothing": 0.0, "class_smoothing": 0.0, "points": "wing",
        "wing_width": 0.1, "wing_curvature": 0.02,
    },
    "augment": {
        "flip": 0.5, "shift": 0.06, "scale": [0.8, 1.2], "wide": 0.0, "widest": 2.2,
        "rotate": 15.0, "brightness": 0.2, "contrast": 0.2,
        "saturation": 0.3, "grey": 0.2, "low_resolution": 0.2, "blur": 0.1, "noise": 0.1, "erase": 0.1,
    },
}  # fmt: skip


def test_left_and_right_trade_places() -> None:
    assert mirrored(("left_eye", "right_eye", "nose", "left")) == (1, 0, 2, 3)
    assert mirrored(("pose_left", "frontal", "pose_right")) == (2, 1, 0)


def test_a_file_of_32_levels_is_read() -> None:
    assert parse_yaml("[" * 32 + "]" * 32) is not None
    with pytest.raises(ValueError, match="more than 32 levels"):
        parse_yaml("[" * 33 + "]" * 33)
