"""Cross-dataset hybrid training: every sample teaches the tasks its dataset labels, on one shared network.

A step is a function of (seed, step number, state): the batch, the number of feedback iterations and dropout are seeded
by it, so a resumed run repeats an uninterrupted one bit for bit.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ifan import ops
from ifan.config import Config, dump_config, to_dict
from ifan.data import FaceDataset
from ifan.data.mixture import Batch, Loader, Mixture
from ifan.files import FolderLock, write_files
from ifan.hub import Training
from ifan.network import IFAN, Predictions
from ifan.training.calibration import calibrate, normalise_heads
from ifan.training.checkpoint import (
    CheckpointError,
    Tensors,
    checkpoints,
    load_tensors,
    read_state,
    save_checkpoint,
)
from ifan.training.distributed import Processes, own_device
from ifan.training.ema import EMA
from ifan.training.log import Figures, RunLog, StepResult
from ifan.training.model import build_model, export, load_fitting, load_weights, planes_before, train_only
from ifan.training.optimizer import learning_rate, make_optimizer, optimizer_tensors, set_learning_rate
from ifan.training.plot import plot_losses
from ifan.training.stop import StopSignals
from ifan.training.weighting import make_weighting

Validate = Callable[[IFAN, int], Figures]
"""Measures a network with that many passes."""
LossFn = Callable[[Batch], tuple[Tensor, Tensor]]
"""Losses of the tasks and counts of their labels, ``(T,)`` each, of the network's passes over a batch."""

BEGUN_FROM = "init.txt"
"""File of a run that names the weights it began from: its model's licence depends on them."""

_HEAD_BATCHES = 40  # for statistics that follow every batch from then on


@dataclass(frozen=True)
class RunOptions:
    """Beginning of a run and how it is watched; nothing that changes what a step computes.

    ``init`` is a model folder or safetensors file to begin from, or with ``partial`` weights of another size or variant
    of which what fits is taken (`load_fitting`); ``workers`` processes prepare batches; ``validate`` measures the
    averaged network; ``loss_fn`` takes the place of the trainer's own passes and losses in a run of one process, such
    as a compiled version of them.
    """

    init: Path | None = None
    partial: bool = False
    workers: int = 0
    validate: Validate | None = None
    loss_fn: LossFn | None = None
    quiet: bool = False


