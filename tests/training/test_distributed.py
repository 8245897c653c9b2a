"""Two gloo processes against one: the same moments, gradients, losses and weights at the same global batch."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from tests.training.faces import small_config, three_datasets

from ifan.config import Config
from ifan.training import Trainer
from ifan.training.distributed import Processes
from ifan.training.log import read_log

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")

VALUES = [
    torch.arange(24.0).reshape(3, 8).square() / 100,
    torch.randn(5, 8, generator=torch.Generator().manual_seed(0)),
]


def two_processes(folder: Path) -> None:
    """Start ``main`` below twice, as torchrun would, and wait."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.training.test_distributed", str(folder)]
    root = Path(__file__).parents[2]
    running = [
        subprocess.Popen(command, env={**shared, "RANK": str(r)}, cwd=root, stderr=subprocess.PIPE) for r in (0, 1)
    ]
    try:
        for process in running:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors.decode()[-2000:]
    finally:
        for process in running:
            process.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    two_processes(folder)
    return folder


def exact_config() -> Config:
    """Two passes, both trained; no dropout: each process draws its own. A parsing sample a batch: one process has none.

    64 px: at 32 the innermost maps are one pixel, which a single lane normalises to exactly 0, the kink of the ReLU.
    """
    config = small_config(
        steps=2, weighting="uncertainty", learning_rate=1e-3, log_every=1, iterations=(0.0, 1.0), supervise="all"
    )
    network = replace(config.network, size=64, dropout=0.0, iteration_norm="separate")
    return replace(config, network=network)


def main(folder: Path) -> None:
    """What each of the two processes runs."""
    torch.set_num_threads(1)
    save_moments(Processes.join(torch.device("cpu")), folder)
    torch.set_default_dtype(torch.float64)  # so that what differs is not rounding blown up by Adam
    Trainer(exact_config(), three_datasets(), folder / "run").run()


def save_moments(processes: Processes, folder: Path) -> None:
    """Moments of three tasks: both have values, only the second has, nobody has; and their gradient."""
    x = VALUES[processes.rank].clone().requires_grad_()
    n = x.shape[0]
    only_second = float(n if processes.rank else 0)
    mean = torch.stack([x.mean(0), x.mean(0) * (only_second > 0), torch.zeros(8)])
    var = torch.stack([x.var(0, correction=0), x.var(0, correction=0) if only_second else torch.ones(8), torch.ones(8)])
    joined = processes.moments(mean, var, torch.tensor([float(n), only_second, 0.0]))
    # each process contributes its own term to the objective
    objective = (joined[0] * (processes.rank + 1)).sum() + (joined[1] ** 2).sum() / (processes.rank + 1)
    objective.backward()
    assert x.grad is not None
    parts = {"mean": joined[0], "var": joined[1], "counts": joined[2], "grad": x.grad}
    save_file({k: v.detach().contiguous() for k, v in parts.items()}, folder / f"moments-{processes.rank}.safetensors")


def test_moments_are_those_of_all_values(folder: Path) -> None:
    parts = [v.clone().requires_grad_() for v in VALUES]
    whole, second = torch.cat(parts), parts[1]
    mean = torch.stack([whole.mean(0), second.mean(0), torch.zeros(8)])
    var = torch.stack([whole.var(0, correction=0), second.var(0, correction=0), torch.ones(8)])
    (3 * mean.sum() + 1.5 * (var**2).sum()).backward()
    for rank in (0, 1):
        found = load_file(folder / f"moments-{rank}.safetensors")
        torch.testing.assert_close(found["mean"], mean)
        torch.testing.assert_close(found["var"], var)
        assert found["counts"].tolist() == [8, 5, 0]
        torch.testing.assert_close(found["grad"], parts[rank].grad)


def test_two_processes_train_like_one(folder: Path, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        Trainer(exact_config(), three_datasets(), tmp_path / "run").run()
    finally:
        torch.set_default_dtype(torch.float32)
    alone, both = (read_log(f / "run" / "log.jsonl") for f in (tmp_path, folder))
    for one, two in zip(alone, both, strict=True):
        assert one["losses"] == pytest.approx(two["losses"])
        assert one["grad_norm"] == pytest.approx(two["grad_norm"])
    for name in ("model", "ema", "optimizer"):
        one, two = (load_file(f / f"run/checkpoints/step-00000002/{name}.safetensors") for f in (tmp_path, folder))
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, rtol=1e-6, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
