import math

import pytest
import torch

from ifan.config import TrainingConfig
from ifan.training.weighting import FAMO, Fixed, Uncertainty, make_weighting

TASKS = ("parsing", "landmarks", "emotion")
ALL = torch.tensor([True, True, True])


def losses(*values: float) -> torch.Tensor:
    return torch.tensor(values, requires_grad=True)


def test_fixed_is_the_weighted_sum() -> None:
    weighting = make_weighting(TrainingConfig(task_weights={"landmarks": 2.0, "emotion": 0.5}), TASKS)
    values = losses(1.0, 3.0, 4.0)
    total = weighting.combine(values, values.detach(), ALL)
    total.backward()
    assert total.item() == 1 + 6 + 2
    assert values.grad is not None
    assert values.grad.tolist() == [1, 2, 0.5]


def test_uncertainty_by_hand() -> None:
    weighting = Uncertainty(torch.ones(3))
    with torch.no_grad():
        weighting.log_variance.copy_(torch.tensor([0.0, math.log(2.0), math.log(4.0)]))
    values = losses(1.0, 3.0, 8.0)
    total = weighting.combine(values, values.detach(), ALL)
    total.backward()
    assert total.item() == pytest.approx(1 + 1.5 + 2 + (math.log(2) + math.log(4)) / 2)
    assert values.grad is not None
    torch.testing.assert_close(values.grad, torch.tensor([1, 0.5, 0.25]))
    torch.testing.assert_close(weighting.log_variance.grad, torch.tensor([-0.5, -1.0, -1.5]))


def test_uncertainty_leaves_an_absent_task_alone() -> None:
    weighting = Uncertainty(torch.ones(3))
    values = losses(1.0, 0.0, 2.0)
    weighting.combine(values, values.detach(), torch.tensor([True, False, True])).backward()
    assert weighting.log_variance.grad is not None
    assert weighting.log_variance.grad[1] == 0


def test_uncertainty_parts_sum_to_the_whole() -> None:
    weighting = Uncertainty(torch.ones(2))
    present = torch.tensor([True, True])
    whole = torch.tensor([3.0, 5.0])
    alone = weighting.combine(whole, whole, present)
    parts = [
        weighting.combine(part, whole, present, 0.5) for part in (torch.tensor([1.0, 5.0]), torch.tensor([2.0, 0.0]))
    ]
    torch.testing.assert_close(parts[0] + parts[1], alone)


def test_famo_first_step_balances_log_losses() -> None:
    weighting, values = FAMO(torch.ones(3)), losses(1.0, 2.0, 4.0)
    weighting.combine(values, values.detach(), ALL).backward()
    # z / l = (1/3) (1, 1/2, 1/4), scaled to sum 3
    torch.testing.assert_close(values.grad, torch.tensor([1, 0.5, 0.25]) * 3 / 1.75)


def test_famo_follows_the_slower_task() -> None:
    weighting = FAMO(torch.ones(2), rate=0.1, decay=0.0)
    both = torch.tensor([True, True])
    weighting.observe(torch.tensor([1.0, 1.0]), both)
    assert weighting.logits.tolist() == [0, 0]
    weighting.observe(torch.tensor([0.5, 1.0]), both)
    # change = (log 2, 0); z = 1/2: J^T change = (log 2, -log 2) / 4
    expected = 0.1 * math.log(2) / 4
    torch.testing.assert_close(weighting.logits, torch.tensor([-expected, expected]))


def test_famo_uses_the_last_seen_loss_of_an_absent_task() -> None:
    weighting = FAMO(torch.ones(2))
    weighting.observe(torch.tensor([2.0, 4.0]), torch.tensor([True, True]))
    values = losses(2.0, 0.0)
    weighting.combine(values, values.detach(), torch.tensor([True, False])).backward()
    assert values.grad is not None
    assert values.grad[0].item() == pytest.approx(2 * 0.5 / 0.75)
    weighting.observe(torch.tensor([1.0, 0.0]), torch.tensor([True, False]))
    assert weighting.last.tolist() == [1, 4]


@pytest.mark.parametrize("kind", [Fixed, Uncertainty, FAMO])
def test_no_labels_at_all_is_zero_and_finite(kind: type[Fixed]) -> None:
    weighting, values, nothing = kind(torch.ones(2)), losses(0.0, 0.0), torch.tensor([False, False])
    total = weighting.combine(values, values.detach(), nothing)
    total.backward()
    weighting.observe(values.detach(), nothing)
    assert total.item() == 0
    assert all(torch.isfinite(v).all() for v in weighting.state_dict().values())


def test_unknown_task_weight() -> None:
    with pytest.raises(ValueError, match="unknown task 'smile'"):
        make_weighting(TrainingConfig(task_weights={"smile": 1.0}), TASKS)