class Trainer:
    """A run in folder ``out``: ``config.yaml``, ``checkpoints/``, ``log.jsonl`` and, finished, ``model/``.

    ``datasets`` by the names that ``config.training.shares`` uses. Raises ``ValueError`` for a folder in use without
    ``resume``, for weights of another shape, and when the loss diverges.
    """

    def __init__(
        self,
        config: Config,
        datasets: dict[str, FaceDataset],
        out: Path,
        device: str = "cpu",
        resume: bool = False,
        options: RunOptions = RunOptions(),
    ) -> None:
        self.config, self.out, self.device = config, Path(out), own_device(device)
        self.options, self.done = options, 0
        self.figures: Figures = {}
        init, partial = options.init, options.partial
        self.processes = Processes.join(self.device)
        first = self.processes.rank == 0
        _check_folder(self.out, resume)
        self.lock = FolderLock(self.out) if first and self.out.exists() else None
        tasks, training = tuple(t.name for t in config.network.tasks), config.training
        self.log = RunLog(self.out if first else None, tasks, training.steps, training.log_every)
        self.log.console.quiet = options.quiet
        self.mixture = Mixture(datasets, config.network, training)
        found = checkpoints(self.out / "checkpoints") if resume else []
        if resume and not found:
            self.log.say(f"{self.out}: no checkpoint yet; beginning at the first step")
        if partial and not init:
            raise ValueError(
                "--partial says how much of --init is taken; name the weights with --init, or leave it out"
            )
        fresh = not found and (partial or not init)
        self.model = build_model(config, datasets if fresh else None).to(self.device)
        if init and not found:
            if partial:
                fitting = load_fitting(self.model, init)
                self.log.say(f"{init}: {fitting}")
                if fitting.heads:
                    batches = (_to(self.mixture.batch(i), self.device) for i in range(_HEAD_BATCHES))
                    normalise_heads(self.model, fitting.heads, batches)
            else:
                load_weights(self.model, init)
        if self.processes.world > 1:
            self.model.moments_reduce = self.processes.moments
        train_only(self.model, training.only)
        self.weighting = make_weighting(training, tasks).to(self.device)
        self.optimizer = make_optimizer(self.model, self.weighting, training)
        self.ema = EMA(self.model, training.ema_decay)
        self._restore(found)
        self.processes.barrier()  # nobody looks at the folder any more
        if first:
            self.lock = self.lock or FolderLock(self.out)
            _check_folder(self.out, resume)  # another run may have begun and ended
            write_files({self.out / "config.yaml": dump_config(config).encode()})
            if init:
                write_files({self.out / BEGUN_FROM: f"{init}\n".encode()})
        for module in (self.model, self.weighting):
            self.processes.copy_from_first(module)

    def run(self, time_limit: float | None = None) -> int | None:
        """Train to the last step, validate, write ``model/`` (averaged weights).

        SIGINT, SIGTERM or ``time_limit`` minutes end the run early, with a checkpoint after the step in progress.
        Returns the signal's number if one did, else ``None``.
        """
        settings, began = self.config.training, time.monotonic()
        loader = Loader(self.mixture, self.done, settings.steps, self.options.workers, **self._part())
        with self.lock or nullcontext(), StopSignals() as signals, self.log.open(self.done):
            if self._trained_passes() < self.config.network.iterations:
                self.log.say(
                    f"training makes at most {self._trained_passes()} of the network's {self.config.network.iterations}"
                    " passes, and validation as many; predict with as many, or set network.iterations"
                )
            for batch in loader:
                result = self.step(batch)
                self.log.step(self.done, result)
                late = time_limit is not None and time.monotonic() - began > 60 * time_limit
                halt = self._any(signals.received is not None or late) and self.done < settings.steps
                if halt or self.done == settings.steps or self.done % settings.checkpoint_every == 0:
                    self.save()
                if halt:
                    why = "stopped by a signal" if signals.received else "time limit reached"
                    self.log.say(f"{why} after step {self.done}; --resume continues from its checkpoint")
                    break
                if settings.validate_every and self.done % settings.validate_every == 0 and self.done < settings.steps:
                    self._validate()
            else:
                self._finish()
        self.processes.leave()
        return signals.received

    def step(self, batch: Batch) -> StepResult:
        """One update of the network, its average and the loss weighting."""
        settings, rate = self.config.training, learning_rate(self.done, self.config.training)
        samples = sum(self.mixture.counts(self.done).values())
        torch.manual_seed(_seed(settings.seed, self.done, self.processes.rank))
        self.model.train()
        self.model.feedback = min(1.0, (self.done + 1) / max(1, settings.feedback_warmup))
        batch = _to(batch, self.device)
        losses, whole, present = self._losses(batch)
        total = self.weighting.combine(losses, whole, present, 1 / self.processes.world)
        self.optimizer.zero_grad()
        total.backward()
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.processes.add_gradients([*parameters, *self.weighting.parameters()])
        norm = float(nn.utils.clip_grad_norm_(parameters, settings.clip_norm or math.inf))
        if not math.isfinite(norm):
            raise ValueError(
                f"step {self.done + 1}: the gradient is not finite (losses {whole.tolist()}); --resume goes back"
                " to the last checkpoint: lower training.learning_rate or training.clip_norm"
            )
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.weighting.observe(whole, present)
        self.ema.update(self.model, self.done)
        self.done += 1
        return StepResult(whole, present, samples, rate, norm)

    def save(self) -> None:
        """Write a checkpoint of the steps done so far."""
        if self.processes.rank == 0:
            state = {"config": to_dict(self.config)}
            save_checkpoint(self.out / "checkpoints", self.done, self._tensors(), state)
        self.processes.barrier()

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Losses (T,) of this process with gradient, those of the global batch without, and which tasks have labels."""
        if self.options.loss_fn is not None:
            losses, counts = self.options.loss_fn(batch)
            return losses, losses.detach(), counts > 0
        settings = self.config.training
        seeded = random.Random(f"{settings.seed}:{self.done}")
        passes = seeded.choices(range(1, len(settings.iterations) + 1), settings.iterations)[0]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            every = settings.supervise == "all"
            iterations = self.model(batch.images, batch.lanes, passes, every, planes_before(self.model, batch))
        trained = iterations if every else iterations[-1:]
        results = [self.hybrid_loss(predictions, batch) for predictions in trained]
        counts = self.processes.sum(results[0].counts)  # the labels', so the same for every iteration
        losses = torch.stack([result.losses for result in results]).mean(0)
        if self.processes.world > 1:
            # Mean over this process' labelled elements -> its part of the mean over all; outputs without rows join the
            # graph so that every process runs the same backward pass.
            losses = losses * (results[0].counts / counts.clamp_min(1e-12))
            outputs = [o for p in trained for o in (p.parsing_logits, p.points, *p.class_logits.values())]
            losses = losses + sum(_full(o).sum() for o in outputs if o.shape[0] == 0)
        return losses, self.processes.sum(losses.detach()), counts > 0

    def hybrid_loss(self, predictions: Predictions, batch: Batch) -> ops.HybridLoss:
        """Loss of one pass over a batch, by the configuration's settings."""
        loss, size = self.config.training.loss, batch.images.shape[0]
        weights = loss.parsing_class_weights
        judged = (predictions.parsing_logits, predictions.points, predictions.dense_class_logits(size))
        options = ops.LossOptions(
            self.model.class_sizes,
            torch.ones(len(self.config.network.tasks), device=self.device),
            parsing_class_weights=torch.tensor(weights, device=self.device) if weights else None,
            parsing_smoothing=loss.parsing_smoothing,
            class_smoothing=loss.class_smoothing,
            point_loss=loss.points,
            wing_width=loss.wing_width,
            wing_curvature=loss.wing_curvature,
        )
        targets = (batch.parsing_target, batch.points_target, batch.points_weight, batch.class_targets)
        return ops.hybrid_loss(ops.LossPredictions(*map(_full, judged)), ops.LossTargets(*targets), options)

    def _tensors(self) -> Tensors:
        """Everything a checkpoint holds; the tensors themselves, so that copying into them restores it."""
        modules = (("model", self.model), ("weighting", self.weighting))
        learned = {f"weighting.{k}": v for k, v in self.weighting.state_dict().items()}
        optimizer = optimizer_tensors(self.optimizer, modules) | learned
        return {"model": self.model.state_dict(), "ema": self.ema.shadow, "optimizer": optimizer}

    @torch.no_grad()
    def _restore(self, found: list[Path]) -> None:
        """Continue from the newest sound checkpoint; damaged ones are reported and passed over."""
        for checkpoint in found:
            try:
                state = read_state(checkpoint)
            except CheckpointError as error:
                self.log.say(f"{error}; trying the checkpoint before it")
                continue
            expected = self._tensors()
            for name, part in load_tensors(checkpoint, expected).items():
                for key, value in part.items():
                    expected[name][key].copy_(value)
            self.done = int(state["step"])
            changed = _differences(state.get("config"), to_dict(self.config))
            self.log.say(f"continuing after step {self.done}" + (f"; changed: {', '.join(changed)}" if changed else ""))
            return
        if found:
            raise CheckpointError(f"{self.out}: every checkpoint is damaged; begin again in another folder")

    def _validate(self) -> None:
        if self.options.validate is not None and self.processes.rank == 0:
            with self.ema.applied(self.model):
                self.figures = self.options.validate(self.model, self._trained_passes())
                self.log.validation(self.done, self.figures)
        self.processes.barrier()

    def _trained_passes(self) -> int:
        """Passes that predictions can rely on: the network's, but no more than training ever makes.

        Passes over closer crops are all trained as soon as some are: each begins with what the ones before found.
        """
        network, training = self.config.network, self.config.training
        if network.reframe:
            return network.iterations if training.refine_share > 0 else 1
        return min(network.iterations, max(k for k, p in enumerate(training.iterations, 1) if p > 0))

    def _calibrate(self) -> None:
        """Give the averaged network statistics of its own, from the batches that would come next."""
        last, count = self.config.training.steps, self.config.training.calibrate
        batches = Loader(self.mixture, last, last + count, self.options.workers, **self._part())
        with self.ema.applied(self.model):
            passes = min(self._trained_passes(), self.config.network.iterations_per_crop)
            calibrate(self.model, (_to(batch, self.device) for batch in batches), passes)
            self.ema.assign(self.model)
        self.log.say(f"running statistics of the averaged network estimated from {count} batches")

    def _finish(self) -> None:
        if self.config.training.calibrate:
            self._calibrate()
        self._validate()
        if self.processes.rank == 0:
            with self.ema.applied(self.model):
                export(self.model, self.out / "model", self._about())
            plot_losses(self.out)
            self.log.say(f"finished after step {self.done}: {self.out / 'model'}")

    def _about(self) -> Training:
        """Facts of this run for the model's card."""
        samples = {name: len(dataset) for name, dataset in self.mixture.datasets.items()}
        begun = self.out / BEGUN_FROM
        init = Path(begun.read_text(encoding="utf-8").strip()).name if begun.exists() else None
        return Training(samples, self.done, self.figures, init)

    def _any(self, flag: bool) -> bool:
        return bool(self.processes.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def _part(self) -> dict[str, int]:
        return {"rank": self.processes.rank, "world": self.processes.world}


def _check_folder(out: Path, resume: bool) -> None:
    """A run begins in a new or empty folder and resumes in one with a ``config.yaml``."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: expected a folder for the run; got a file; name another with --out")
    used = out.is_dir() and any(out.iterdir())
    if used and not resume:
        raise ValueError(f"{out}: the folder is not empty; continue that run with --resume or name another with --out")
    if used and not (out / "config.yaml").exists():
        raise ValueError(f"{out}: --resume expects the folder of a run; it has no config.yaml; name the right one")


def _to(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    lanes = replace(batch.lanes, rows=batch.lanes.rows.to(device))
    earlier = None if batch.earlier is None else batch.earlier.to(device)
    tensors = ("images", "parsing_target", "points_target", "points_weight", "class_targets")
    return replace(batch, lanes=lanes, earlier=earlier, **{name: getattr(batch, name).to(device) for name in tensors})


def _full(x: Tensor) -> Tensor:
    """Half precision as single."""
    return x if x.dtype == torch.float64 else x.float()


def _seed(*numbers: int) -> int:
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _differences(old: Any, new: Any, at: str = "") -> list[str]:
    """Dotted names of the settings that differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [d for k in keys for d in _differences(old.get(k), new.get(k), f"{at}.{k}" if at else k)]
    return [] if old == new else [at]
