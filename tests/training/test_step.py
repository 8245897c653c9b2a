"""A step of training, worked out again by hand: loss, weighting, clipping, AdamW, average, random masks."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ifan.config import Config, LossConfig
from ifan.data.mixture import Batch
from ifan.network import IFAN, Predictions
from ifan.training import Trainer
from ifan.training import trainer as module
from tests.support.faces import small_config, three_datasets

WEIGHTS = {"parsing": 0.5, "landmarks": 4.0, "emotion": 1.5}
CLASSES = (0.5, 2.0, 1.0, 1.5, 3.0, 0.25, 1.0, 2.0, 0.75)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def config(**training: object) -> Config:
    loss = LossConfig(CLASSES, 0.2, 0.3, "smooth_l1", wing_width=0.07)
    made = small_config(iterations=(1.0,), task_weights=WEIGHTS, loss=loss, **training)
    return replace(made, network=replace(made.network, dropout=0.5))


def cross_entropy(logits: Tensor, labels: Tensor, ignored: int, smoothing: float, weights: Tensor) -> Tensor:
    """Mean over the labelled elements, weighted by their class."""
    known = labels != ignored
    log, labels = logits.log_softmax(1).movedim(1, -1)[known], labels[known].long()
    own = log.gather(1, labels[:, None])[:, 0]
    return -(weights[labels] * ((1 - smoothing) * own + smoothing * log.mean(1))).sum() / weights[labels].sum()


def losses_by_hand(predictions: Predictions, batch: Batch) -> Tensor:
    parsing = cross_entropy(predictions.parsing_logits, batch.parsing_target, 255, 0.2, torch.tensor(CLASSES))
    distance = (predictions.points - batch.points_target).abs()
    points = torch.where(distance < 0.07, distance**2 / 0.14, distance - 0.035).sum(1).mean()
    logits = predictions.class_logits["emotion"]
    labels = batch.class_targets[:, 0]
    emotion = cross_entropy(logits, labels[labels >= 0], -1, 0.3, torch.ones(7))
    return torch.stack([parsing, points, emotion])


def masked_losses(trainer: Trainer, model: IFAN, batch: Batch) -> Tensor:
    """Losses under the dropout masks of the step that comes."""
    torch.manual_seed(module._seed(trainer.config.training.seed, trainer.done, 0))
    return losses_by_hand(model.train()(batch.images, batch.lanes, 1)[-1], batch)


def test_loss_and_gradient_by_hand(tmp_path: Path) -> None:
    """FAMO's first step weighs each task by its own weight over its loss; the gradient is cut to the largest norm."""
    trainer = Trainer(config(weighting="famo", clip_norm=0.01), three_datasets(), tmp_path)
    batch, model = trainer.mixture.batch(0), copy.deepcopy(trainer.model)
    losses = masked_losses(trainer, model, batch)
    share = 1 / losses.detach()
    total = (torch.tensor(list(WEIGHTS.values())) * share * (3 / share.sum()) * losses).sum()
    total.backward()
    for parameter in trainer.model.parameters():
        parameter.grad = torch.full_like(parameter, 9.0)  # of a step before
    result = trainer.step(batch)
    torch.testing.assert_close(result.losses, losses.detach(), rtol=1e-4, atol=1e-6)
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert float(expected.norm()) > 1
    assert result.grad_norm == pytest.approx(float(expected.norm()), rel=1e-4)
    found = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
    torch.testing.assert_close(found, 0.01 / expected.norm() * expected, rtol=1e-3, atol=1e-7)


def test_a_small_gradient_is_left_as_it_is(tmp_path: Path) -> None:
    """And so is any, where no largest norm is set."""
    for number, largest in enumerate((0.0, 1e6)):
        trainer = Trainer(config(clip_norm=largest), three_datasets(), tmp_path / str(number))
        batch, model = trainer.mixture.batch(0), copy.deepcopy(trainer.model)
        (torch.tensor(list(WEIGHTS.values())) * masked_losses(trainer, model, batch)).sum().backward()
        trainer.step(batch)
        torch.testing.assert_close(trainer.model.stem.weight.grad, model.stem.weight.grad, rtol=1e-3, atol=1e-6)


def test_every_step_has_masks_of_its_own(tmp_path: Path) -> None:
    """Of the same batch and weights, the loss is another one at another step, and the same at the same one."""
    trainer = Trainer(config(learning_rate=0.0, weight_decay=0.0), three_datasets(), tmp_path)
    with torch.no_grad():
        trainer.model.landmark_head.weight.normal_(0, 0.01)  # they begin at zero, which no mask would change
    batch, begun = trainer.mixture.batch(0), copy.deepcopy(trainer.model.state_dict())
    found = []
    for step in (0, 1, 2, 0):
        trainer.model.load_state_dict(begun)
        trainer.done = step
        expected = masked_losses(trainer, copy.deepcopy(trainer.model), batch)
        found.append(trainer.step(batch).losses)
        torch.testing.assert_close(found[-1], expected.detach(), rtol=1e-4, atol=1e-6)
    assert torch.equal(found[0], found[3])
    assert len({float(losses[1]) for losses in found}) == 3


def test_weights_and_average_by_hand(tmp_path: Path) -> None:
    """AdamW by its formula on the gradients, and the average of the weights that it made, over four steps."""
    settings = {"learning_rate": 0.01, "warmup_steps": 3, "weight_decay": 0.5, "ema_decay": 0.15, "clip_norm": 0.5}
    trainer = Trainer(config(**settings), three_datasets(), tmp_path)
    weight = trainer.model.stem.weight
    expected, average = weight.detach().clone(), weight.detach().clone()
    first, second = torch.zeros_like(expected), torch.zeros_like(expected)
    for step, (rate, moved) in enumerate(((1 / 3, 0.9), (2 / 3, 0.85), (1.0, 0.85), (1.0, 0.85))):
        rate = 0.01 * rate
        result = trainer.step(trainer.mixture.batch(step))
        assert result.learning_rate == pytest.approx(rate)
        gradient = weight.grad
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        direction = first / (1 - 0.9 ** (step + 1)) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        expected = expected * (1 - rate * 0.5) - rate * direction
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-6)
        average = average + moved * (expected - average)
        torch.testing.assert_close(trainer.ema.shadow["stem.weight"], average, rtol=1e-4, atol=1e-6)
    assert trainer.done == 4


@pytest.mark.parametrize("steps", [1, 2])
def test_famo_learns_from_the_step_before(tmp_path: Path, steps: int) -> None:
    """Its logits move by the change of the logarithms of the losses, after the weights have."""
    trainer = Trainer(config(weighting="famo"), three_datasets(), tmp_path)
    seen = [trainer.step(trainer.mixture.batch(step)).losses for step in range(steps)]
    assert torch.equal(trainer.weighting.last, seen[-1])
    if steps == 1:
        assert not trainer.weighting.logits.any()
        return
    change = seen[0].log() - seen[1].log()
    torch.testing.assert_close(trainer.weighting.logits, -0.025 / 3 * (change - change.mean()), rtol=1e-4, atol=1e-7)


def test_famo_weighs_tasks(tmp_path: Path) -> None:
    """A task of weight 0 has no gradient."""
    made = config(weighting="famo")
    made = replace(made, training=replace(made.training, task_weights={**WEIGHTS, "emotion": 0.0}))
    trainer = Trainer(made, three_datasets(), tmp_path)
    trainer.step(trainer.mixture.batch(0))
    assert not trainer.model.class_heads["emotion"].weight.grad.any()
    assert trainer.model.landmark_head.weight.grad.any()
