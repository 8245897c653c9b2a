"""Runs a network over labelled datasets and measures each task they label, beside a predictor that never looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ifan.config import UNLABELLED, NetworkConfig, TaskConfig
from ifan.crop import map_to_image
from ifan.data.dataset import FaceDataset
from ifan.data.evaluation import EvaluationBatch, evaluation_batches
from ifan.data.sample import FaceSample
from ifan.data.targets import TargetMap
from ifan.evaluation.classification import ClassificationMeter
from ifan.evaluation.landmarks import LandmarkMeter
from ifan.evaluation.parsing import ParsingMeter
from ifan.network import IFAN, Lanes, Predictions
from ifan.refine import refine, source_window
from ifan.torch_runner import TorchRunner, torch_predictions

HEADLINES: dict[str, tuple[str, ...]] = {
    "parsing": ("mean_f", "overall_f", "accuracy"),
    "landmarks": ("nme", "failure_rate", "auc"),
    "classification": ("accuracy", "balanced_accuracy", "calibration_error"),
}
"""The numbers of each kind of task that stand for the rest, best known first."""

Progress = Callable[[str, int, int], None]
"""Called after each batch with the dataset's name, images done and images in all."""


@torch.no_grad()
def evaluate(
    model: IFAN,
    datasets: Mapping[str, FaceDataset],
    batch_size: int = 32,
    iterations: int | None = None,
    progress: Progress | None = None,
    *,
    every_iteration: bool = False,
    full_resolution: bool = False,
) -> dict[str, Any]:
    """Measure ``model`` on the tasks that each dataset labels.

    Crops are those of training without augmentation. Parsing is compared at the size of the network's images, with the
    labels warped there (nearest) and the probabilities enlarged (bilinear), or with ``full_resolution`` in the labels'
    own pixels, the probabilities warped (bilinear).

    Args:
        model: the network, measured where it is, in eval mode; its mode is restored afterwards.
        datasets: by the name they have in the report.
        iterations: passes; the configuration's if ``None``. Closer crops (`ifan.refine`) are framed by what the passes
            before predict, never by labels, and see the pixels of the dataset's own picture.
        every_iteration: measure after each pass, not only the last.

    Returns:
        Plain data for JSON: ``["datasets"][name]["tasks"][task]`` holds the metrics after the last iteration (see
        `ParsingMeter`, `LandmarkMeter`, `ClassificationMeter`), ``"constant"`` the headline numbers of
        `constant_baseline`, and ``"iterations"`` those after each measured pass. What was not measurable is ``None``.

    Raises ``ValueError`` when a dataset labels none of the network's tasks, or a count is below 1.
    """
    passes = model.config.check_iterations(model.config.iterations if iterations is None else iterations)
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1; got {batch_size}")
    tasks = {name: _common_tasks(model.config, name, dataset) for name, dataset in datasets.items()}
    was_training, measured = model.training, {}
    model.eval()
    try:
        for name, dataset in datasets.items():
            run = _Run(model, tasks[name], passes, every_iteration, full_resolution)
            measured[name] = _measure(run, dataset, batch_size, partial(_report, progress, name, len(dataset)))
    finally:
        model.train(was_training)
    return {
        "network": {
            "size": model.config.image_size,
            "iterations": passes,
            "tasks": [t.name for t in model.config.tasks],
        },
        "parsing_resolution": "labels" if full_resolution else "network input",
        "datasets": measured,
    }


def constant_baseline(model: IFAN, batch: int) -> Predictions:
    """Predictions of the label means of ``model`` for ``batch`` images.

    The likeliest class of each pixel, the mean shape, the most frequent category of the training labels. Shapes as in
    `Predictions`, all tasks for all images.
    """
    parsing, points, classes = (model.get_buffer(f"mean_{kind}") for kind in ("parsing", "points", "classes"))
    tiny = torch.finfo(classes.dtype).tiny
    groups = classes.clamp_min(tiny).log().expand(batch, -1).split(list(model.class_sizes), 1)
    names = [t.name for t in model.config.classifications]
    every = torch.arange(batch, device=points.device)
    return Predictions(
        parsing.clamp_min(tiny).log().expand(batch, -1, -1, -1),
        points.expand(batch, -1, -1),
        dict(zip(names, groups, strict=False)),  # without classifications, split still gives one empty group
        {t.name: every for t in model.config.tasks},
    )


