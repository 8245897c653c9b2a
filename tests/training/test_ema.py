import torch
from torch import nn

from ifan.training.ema import EMA


def test_ramp_then_decay() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = EMA(model, decay=0.5)
    nn.init.ones_(model.weight)
    expected = 0.0
    for step in range(20):
        ema.update(model, step)
        expected += (1 - min(0.5, (1 + step) / (10 + step))) * (1 - expected)
        torch.testing.assert_close(ema.shadow["weight"], torch.full((1, 1), expected))
    assert abs(1 - expected) < 1e-4


def test_half_precision_is_averaged_in_single() -> None:
    model = nn.Linear(2, 2).to(torch.bfloat16)
    assert EMA(model, 0.9).shadow["weight"].dtype == torch.float32


def test_applied_puts_everything_back() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).train()
    ema = EMA(model, 0.9)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    averaged = {k: v.clone() for k, v in ema.shadow.items()}
    model(torch.randn(2, 1, 3, 3))
    changed = {k: v.clone() for k, v in model.state_dict().items()}
    with ema.applied(model) as view:
        assert not view.training
        assert all(torch.equal(v, averaged[k]) for k, v in view.state_dict().items())
    assert model.training
    assert all(torch.equal(v, changed[k]) for k, v in model.state_dict().items())
    assert not torch.equal(before["1.running_mean"], changed["1.running_mean"])


def test_integer_buffers_are_copied() -> None:
    model = nn.BatchNorm1d(3)
    ema = EMA(model, 0.9)
    model(torch.randn(4, 3))
    ema.update(model, 0)
    assert ema.shadow["num_batches_tracked"] == 1
