"""Running statistics estimated anew from batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tests.training.faces import small_config, three_datasets

from ifan.data.mixture import Batch, Mixture
from ifan.network import IFAN
from ifan.training import Trainer
from ifan.training.calibration import calibrate
from ifan.training.model import planes_before


def stem_means(model: IFAN, batch: Batch, planes: torch.Tensor) -> list[torch.Tensor]:
    """Mean of the stem's channels over each task's lanes."""
    stem = F.conv2d(model.preprocess(batch.images), model.stem.weight[:, :3], padding=3)
    stem = stem + F.conv2d(planes, model.stem.weight[:, 3:], padding=3)
    return [stem[rows].mean((0, 2, 3)) for rows in batch.lanes.split()]


def test_statistics_are_the_mean_over_the_batches_that_have_the_task() -> None:
    """Most of these batches lack parsing; the first iteration and the second are counted apart."""
    config = small_config(batch_size=4, shares={"points": 9.0, "parts": 2.0, "moods": 9.0})
    network = replace(config.network, iteration_norm="separate", normalise_heads=True)
    mixture = Mixture(three_datasets(), network, config.training)  # type: ignore[arg-type]
    batches = [mixture.batch(step) for step in range(6)]
    assert 0 < sum(b.lanes.segments[0] > 0 for b in batches) < 6
    model = IFAN(network).eval()
    norm = model.down_blocks[0].norms[0]
    norm.running_mean.fill_(7.0)  # what was there is forgotten
    calibrate(model, batches, 2)
    assert not model.training
    with torch.no_grad():
        first = [stem_means(model, b, model.first_planes()) for b in batches]
    for task in range(3):
        found = torch.stack([m[task] for m, b in zip(first, batches, strict=True) if b.lanes.segments[task]])
        torch.testing.assert_close(norm.running_mean[task], found.mean(0), rtol=1e-4, atol=1e-5)
    assert (norm.later_mean - norm.running_mean).abs().max() > 1e-3
    kept = norm.running_mean.clone()
    model.train()(batches[0].images, batches[0].lanes, 1)  # afterwards they move slowly again
    assert (norm.running_mean - kept).abs().max() < 0.02 * (norm.running_mean.abs().max() + 1)


def test_closer_looks_have_the_statistics_of_later_iterations() -> None:
    config = small_config(closer=1.0)
    network = replace(config.network, iteration_norm="separate")
    mixture = Mixture(three_datasets(), network, config.training)  # type: ignore[arg-type]
    model = IFAN(network).eval()
    kept = {name: value.clone() for name, value in model.named_buffers()}
    calibrate(model, [mixture.batch(0)], 1)
    moved = {name for name, value in model.named_buffers() if not torch.equal(value, kept[name])}
    assert moved == {name for name in kept if name.endswith(("later_mean", "later_var"))}
    planes = planes_before(model, mixture.batch(0))
    assert planes is not None
    for task, mean in enumerate(stem_means(model, mixture.batch(0), planes)):
        torch.testing.assert_close(model.down_blocks[0].norms[0].later_mean[task], mean, rtol=0.05, atol=0.05)


def test_a_run_ends_with_calibrated_statistics_whenever_it_is_finished(tmp_path: Path) -> None:
    config = small_config(steps=3, calibrate=2)
    Trainer(config, three_datasets(), tmp_path / "run").run()
    file = tmp_path / "run" / "model" / "model.safetensors"
    ended = load_file(file)
    averaged = load_file(tmp_path / "run" / "checkpoints" / "step-00000003" / "ema.safetensors")
    moved = {name for name, value in ended.items() if not torch.equal(value, averaged[name])}
    assert moved == {name for name in ended if ".running_" in name}
    Trainer(config, three_datasets(), tmp_path / "run", resume=True).run()
    again = load_file(file)
    assert all(torch.equal(value, again[name]) for name, value in ended.items())
