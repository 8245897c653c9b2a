"""Batches across datasets: a pure function of (seed, step), so resuming needs only the step."""

from __future__ import annotations

import functools
import signal
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from math import lcm

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ifan.concat import Lanes
from ifan.config import NetworkConfig, TrainingConfig
from ifan.crop import Crop, crop_image
from ifan.data.augment import EARLIER, INNER, augment_crop, augment_pixels
from ifan.data.dataset import DataError, FaceDataset
from ifan.data.evaluation import EvaluationBatch, evaluation_batches, label_means
from ifan.data.targets import TargetMap, Targets

__all__ = ["Batch", "EvaluationBatch", "Loader", "Mixture", "evaluation_batches", "label_means"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of several datasets with the lanes they take.

    ``images`` (B, 3, I, I) uint8 RGB. ``lanes``: one a sample and task it is labelled for, grouped by task in config
    order. ``parsing_target`` (Np, I, I) uint8, 255 = ignored; ``points_target`` (Nl, 2, P) float32 normalised with
    ``points_weight`` (Nl, P), 0 where unlabelled; ``class_targets`` (B, n) int64, -1 = unlabelled. The rows of the
    first two are those of their task's lanes. ``global_segments``: lanes of each task over all processes. Where the
    step trains a closer crop, ``earlier`` (B, 3, I, I) is what the iteration before saw of each sample, and
    ``reframed`` the crops of ``images`` in its sides.
    """

    images: Tensor
    lanes: Lanes
    parsing_target: Tensor
    points_target: Tensor
    points_weight: Tensor
    class_targets: Tensor
    keys: list[str]
    datasets: list[str]
    global_segments: tuple[int, ...]
    earlier: Tensor | None = None
    reframed: tuple[Crop, ...] = ()


class Mixture:
    """Mixes datasets by ``training.shares``; ``datasets`` maps the names used there to what `open_dataset` returned.

    Raises `DataError` when no dataset has a share, a dataset is empty, none of its tasks is the network's, or it has a
    task of ``training.repeats`` without the class named there.
    """

    def __init__(self, datasets: Mapping[str, FaceDataset], network: NetworkConfig, training: TrainingConfig) -> None:
        self.datasets, self.network, self.training = dict(datasets), network, training
        shares = {name: training.shares.get(name, 1.0) for name in datasets}
        if not any(share > 0 for share in shares.values()):
            raise DataError(
                f"mixture: expected a dataset with a positive share; got {shares}; pass --data or raise a share"
            )
        for name, dataset in self.datasets.items():
            if len(dataset) == 0:
                raise DataError(f"mixture: dataset {name!r} has no samples; check its path and split list")
        self.epochs = {name: _repeated(dataset, training.repeats) for name, dataset in self.datasets.items()}
        self.maps = {name: TargetMap(dataset, network) for name, dataset in self.datasets.items()}
        wanted = {*(t.name for t in network.classifications)}
        wanted |= {kind for kind, task in (("parsing", network.parsing), ("landmarks", network.landmarks)) if task}
        for name, dataset in self.datasets.items():
            if not wanted & dataset.tasks:
                raise DataError(
                    f"mixture: dataset {name!r} labels {sorted(dataset.tasks)}, the network {sorted(wanted)}; drop it"
                )
        self.schedule = _schedule(list(shares.values()))
        # drawn[d, k] = slots of dataset d among the first k of a period
        hits = self.schedule == np.arange(len(shares))[:, None]
        self.drawn = np.concatenate([np.zeros((len(shares), 1), np.int64), hits.cumsum(1)], 1)
        self.turns = [name for name, share in shares.items() if share > 0] if training.batches == "alternating" else []
        if self.turns:
            self._require_every_dataset_in_every_batch()

    def counts(self, step: int) -> dict[str, int]:
        """Samples each dataset gives to the batch of ``step``; hybrid ones sum to the batch size."""
        return {name: stop - start for name, (start, stop) in self._spans(step).items()}

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch of ``step``; process ``rank`` of ``world`` gets samples rank, rank + world, .. of it."""
        chosen = [(name, n) for name, (start, stop) in self._spans(step).items() for n in range(start, stop)]
        mine = chosen[rank::world]
        reframes = np.random.default_rng((self.training.seed, step, 2)).random() < self.training.refine_share
        samples = [self._sample(name, n, reframes) for name, n in mine]
        if world == 1:
            lanes = [targets.lanes for _, targets in samples]
        else:
            lanes = [self.maps[name].lanes(self.datasets[name].labels_of(self._index(name, n))) for name, n in chosen]
        return _collate(
            [targets for _, targets in samples],
            self.network,
            keys=[key for key, _ in samples],
            datasets=[name for name, _ in mine],
            global_segments=tuple(int(s) for s in np.sum(lanes, axis=0)),
            reframes=reframes,
        )

    def _spans(self, step: int) -> dict[str, tuple[int, int]]:
        """Running numbers (start, stop) of each dataset's samples at ``step``."""
        step, turn = divmod(step, len(self.turns)) if self.turns else (step, 0)
        size = self.training.batch_size
        ends = self._drawn_before(np.array([step * size, (step + 1) * size])).T
        spans = {name: (int(ends[0][d]), int(ends[1][d])) for d, name in enumerate(self.datasets)}
        return {self.turns[turn]: spans[self.turns[turn]]} if self.turns else spans

    def _drawn_before(self, slots: np.ndarray) -> np.ndarray:
        """Samples of each dataset among the first so many slots: ``(datasets, len(slots))``."""
        rounds, rest = np.divmod(slots, len(self.schedule))
        return np.asarray(rounds * self.drawn[:, -1:] + self.drawn[:, rest])

    def _require_every_dataset_in_every_batch(self) -> None:
        size = self.training.batch_size
        counts = np.diff(self._drawn_before(np.arange(len(self.schedule) + 1) * size), axis=1)
        for name, least in zip(self.datasets, counts.min(1), strict=True):
            if name in self.turns and least == 0:
                raise DataError(
                    f"mixture: to alternate, expected every dataset in each batch of {size}; {name!r} is missing from"
                    " some; raise training.batch_size or its share"
                )

    def _index(self, name: str, number: int) -> int:
        """Index of the ``number``-th sample drawn from a dataset since step 0: a new order every epoch."""
        samples = self.epochs[name]
        epoch, place = divmod(number, len(samples))
        return int(samples[_order(self.training.seed, name, epoch, len(samples))[place]])

    def _sample(self, name: str, number: int, reframes: bool) -> tuple[str, Targets]:
        to_targets, augment = self.maps[name], self.training.augment
        sample = self.datasets[name][self._index(name, number)]
        rng = np.random.default_rng((self.training.seed, zlib.crc32(name.encode()), number))
        base = to_targets.base_crop(sample)
        crop = augment_crop(base, rng, augment)
        wide = crop.side > base.side * augment.scale[1]
        # What lies beyond the picture has no labels; mirrored, it looks more like a scene than the repeated border.
        border = cv2.BORDER_REFLECT_101 if wide and rng.random() < 0.5 else cv2.BORDER_REPLICATE
        targets = to_targets(sample, crop, border)
        targets = replace(targets, image=augment_pixels(targets.image, rng, augment))
        if reframes:
            before = augment_crop(crop, rng, INNER if wide else EARLIER)
            image = augment_pixels(crop_image(sample.image, before, self.network.image_size), rng, augment)
            targets = replace(targets, earlier=image, reframed=crop.seen_from(before))
        return sample.key, targets


class Loader:
    """Iterates over the batches of steps ``start`` .. ``stop`` - 1 in order, made ahead by ``workers`` processes.

    The batches do not depend on the number of workers; 0 makes them in this process.
    """

    def __init__(
        self, mixture: Mixture, start: int, stop: int, workers: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        self.steps = _Steps(mixture, start, max(start, stop), rank, world)
        self.workers = workers

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Batch]:
        # Pictures are small: OpenCV's own threads would only take the cores from the training step.
        cv2.setNumThreads(0)
        batches = DataLoader(
            self.steps,
            batch_size=None,
            shuffle=False,
            num_workers=self.workers,
            worker_init_fn=_start_worker,
            prefetch_factor=4 if self.workers else None,
        )
        for batch in batches:
            if isinstance(batch, ValueError):
                raise batch
            yield batch


class _Steps(Dataset[Batch | ValueError]):
    """Map-style dataset of whole batches, for `DataLoader`'s processes; a bad file's error comes back as a value, since
    `DataLoader` would bury its line in a worker's traceback."""

    def __init__(self, mixture: Mixture, start: int, stop: int, rank: int, world: int) -> None:
        self.mixture, self.start, self.stop, self.rank, self.world = mixture, start, stop, rank, world

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> Batch | ValueError:
        if index >= len(self):
            raise IndexError(index)
        try:
            return self.mixture.batch(self.start + index, self.rank, self.world)
        except ValueError as error:
            return error


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)
    for stop in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group: the training process decides when to end
        signal.signal(stop, signal.SIG_IGN)


