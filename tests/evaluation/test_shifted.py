from __future__ import annotations

from typing import Any

import numpy as np

from ifan.data.evaluation import evaluation_batches
from ifan.evaluation import Shifted


def test_crops_move_by_the_seeded_draw_and_are_tighter(faces: Any, oracle: Any) -> None:
    plain, shifted = faces(250), Shifted(faces(250))
    network = oracle(plain).config
    crops = [crop for batch in evaluation_batches(shifted, network) for crop in batch.crops]
    base = next(evaluation_batches(plain, network)).crops[0]
    moves = np.array([((c.cx - base.cx) / base.side, (c.cy - base.cy) / base.side) for c in crops])
    assert np.allclose([c.side / base.side for c in crops], 0.89)
    assert abs(moves.std() - 0.041) < 0.003
    assert abs(moves.mean()) < 0.004
    again = [crop for batch in evaluation_batches(Shifted(faces(250)), network) for crop in batch.crops]
    assert crops == again


def test_labels_move_with_the_crop(faces: Any, oracle: Any) -> None:
    network, shifted = oracle(faces()).config, Shifted(faces())
    batch = next(evaluation_batches(shifted, network))
    x0, y0, x1, _ = shifted[0].box
    expected = (shifted[0].points - (x0, y0)).T / (x1 - x0) - 0.5
    assert np.allclose(batch.points[0].numpy(), expected, atol=1e-5)


def test_profiles_are_repeated_to_their_share(faces: Any) -> None:
    dataset = faces(100)
    dataset.classes = {**dataset.classes, "pose": ("frontal", "left_profile")}
    dataset.labels_of = lambda index: {"pose": int(index < 4)}
    shifted = Shifted(dataset)
    profiles = sum(shifted.labels_of(i)["pose"] for i in range(len(shifted)))
    assert profiles == 12  # of 108: the whole number of repetitions nearest to 10.6 %
    assert len(shifted) == 108
    assert len(Shifted(faces(10, tasks=("emotion",)))) == 10
