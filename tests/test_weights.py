"""Weights by name or path; damaged, hostile and misfitting files are refused in one line before they are loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ifan import weights
from ifan.config import PAPER_TASKS, NetworkConfig, load_config, presets
from ifan.network import IFAN
from ifan.weights.folding import folded, folded_head
from ifan.weights.shapes import tensor_shapes
from tests.support.networks import CONFIGS

CONFIG = NetworkConfig(size=32, growth=2, block_layers=1, stem_channels=4, up_channels=4)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = IFAN(CONFIG)
    model.set_means(torch.rand(9, 32, 32), torch.rand(2, 5), torch.rand(7))
    model.save_pretrained(tmp_path / "run" / "model")
    return tmp_path / "run" / "model"


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    edit(state)
    save_file(state, path)


def test_model_folder_and_run_folder(saved: Path) -> None:
    assert weights.resolve(saved) == weights.resolve(str(saved.parent)) == saved
    model = weights.load_network(saved.parent)
    assert model.config == CONFIG
    assert not model.training
    stored = load_file(saved / "model.safetensors")
    state = model.state_dict()
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[name], stored[name]) for name in stored)
    assert all(p.requires_grad for p in model.parameters())
    model.save_pretrained(saved)
    again = IFAN.from_pretrained(saved)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_published_weights_are_the_released_graph_in_half_precision(tmp_path: Path) -> None:
    model = IFAN(replace(CONFIG, image_scale=1 / 64, normalise_heads=True))
    model.save_pretrained(tmp_path / "trained")
    weights.publish(tmp_path / "trained", tmp_path / "shipped")
    stored = load_file(tmp_path / "shipped" / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float16}
    shipped, x = weights.load_network(tmp_path / "shipped"), torch.rand(2, 3, 32, 32) * 255
    assert shipped.config == CONFIG
    for ours, theirs in zip(shipped(x), model.eval()(x), strict=True):
        torch.testing.assert_close(ours.parsing_logits.softmax(1), theirs.parsing_logits.softmax(1), rtol=0, atol=2e-3)
        torch.testing.assert_close(ours.points, theirs.points, rtol=0, atol=2e-3)


@pytest.mark.parametrize("which", [{"iterations": 2}, {"iterations": 2, "reframe": True}], ids=str)
def test_published_weights_keep_statistics_that_the_iterations_do_not_share(
    tmp_path: Path, which: dict[str, Any]
) -> None:
    config = replace(CONFIG, image_scale=1 / 64, normalise_heads=True, iteration_norm="separate", **which)
    model, x = IFAN(config), torch.rand(4, 3, 32, 32) * 255
    for _ in range(30):
        model.train()(x, iterations=1)
        model(x, iterations=2)
    model.save_pretrained(tmp_path / "trained")
    weights.publish(tmp_path / "trained", tmp_path / "shipped")
    shipped = weights.load_network(tmp_path / "shipped")
    assert shipped.config == replace(config, image_scale=1.0)
    for ours, theirs in zip(shipped(x, iterations=2), model.eval()(x, iterations=2), strict=True):
        torch.testing.assert_close(ours.points, theirs.points, rtol=0, atol=5e-3)


def test_published_weights_of_one_iteration_keep_nothing_of_later_ones(tmp_path: Path) -> None:
    config = replace(CONFIG, image_scale=1 / 64, normalise_heads=True, iteration_norm="separate", iterations=1)
    model, x = IFAN(config), torch.rand(4, 3, 32, 32) * 255
    for _ in range(30):
        model.train()(x)
    model.save_pretrained(tmp_path / "trained")
    weights.publish(tmp_path / "trained", tmp_path / "shipped")
    shipped = weights.load_network(tmp_path / "shipped")
    assert shipped.config == replace(CONFIG, iterations=1)
    torch.testing.assert_close(shipped(x)[0].points, model.eval()(x)[0].points, rtol=0, atol=5e-3)


def test_packaged_name(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "PACKAGED", saved.parent)
    monkeypatch.chdir(saved)
    assert weights.available() == ["model"]
    assert weights.resolve("model") == saved
    with pytest.raises(ValueError, match=r"weights 'nonsense': no such folder; .* packaged name \(model\)"):
        weights.resolve("nonsense")
    with pytest.raises(ValueError, match=r"no config\.json and model\.safetensors there"):
        weights.resolve(saved.parent.parent)


def test_a_path_comes_before_a_packaged_name(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = weights.available()[0]
    monkeypatch.chdir(tmp_path)
    assert weights.resolve(name) == weights.PACKAGED / name
    (tmp_path / name).symlink_to(saved)
    assert weights.resolve(name).resolve() == saved.resolve()
    assert weights.load_model(name).config == CONFIG
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(saved.parent)  # a run's folder
    assert weights.load_model(name).config == CONFIG


def test_a_configuration_beyond_a_megabyte_is_not_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved / "config.json"
    text = path.read_text()
    path.write_text(text + " " * ((1 << 20) - len(text)))
    assert weights.read_network_config(path) == CONFIG
    path.write_text(text + " " * ((1 << 20) + 1 - len(text)))
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: pytest.fail("the file was read"))
    with pytest.raises(ValueError, match=r"config\.json: not the configuration of a saved network \(more than 1048576"):
        weights.load_model(saved)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_become_fp32_networks(saved: Path, dtype: torch.dtype) -> None:
    change(saved, lambda state: state.update({name: t.to(dtype) for name, t in state.items()}))
    model, stored = weights.load_network(saved), load_file(saved / "model.safetensors")
    assert {t.dtype for t in model.state_dict().values()} == {torch.float32}
    assert all(torch.equal(t, stored[name].float()) for name, t in model.state_dict().items())


def test_loading_draws_no_random_numbers(saved: Path) -> None:
    state = torch.get_rng_state()
    weights.load_network(saved)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.pop("stem.weight"), "'stem.weight' is missing"),
        (lambda s: s.update(extra=torch.zeros(1)), "'extra' is not part of it"),
        (lambda s: s.update({"mean_points": torch.zeros(2, 6)}), r"'mean_points' should be \(2, 5\)"),
        (lambda s: s.update({"mean_points": torch.zeros(2, 5).long()}), "int64"),
    ],
    ids=["missing", "extra", "shape", "dtype"],
)
def test_tensors_of_another_network(saved: Path, edit: Callable, message: str) -> None:
    change(saved, edit)
    with pytest.raises(ValueError, match=message) as error:
        weights.load_network(saved)
    assert "model.safetensors" in str(error.value)
    assert "\n" not in str(error.value)


def test_hostile_header_is_refused_without_allocating(saved: Path) -> None:
    path = saved / "model.safetensors"
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + length])
    header["stem.weight"]["shape"][0] = 1 << 40
    text = json.dumps(header).encode()
    for content in (
        len(text).to_bytes(8, "little") + text,  # a tensor of terabytes
        (1 << 60).to_bytes(8, "little") + b"{}",  # a header longer than the file
        path.read_bytes()[:-100],  # truncated
        b"",
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.safetensors: not a sound safetensors file"):
            weights.load_network(saved)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_device_that_is_not_there(saved: Path, device: str) -> None:
    with pytest.raises(ValueError, match=f"device '{device}': cannot be used here"):
        weights.load_network(saved, device)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"network": {"nonsense": 1}}', '{"network": {"size": 33}}'])
def test_wrong_config(saved: Path, content: str) -> None:
    (saved / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json: not the configuration of a saved network") as error:
        weights.load_network(saved)
    assert "\n" not in str(error.value)


ODD = {
    "heat maps, one norm": replace(
        CONFIGS["heat maps"], task_norm=False, growth=5, up_channels=8, normalise_heads=True
    ),
    "landmarks only": replace(CONFIG, tasks=PAPER_TASKS[1:2]),
    "statistics apart": replace(CONFIG, iteration_norm="statistics", normalise_heads=True, image_fold=2),
    "two classifications": replace(CONFIGS["extra tasks"], block_layers=2, stem_channels=7),
}


@pytest.mark.parametrize(
    "config",
    [*(load_config(name).network for name in presets()), *CONFIGS.values(), *ODD.values()],
    ids=[*presets(), *CONFIGS, *ODD],
)
def test_names_and_shapes_of_a_networks_tensors_are_known_without_it(config: NetworkConfig) -> None:
    with torch.device("meta"):
        state = IFAN(config).state_dict()
    assert tensor_shapes(config) == {name: tuple(value.shape) for name, value in state.items()}
    assert {value.dtype for value in state.values()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_is_float32_whatever_its_file_stores(saved: Path, dtype: torch.dtype) -> None:
    change(saved, lambda state: state.update({name: t.to(dtype) for name, t in state.items()}))
    model, stored = weights.load_model(saved), load_file(saved / "model.safetensors")
    assert (model.config, model.folder) == (CONFIG, saved)
    assert model.tensors.keys() == stored.keys()
    assert all(np.array_equal(value, stored[name].float().numpy()) for name, value in model.tensors.items())
    assert {value.dtype for value in model.tensors.values()} == {np.dtype(np.float32)}


def test_a_network_is_a_copy_of_its_model_and_back(saved: Path) -> None:
    model = weights.load_model(saved)
    network = weights.network_of(model)
    again = weights.model_of(network)
    with torch.no_grad():
        network.stem.weight.zero_()
    assert model.tensors["stem.weight"].any()
    assert all(np.array_equal(value, model.tensors[name]) for name, value in again.tensors.items())


@pytest.mark.parametrize("kind", ["shared", "statistics"])
def test_folding_keeps_the_dtype_and_what_does_not_change(kind: Literal["shared", "statistics"]) -> None:
    config = replace(CONFIG, image_scale=1 / 3, normalise_heads=True, task_norm=False, iteration_norm=kind)
    tensors = {name: t.double().numpy() for name, t in IFAN(config).state_dict().items()}
    tensors["class_heads.emotion.norm.running_mean"] = np.random.default_rng(0).normal(
        size=tensors["class_heads.emotion.norm.running_mean"].shape
    )
    plain = folded(weights.SavedModel(config, tensors))
    assert plain.config == replace(
        config, image_scale=1.0, task_norm=True, normalise_heads=kind == "statistics", iteration_norm=kind
    )
    assert {name: value.shape for name, value in plain.tensors.items()} == tensor_shapes(plain.config)
    assert {value.dtype for value in plain.tensors.values()} == {np.dtype(np.float64)}
    assert np.shares_memory(plain.tensors["parsing_head.weight"], tensors["parsing_head.weight"])
    expected = tensors["stem.weight"] * np.where(np.arange(24)[:, None, None] < 3, 1 / 3, 1.0)
    assert np.allclose(plain.tensors["stem.weight"], expected, rtol=1e-15)
    x = np.random.default_rng(1).normal(size=tensors["class_heads.emotion.weight"].shape[1])
    weight, bias = folded_head(plain, "class_heads.emotion", later=False)
    mean, var = (tensors[f"class_heads.emotion.norm.running_{part}"][0] for part in ("mean", "var"))
    normalised = (x - mean) / np.sqrt(var + 1e-3)
    wanted = tensors["class_heads.emotion.weight"] @ normalised + tensors["class_heads.emotion.bias"]
    assert np.allclose(weight @ x + bias, wanted, rtol=1e-12)
