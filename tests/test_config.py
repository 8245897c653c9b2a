"""Configurations survive YAML, and every mistake in one is a single clear line."""

from __future__ import annotations

from pathlib import Path

import pytest

from ifan.cli.train import override
from ifan.config import (
    Config,
    NetworkConfig,
    TaskConfig,
    dump_config,
    from_dict,
    load_config,
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