def _collate(
    samples: list[Targets],
    network: NetworkConfig,
    keys: list[str],
    datasets: list[str],
    global_segments: tuple[int, ...],
    reframes: bool,
) -> Batch:
    size, points = network.image_size, network.landmarks.width if network.landmarks else 0

    def stacked(images: list[np.ndarray]) -> Tensor:
        together = np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8)
        return torch.from_numpy(np.ascontiguousarray(together.transpose(0, 3, 1, 2)))

    parsing = [t.parsing for t in samples if t.parsing is not None]
    target = np.stack([t.points for t in samples if t.points is not None] or [np.zeros((2, points), np.float32)])
    target = target if any(t.points is not None for t in samples) else target[:0]
    known = np.isfinite(target).all(1)
    lanes = np.array([t.lanes for t in samples], bool).reshape(len(samples), len(network.tasks))
    tasks, rows = lanes.T.nonzero()
    segments = tuple(int(n) for n in np.bincount(tasks, minlength=len(network.tasks)))
    return Batch(
        images=stacked([t.image for t in samples]),
        lanes=Lanes(torch.from_numpy(rows), segments, global_segments),
        parsing_target=torch.from_numpy(np.stack(parsing) if parsing else np.zeros((0, size, size), np.uint8)),
        points_target=torch.from_numpy(np.where(known[:, None], target, np.float32(0))),
        points_weight=torch.from_numpy(known.astype(np.float32)),
        class_targets=torch.from_numpy(
            np.array([t.classes for t in samples], np.int64).reshape(len(samples), len(network.classifications))
        ),
        keys=keys,
        datasets=datasets,
        global_segments=global_segments,
        earlier=stacked([t.earlier for t in samples if t.earlier is not None]) if reframes else None,
        reframed=tuple(t.reframed for t in samples if t.reframed is not None),
    )


