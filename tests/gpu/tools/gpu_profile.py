"""Runs one operation's GPU kernels a few times, forward and backward, for a profiler to watch.

    nsys profile python -m tests.gpu.tools.gpu_profile integrate        docs/profiling.md has the command of each kernel

The shapes are those of the network (`tests.gpu.tools.gpu_compile.operations`) at full size, larger than the caches of
a GPU; the values are whatever lies in memory, so no result means anything.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from ifan.profiling import named_ranges, span
from tests.gpu.tools.gpu_compile import CASES, CUDA, operations

OPERATIONS = tuple(operations(*CASES["bf16"]))
NO_GPU = "gpu_profile: expected a machine with a GPU; torch.cuda.is_available() is False. Run it where there is one."


def options() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(prog="gpu_profile", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("op", choices=OPERATIONS)
    parser.add_argument("--backend", choices=("triton", "cuda"), default="triton")
    parser.add_argument("--case", choices=CASES, default="bf16", help="dtype and layout")
    parser.add_argument("--size", type=int, default=128, help="side of the maps in pixels")
    parser.add_argument("--batch", type=int, default=16, help="three lanes each")
    parser.add_argument("--repeats", type=int, default=3)
    return parser


def main(arguments: Sequence[str] | None = None, device: str = "cuda") -> None:
    """Run it; exit 1 with one line where there is no GPU or no such kernel."""
    given = options().parse_args(arguments)
    if given.backend == "cuda" and given.op.split(",")[0] not in CUDA:
        raise SystemExit(f"gpu_profile: backend cuda has {', '.join(CUDA)}; got {given.op}. Use --backend triton.")
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(NO_GPU)
    dtype, _, layout = CASES[given.case]
    with torch.device(device), named_ranges():
        call = operations(dtype, given.size, layout, given.batch, given.backend)[given.op]
        for _ in range(given.repeats):
            with span(given.op):
                call()
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