class Subset:
    """At most ``limit`` samples of a dataset, spread evenly over it (many datasets are sorted by class)."""

    def __init__(self, dataset: FaceDataset, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"limit: expected at least 1 image; got {limit}")
        self.name, self.margin, self.classes = dataset.name, dataset.margin, dataset.classes
        self.dataset, self.limit = dataset, limit

    @property
    def tasks(self) -> frozenset[str]:
        """Those of the whole dataset."""
        return self.dataset.tasks

    def __len__(self) -> int:
        return min(self.limit, len(self.dataset))

    def __getitem__(self, index: int) -> FaceSample:
        return self.dataset[self._place(index)]

    def labels_of(self, index: int) -> dict[str, int]:
        """Class ids by task of sample ``index``, without reading its picture."""
        return self.dataset.labels_of(self._place(index))

    def _place(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return index * len(self.dataset) // len(self)


Meter = ParsingMeter | LandmarkMeter | ClassificationMeter


@dataclass(frozen=True)
class _Run:
    """A model and how it is measured on a dataset."""

    model: IFAN
    tasks: list[TaskConfig]
    passes: int
    every_iteration: bool
    full_resolution: bool

    @property
    def measured(self) -> int:
        """Number of iterations that are measured, the last ones."""
        return self.passes if self.every_iteration else 1

    def __call__(self, batch: EvaluationBatch) -> list[Predictions]:
        """Predictions of a batch, an iteration each."""
        config, device = self.model.config, self.model.get_buffer("mean_points").device
        names = config.needed(self.tasks, self.passes)
        if not config.reframe:
            lanes = Lanes.for_tasks(len(batch.samples), config, names, device)
            return list(self.model(batch.images.to(device), lanes, self.passes))
        seen = zip(batch.samples, batch.crops, strict=True) if self.passes > 1 else ()
        windows = [source_window(sample.image, crop, config.image_size) for sample, crop in seen]
        run = TorchRunner(self.model, device, iterations=1, tasks=names)
        found = refine(config, run, batch.images.numpy(), windows, self.passes)
        return [torch_predictions(iteration, device) for iteration in found]


def _measure(run: _Run, dataset: FaceDataset, batch_size: int, report: Callable[[int], None]) -> dict[str, Any]:
    config, done = run.model.config, 0
    columns = [{t.name: _meter(t) for t in run.tasks} for _ in range(1 + run.measured)]
    table = TargetMap(dataset, config).parsing if run.full_resolution else None
    for batch in evaluation_batches(dataset, config, batch_size):
        count = len(batch.samples)
        predictions = run(batch)
        measured = [constant_baseline(run.model, count), *predictions[-run.measured :]]
        for column, prediction in zip(columns, measured, strict=True):
            _update(column, prediction, batch, dataset, table)
        done += count
        report(done)
    results = {t.name: _result(t, [column[t.name].result() for column in columns]) for t in run.tasks}
    return {"images": len(dataset), "tasks": results}


def _update(
    meters: dict[str, Meter],
    prediction: Predictions,
    batch: EvaluationBatch,
    dataset: FaceDataset,
    table: np.ndarray | None,
) -> None:
    """Show each meter its task's rows: one a sample, in order. ``table`` asks for parsing in the labels' own pixels."""
    classifications = list(prediction.class_logits)
    for name, meter in meters.items():
        if isinstance(meter, ClassificationMeter):
            logits = prediction.class_logits[name].cpu()
            meter.update(logits.argmax(1), batch.class_targets[:, classifications.index(name)], logits)
        elif isinstance(meter, LandmarkMeter):
            if batch.points is not None:
                groups = [_groups(sample, dataset) for sample in batch.samples]
                meter.update(prediction.points.double().cpu(), batch.points, groups=groups)
        elif table is not None:
            _update_at_label_resolution(meter, prediction, batch, table)
        elif batch.parsing is not None:
            probabilities = prediction.parsing_logits.float().softmax(1)
            seen = F.interpolate(probabilities, batch.parsing.shape[1:], mode="bilinear", align_corners=False)
            meter.update(seen.argmax(1).cpu(), batch.parsing)


def _update_at_label_resolution(
    meter: ParsingMeter, prediction: Predictions, batch: EvaluationBatch, table: np.ndarray
) -> None:
    probabilities = prediction.parsing_logits.float().softmax(1).cpu().numpy()
    for planes, crop, sample in zip(probabilities, batch.crops, batch.samples, strict=True):
        if sample.parsing is not None:
            ids = map_to_image(planes, crop, (sample.parsing.shape[0], sample.parsing.shape[1]))
            meter.update(torch.from_numpy(ids), torch.from_numpy(table[sample.parsing]))


def _result(task: TaskConfig, results: list[dict[str, Any]]) -> dict[str, Any]:
    """The report of a task from its meters' results: constant predictor first, last iteration last."""
    constant, *iterations = [{key: result[key] for key in HEADLINES[task.kind]} for result in results]
    return {"kind": task.kind, **results[-1], "constant": constant, "iterations": iterations}


def _report(progress: Progress | None, name: str, total: int, done: int) -> None:
    if progress:
        progress(name, done, total)


def _groups(sample: FaceSample, dataset: FaceDataset) -> dict[str, str]:
    """The sample's categories by name, also of tasks that the network does not have."""
    return {
        task: dataset.classes[task][label]
        for task, label in sample.labels.items()
        if label != UNLABELLED and task in dataset.classes
    }


def _common_tasks(config: NetworkConfig, name: str, dataset: FaceDataset) -> list[TaskConfig]:
    """The network's tasks that the dataset labels; its parsing and landmarks go by kind, categories by name."""
    tasks = [t for t in config.tasks if (t.name if t.kind == "classification" else t.kind) in dataset.tasks]
    if not tasks:
        raise ValueError(
            f"dataset {name!r} labels {sorted(dataset.tasks)}; the network predicts {[t.name for t in config.tasks]}; "
            "leave it out, or evaluate a network with one of these tasks"
        )
    return tasks


def _meter(task: TaskConfig) -> Meter:
    if task.kind == "classification":
        return ClassificationMeter(task.classes, task.temperature)
    return ParsingMeter(task.classes) if task.kind == "parsing" else LandmarkMeter(task.classes)
