"""Batches: a pure function of (seed, step), shares, lanes, processes; evaluation batches and label means."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import get_worker_info

from ifan.config import EMOTIONS, IGNORE, AugmentConfig, NetworkConfig, TaskConfig, TrainingConfig
from ifan.crop import crop_image, points_from_crop
from ifan.data.dataset import DataError
from ifan.data.mixture import Batch, Loader, Mixture, evaluation_batches, label_means
from ifan.data.sample import FaceSample
from ifan.data.toy import ToyFaces

NETWORK = NetworkConfig(size=64)


class Broken(ToyFaces):
    """One bad file."""

    def __getitem__(self, index: int) -> FaceSample:
        raise DataError("photo.jpg: the picture is damaged; replace it")


def mixture(batch: int = 11, **changes: object) -> Mixture:
    datasets = {
        "celebamask": ToyFaces(30, size=64, tasks=("parsing",)),
        "mtfl": ToyFaces(30, seed=1, size=64, tasks=("landmarks", "smile")),
        "fer2013": ToyFaces(30, seed=2, size=64, tasks=("emotion",)),
    }
    return Mixture(datasets, NETWORK, TrainingConfig(batch_size=batch, **changes))


def assert_equal(a: Batch, b: Batch) -> None:
    for name in ("images", "parsing_target", "points_target", "points_weight", "class_targets"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert torch.equal(a.lanes.rows, b.lanes.rows)
    assert (a.lanes.segments, a.keys, a.datasets) == (b.lanes.segments, b.keys, b.datasets)
    assert a.global_segments == b.global_segments


def test_shapes_and_lanes() -> None:
    batch = mixture().batch(0)
    assert batch.images.shape == (11, 3, 64, 64)
    assert batch.images.dtype == torch.uint8
    assert batch.datasets == ["celebamask"] * 1 + ["mtfl"] * 4 + ["fer2013"] * 6
    assert batch.lanes.segments == batch.global_segments == (1, 4, 6)
    assert batch.lanes.rows.tolist() == list(range(11))
    assert batch.parsing_target.shape == (1, 64, 64)
    assert batch.parsing_target.dtype == torch.uint8
    assert batch.points_target.shape == (4, 2, 5)
    assert batch.points_weight.shape == (4, 5)
    assert batch.class_targets.shape == (11, 1)
    assert (batch.class_targets[:5] == -1).all()
    assert (batch.class_targets[5:] >= 0).all()


def test_alternating_batches_are_the_hybrid_ones_split() -> None:
    """Each step has one dataset, in turn; three steps have the samples and the pictures of one hybrid step."""
    hybrid, alternating = mixture(), mixture(batches="alternating")
    for step in (0, 7):
        whole = hybrid.batch(step)
        parts = [alternating.batch(3 * step + turn) for turn in range(3)]
        assert [set(p.datasets) for p in parts] == [{"celebamask"}, {"mtfl"}, {"fer2013"}]
        assert [k for p in parts for k in p.keys] == whole.keys
        assert torch.equal(torch.cat([p.images for p in parts]), whole.images)
        assert [sum(alternating.counts(3 * step + turn).values()) for turn in range(3)] == [len(p.keys) for p in parts]
    with pytest.raises(DataError, match="'celebamask' is missing from some; raise"):
        mixture(batch=7, batches="alternating")


def test_a_sample_takes_the_lane_of_every_task_it_is_labelled_for() -> None:
    smile = TaskConfig("smile", "classification", ("smiling", "not_smiling"))
    network = NetworkConfig(size=64, tasks=(*NETWORK.tasks, smile))
    batch = Mixture({"toy": ToyFaces(9, size=64)}, network, TrainingConfig(batch_size=3)).batch(2)
    assert batch.lanes.segments == (3, 3, 3, 3)
    assert batch.lanes.rows.tolist() == [0, 1, 2] * 4
    assert batch.class_targets.shape == (3, 2)


def test_batches_do_not_depend_on_what_was_drawn_before() -> None:
    fresh = mixture().batch(7)
    used = mixture()
    for step in (3, 9, 0):
        used.batch(step)
    assert_equal(used.batch(7), fresh)
    assert not torch.equal(mixture(seed=1).batch(7).images, fresh.images)
    assert not torch.equal(mixture().batch(8).images, fresh.images)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_closer_crop_is_of_the_same_sample_as_the_one_before() -> None:
    """Its pictures and labels are those of a step without; the iteration before saw another crop of the picture."""
    still = AugmentConfig(
        **dict.fromkeys(("brightness", "contrast", "saturation", "grey", "low_resolution", "blur", "noise", "erase"), 0)
    )
    plain, closer, some = (mixture(refine_share=share, augment=still) for share in (0.0, 1.0, 0.5))
    batch = closer.batch(3)
    assert_equal(plain.batch(3), batch)
    assert plain.batch(3).earlier is None
    assert plain.batch(3).reframed == ()
    assert {some.batch(step).earlier is None for step in range(12)} == {True, False}
    assert batch.earlier is not None
    assert batch.earlier.shape == batch.images.shape
    for now, before, crop in zip(batch.images, batch.earlier, batch.reframed, strict=True):
        size = now.shape[-1]
        there = replace(crop, cx=(crop.cx + 0.5) * size, cy=(crop.cy + 0.5) * size, side=crop.side * size)
        drawn = crop_image(before.permute(1, 2, 0).numpy(), there, size).astype(float)
        inner = slice(size // 4, -size // 4)
        far = np.abs(drawn - now.permute(1, 2, 0).numpy())[inner, inner].mean()
        turned = np.abs(drawn[:, ::-1] - now.permute(1, 2, 0).numpy())[inner, inner].mean()
        assert far < 12
        assert far < turned


def test_wide_crops_follow_closer_ones_and_have_labels_inside_the_picture() -> None:
    usual, wide = (mixture(refine_share=1.0, augment=AugmentConfig(wide=share, shift=0.0)) for share in (0.0, 1.0))
    for batch, apart in ((usual.batch(1), False), (wide.batch(1), True)):
        assert all((crop.side > 1) == apart for crop in batch.reframed)
    ignored, known = ((batch.parsing_target == IGNORE).float().mean() for batch in (wide.batch(1), usual.batch(1)))
    assert ignored > 0.3 > known


def test_workers_change_nothing() -> None:
    expected = [mixture().batch(step) for step in range(2, 6)]
    for workers in (0, 1, 2):
        loader = Loader(mixture(), 2, 6, workers)
        batches = list(loader)
        assert len(loader) == len(batches) == 4
        for a, b in zip(batches, expected, strict=True):
            assert_equal(a, b)
    assert get_worker_info() is None
    assert list(Loader(mixture(), 5, 5)) == []


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_global_batch(world: int) -> None:
    whole = mixture().batch(4)
    parts = [mixture().batch(4, rank, world) for rank in range(world)]
    for rank, part in enumerate(parts):
        assert part.keys == whole.keys[rank::world]
        assert torch.equal(part.images, whole.images[rank::world])
        assert torch.equal(part.class_targets, whole.class_targets[rank::world])
        assert part.global_segments == part.lanes.global_segments == whole.lanes.segments
    assert tuple(np.sum([part.lanes.segments for part in parts], 0)) == whole.lanes.segments


@pytest.mark.parametrize("shares", [{"mtfl": 16.0, "fer2013": 24.0, "celebamask": 4.0}, {"mtfl": 0.37, "fer2013": 1.0}])
@pytest.mark.parametrize("size", [1, 7, 44])
def test_shares_are_kept_in_the_long_run(shares: dict[str, float], size: int) -> None:
    mix = mixture(size, shares=shares)
    full = {name: shares.get(name, 1.0) for name in mix.datasets}
    total = dict.fromkeys(full, 0)
    for step in range(600):
        counts = mix.counts(step)
        assert sum(counts.values()) == size
        for name, n in counts.items():
            total[name] += n
        for name, share in full.items():
            wanted = (step + 1) * size * share / sum(full.values())
            assert abs(total[name] - wanted) < 1 + 1e-6, (name, step)


def test_an_epoch_shows_every_sample_once() -> None:
    mix = Mixture({"a": ToyFaces(12, size=64, tasks=("emotion",))}, NETWORK, TrainingConfig(batch_size=5))
    keys = [key for step in range(12) for key in mix.batch(step).keys]
    epochs = [keys[start : start + 12] for start in range(0, 60, 12)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5, "each epoch has its own order"


def test_a_sample_looks_otherwise_in_every_epoch() -> None:
    mix = Mixture({"a": ToyFaces(1, size=64, tasks=("landmarks",))}, NETWORK, TrainingConfig(batch_size=2))
    batches = [mix.batch(step) for step in range(2)]
    images = torch.cat([batch.images for batch in batches])
    points = torch.cat([batch.points_target for batch in batches])
    assert len({key for batch in batches for key in batch.keys}) == 1
    for i in range(4):
        for j in range(i):
            assert not torch.equal(images[i], images[j])
            assert (points[i] - points[j]).abs().max() > 1e-3


def test_datasets_of_the_same_faces_are_changed_apart() -> None:
    faces = ToyFaces(1, size=64, tasks=("landmarks",))
    batch = Mixture({"a": faces, "b": faces}, NETWORK, TrainingConfig(batch_size=2)).batch(0)
    assert batch.keys[0] == batch.keys[1]
    assert not torch.equal(batch.images[0], batch.images[1])


def test_an_epoch_holds_samples_of_a_repeated_category_more_often() -> None:
    faces = ToyFaces(12, size=64, tasks=("emotion", "smile"))
    happy = [i for i in range(12) if EMOTIONS[faces.labels_of(i)["emotion"]] == "happy"]
    length = 12 + 2 * len(happy)
    mix = Mixture(
        {"a": faces}, NETWORK, TrainingConfig(batch_size=length, repeats={"emotion.happy": 3, "pose.left": 9})
    )
    for step in range(2):
        keys = mix.batch(step).keys
        assert [keys.count(faces[i].key) for i in range(12)] == [3 if i in happy else 1 for i in range(12)]
    assert 0 < len(happy) < 12


def test_a_share_of_zero_leaves_a_dataset_out() -> None:
    mix = mixture(shares={"fer2013": 0.0})
    assert mix.counts(0)["fer2013"] == 0
    assert mix.batch(0).lanes.segments[2] == 0


def test_classes_are_matched_by_name() -> None:
    tasks = (
        TaskConfig("parsing", "parsing", ("background", "hair", "skin")),
        TaskConfig("landmarks", "landmarks", ("nose", "chin")),
        TaskConfig("emotion", "classification", ("happy", "angry")),
    )
    network = NetworkConfig(size=64, tasks=tasks)
    faces = ToyFaces(40, size=64)
    batch = next(iter(evaluation_batches(faces, network, 40)))
    assert batch.parsing is not None
    assert set(batch.parsing.unique().tolist()) == {0, 1, 2, IGNORE}
    assert batch.points is not None
    assert batch.points.shape == (40, 2, 2)
    assert torch.isnan(batch.points[:, :, 1]).all()
    names = [EMOTIONS[faces.labels_of(i)["emotion"]] for i in range(40)]
    expected = [{"happy": 0, "angry": 1}.get(name, -1) for name in names]
    assert batch.class_targets[:, 0].tolist() == expected
    mixed = Mixture({"toy": faces}, network, TrainingConfig(batch_size=40)).batch(0)
    assert mixed.lanes.segments == (40, 40, sum(label >= 0 for label in expected))
    assert mixed.points_weight[:, 0].eq(1).all()
    assert mixed.points_weight[:, 1].eq(0).all()
    assert torch.isfinite(mixed.points_target).all()


def test_bad_mixtures() -> None:
    def build(datasets: dict[str, ToyFaces], tasks: tuple[TaskConfig, ...] = NETWORK.tasks, **changes: object) -> None:
        Mixture(datasets, NetworkConfig(size=64, tasks=tasks), TrainingConfig(**changes))

    smile = (TaskConfig("smile", "classification", ("yes", "no")),)
    with pytest.raises(DataError, match="positive share"):
        build({})
    with pytest.raises(DataError, match="positive share"):
        build({"a": ToyFaces(3)}, shares={"a": 0.0})
    with pytest.raises(DataError, match="drop it"):
        build({"a": ToyFaces(30, size=64, tasks=("pose",))})
    with pytest.raises(DataError, match=r"'toy' has no 'emotion.glad'; expected one of emotion.angry, "):
        build({"a": ToyFaces(3)}, repeats={"emotion.glad": 2})
    with pytest.raises(DataError, match="have no name in common"):
        build({"a": ToyFaces(3)}, tasks=smile)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_is_one_line_also_from_a_worker(workers: int) -> None:
    loader = Loader(Mixture({"a": Broken(3)}, NETWORK, TrainingConfig()), 0, 2, workers)
    with pytest.raises(DataError, match=r"^photo\.jpg: the picture is damaged; replace it$"):
        list(loader)


def test_evaluation_batches_lead_back_to_the_photo() -> None:
    faces = ToyFaces(7)
    batches = list(evaluation_batches(faces, NETWORK, 3))
    assert [len(batch.keys) for batch in batches] == [3, 3, 1]
    for batch in batches:
        assert batch.points is not None
        for points, crop, sample in zip(batch.points, batch.crops, batch.samples, strict=True):
            assert sample.points is not None
            assert np.abs(points_from_crop(points.numpy(), crop) - sample.points).max() < 1e-4


def test_label_means() -> None:
    datasets = {
        "celebamask": ToyFaces(30, size=64, tasks=("parsing",)),
        "fer2013": ToyFaces(50, seed=2, size=64, tasks=("emotion",)),
    }
    parsing, points, classes = label_means(datasets, NETWORK)
    assert parsing.shape == (9, 64, 64)
    assert torch.allclose(parsing.sum(0), torch.ones(64, 64), atol=1e-6)
    assert parsing[:, 0, 0].argmax() == 0
    assert torch.equal(points, torch.zeros(2, 5)), "no landmark labels: the centre"
    counts = np.bincount([datasets["fer2013"].labels_of(i)["emotion"] for i in range(50)], minlength=7)
    assert np.allclose(classes.numpy(), counts / 50, atol=1e-6)
    folded, _, _ = label_means(datasets, NetworkConfig(size=32, image_fold=2))
    assert torch.allclose(folded, torch.nn.functional.avg_pool2d(parsing, 2), atol=0.01)  # ignored borders weigh less
    parsing, points, classes = label_means({"mtfl": ToyFaces(30, size=64, tasks=("landmarks",))}, NETWORK)
    assert torch.allclose(parsing, torch.full((9, 64, 64), 1 / 9))
    assert torch.allclose(classes, torch.full((7,), 1 / 7))
    assert points[0, 0] < points[0, 1]
    assert points[1, 0] < points[1, 3]
