"""Bytes that hybrid training on several processes sends: counted from the network, and checked against a real step.

    python -m benchmarks.communication                                              # counts from the network
    torchrun --nproc-per-node 2 -m benchmarks.communication                         # beside them, two processes train
    torchrun --nproc-per-node 2 -m benchmarks.communication --config paper-128

The times are of this machine's loopback (gloo) or cards (nccl); the model of docs/scaling.md is printed beside them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ifan.concat import Lanes
from ifan.config import Config, load_config
from ifan.data.toy import ToyFaces
from ifan.training import Trainer
from ifan.training.model import build_model

FORWARD, BACKWARD = 3, 2
"""Messages a normalised tensor: its counts, means and variances; the gradients of the last two."""


@dataclass(frozen=True)
class Traffic:
    """All-reduce operations of one training step: how many, and their bytes."""

    messages: int
    bytes: int


def expected(config: Config) -> tuple[Traffic, Traffic]:
    """Of the gradients and of the moments, counted from the network's parameters and normalised channels."""
    model = build_model(config, None).train()
    shapes: list[tuple[int, ...]] = []

    def note(mean: Tensor, var: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shapes.append(tuple(mean.shape))
        return mean, var, counts

    model.moments_reduce = note
    size = config.network.image_size
    model(torch.zeros(2, 3, size, size, dtype=torch.uint8), Lanes.all_tasks(2, config.network), 1)
    parameters = sum(p.numel() for p in model.parameters())
    values = sum((FORWARD - 1 + BACKWARD) * tasks * channels + tasks for tasks, channels in shapes)
    return Traffic(1, 4 * parameters), Traffic((FORWARD + BACKWARD) * len(shapes), 4 * values)


@dataclass
class Meter:
    """Bytes that went through ``all_reduce``, and the seconds that took."""

    messages: int = 0
    bytes: int = 0
    seconds: float = 0.0


@contextmanager
def metered() -> Iterator[Meter]:
    """Counts while it lasts."""
    meter, real = Meter(), dist.all_reduce

    def all_reduce(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        done = real(tensor, *args, **kwargs)
        meter.seconds += time.perf_counter() - start
        meter.messages, meter.bytes = meter.messages + 1, meter.bytes + tensor.numel() * tensor.element_size()
        return done

    dist.all_reduce = all_reduce
    try:
        yield meter
    finally:
        dist.all_reduce = real


def link(device: torch.device, numbers: int) -> tuple[float, float]:
    """Seconds of an all-reduce of one number, and bytes a second of a large one, once the processes are in step."""

    def seconds(tensor: Tensor, times: int) -> float:
        taken = []
        for _ in range(times):
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(tensor)
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    latency = seconds(torch.zeros(1, device=device), 200)
    return latency, 4 * numbers / (seconds(torch.zeros(numbers, device=device), 20) - latency)


def train(config: Config, device: str, steps: int) -> None:
    """Real steps on all processes of ``torchrun``, beside what the model says of them."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, {"toy": ToyFaces(256, size=config.network.image_size)}, Path(folder) / "run", device)
        processes, times, meters = trainer.processes, [], []
        for step in range(steps):
            batch = trainer.mixture.batch(step, rank=processes.rank, world=processes.world)
            processes.barrier()
            with metered() as meter:
                start = time.perf_counter()
                trainer.step(batch)
                times.append(time.perf_counter() - start)
            meters.append(meter)
        gradients, _ = expected(config)
        latency, rate = link(trainer.device, gradients.bytes // 4)
        if processes.rank == 0:
            last = meters[-1]
            print(f"counted in a step: {last.messages} messages, {last.bytes} bytes ({processes.world} processes)")
            model = last.messages * latency + last.bytes / rate
            measured = statistics.median(meter.seconds for meter in meters[1:])
            print(f"link: {1e6 * latency:.0f} us a message, {rate / 1e9:.2f} GB/s")
            print(
                f"communication: {1e3 * model:.1f} ms by the model, {1e3 * measured:.1f} ms measured, waiting included"
            )
            print(f"step: {1e3 * statistics.median(times[1:]):.0f} ms of {config.training.batch_size} samples")
        processes.leave()


def main() -> None:
    """Parse the command line, count, and where there are several processes, train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="paper-64")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = load_config(options.config)
    training = replace(config.training, batch_size=options.batch, shares={"toy": 1.0}, iterations=(1.0,))
    config = replace(config, training=training)
    if int(os.environ.get("RANK", "0")) == 0:
        gradients, moments = expected(config)
        print(f"gradients: {gradients.messages} message, {gradients.bytes} bytes")
        print(f"moments: {moments.messages} messages, {moments.bytes} bytes")
    if "RANK" in os.environ:
        train(config, options.device, options.steps)


if __name__ == "__main__":
    main()