def _repeated(dataset: FaceDataset, repeats: Mapping[str, int]) -> np.ndarray:
    """The samples of an epoch, those of each category ``<task>.<class>`` of ``repeats`` as often as that says."""
    times = np.ones(len(dataset), np.int64)
    for category, n in repeats.items():
        task, _, name = category.partition(".")
        if task not in dataset.classes:
            continue
        if name not in dataset.classes[task]:
            known = ", ".join(f"{task}.{known}" for known in dataset.classes[task])
            raise DataError(f"training.repeats: dataset {dataset.name!r} has no {category!r}; expected one of {known}")
        code = dataset.classes[task].index(name)
        times[[dataset.labels_of(i).get(task) == code for i in range(len(dataset))]] *= n
    return np.arange(len(dataset)).repeat(times)


@functools.lru_cache(maxsize=64)
def _order(seed: int, name: str, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, zlib.crc32(name.encode()), epoch, 1)).permutation(size)


def _schedule(shares: list[float]) -> np.ndarray:
    """Dataset of each slot of a period, spread evenly: after k slots each dataset has its share of k, to within one."""
    fractions = [Fraction(share).limit_denominator(1000) for share in shares]
    scale = lcm(*(f.denominator for f in fractions))
    weights = np.array([int(f * scale) for f in fractions])
    weights //= np.gcd.reduce(weights)
    period = int(weights.sum())
    drawn, slots = np.zeros(len(weights), np.int64), np.empty(period, np.int64)
    for slot in range(period):
        slots[slot] = np.argmax(weights * (slot + 1) - drawn * period)
        drawn[slots[slot]] += 1
    return slots
