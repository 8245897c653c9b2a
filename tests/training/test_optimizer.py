import math

import pytest
import torch
from tests.training.faces import small_config

from ifan.config import TrainingConfig
from ifan.network import IFAN
from ifan.training.optimizer import HEAD_RATES, learning_rate, make_optimizer, optimizer_tensors, set_learning_rate
from ifan.training.weighting import make_weighting

SCHEDULE = TrainingConfig(steps=100, warmup_steps=10, learning_rate=1.0, final_learning_rate=0.1)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (55, 0.55), (99, 0.1 + 0.45 * (1 + math.cos(math.pi * 89 / 90)))],
)
def test_schedule(step: int, expected: float) -> None:
    assert learning_rate(step, SCHEDULE) == pytest.approx(expected)


def test_schedule_without_warmup_and_shorter_than_it() -> None:
    assert learning_rate(0, TrainingConfig(steps=5, warmup_steps=0, learning_rate=1.0)) == 1
    assert learning_rate(4, TrainingConfig(steps=5, warmup_steps=50, learning_rate=1.0)) == 1


def test_every_parameter_is_in_one_group() -> None:
    config = small_config(weighting="uncertainty", weight_decay=0.5)
    model = IFAN(config.network)
    weighting = make_weighting(config.training, ("parsing", "landmarks", "emotion"))
    optimizer = make_optimizer(model, weighting, config.training)
    grouped = [p for g in optimizer.param_groups for p in g["params"]]
    assert sorted(map(id, grouped)) == sorted(map(id, [*model.parameters(), *weighting.parameters()]))
    set_learning_rate(optimizer, 0.25)
    named = {id(p): n for n, p in model.named_parameters()} | {id(p): n for n, p in weighting.named_parameters()}
    heads = {id(p): HEAD_RATES[kind] / fan_in**0.5 for kind, p, fan_in in model.dense_heads()}
    for group in optimizer.param_groups:
        for p in group["params"]:
            scale = heads.get(id(p), 1.0)
            assert group["lr"] == pytest.approx(0.25 * scale)
            decays = p.dim() == 4 or id(p) in heads
            assert group["lr"] * group["weight_decay"] == pytest.approx(0.125 if decays else 0), named[id(p)]


def test_state_is_there_before_the_first_step_and_changes_nothing() -> None:
    config = small_config()
    torch.manual_seed(0)
    model = IFAN(config.network)
    optimizer = make_optimizer(model, torch.nn.Module(), config.training)
    state = optimizer_tensors(optimizer, [("model", model)])
    assert set(state) == {
        f"model.{n}.{k}" for n, _ in model.named_parameters() for k in ("step", "exp_avg", "exp_avg_sq")
    }
    lazy = torch.optim.AdamW([p.detach().clone().requires_grad_() for p in model.parameters()], lr=0.1, weight_decay=0)
    for group in optimizer.param_groups:
        group.update(lr=0.1, weight_decay=0)
    for ours, theirs in zip(model.parameters(), lazy.param_groups[0]["params"], strict=True):
        ours.grad = torch.ones_like(ours)
        theirs.grad = ours.grad.clone()
    optimizer.step()
    lazy.step()
    for ours, theirs in zip(model.parameters(), lazy.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert state["model.stem.weight.step"] == 1
