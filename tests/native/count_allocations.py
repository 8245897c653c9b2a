"""Run under allocations.c: prints what calls of an inference engine take from glibc's allocator, as JSON."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from typing import Any

import torch

from ifan.config import NetworkConfig
from ifan.engine.engine import Engine
from ifan.engine.recorder import PlanKey
from ifan.network import IFAN
from ifan.ops.native import cpu_module, kernels_in_use

SIZE = 32


def count(run: Callable[[], Any], repeat: int = 3) -> dict[str, int]:
    """Calls and bytes of large blocks of the last of some runs."""
    library = ctypes.CDLL(None)
    read = library.allocation_calls, library.allocation_large_bytes
    for function in read:
        function.restype = ctypes.c_size_t
    for _ in range(repeat):
        before = [function() for function in read]
        run()
        after = [function() for function in read]
    return {"calls": after[0] - before[0], "large_bytes": after[1] - before[1]}


def main() -> None:
    """One engine, two batches at one thread: the plan alone, a plan of no steps, and a whole call."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    engine = Engine.from_network(IFAN(NetworkConfig(size=SIZE)).eval(), iterations=2)
    nothing = cpu_module().Plan()
    found: dict[str, dict[str, int]] = {"no steps": count(lambda: cpu_module().run_plans([nothing], 1))}
    for faces in (1, 3):
        images = torch.randint(0, 256, (faces, 3, SIZE, SIZE), dtype=torch.uint8).numpy()
        out = engine(images)
        outputs = [out.parsing_logits, out.points, *out.class_logits.values()]
        large = sum(value.nbytes for value in outputs if value.nbytes >= 1024)
        (plan,) = engine._plans[PlanKey(faces, False, kernels_in_use())]
        found[f"plan {faces}"] = count(lambda p=plan: cpu_module().run_plans([p.plan], 1))
        found[f"call {faces}"] = count(lambda x=images: engine(x))
        found[f"outputs {faces}"] = {"large_bytes": large}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
