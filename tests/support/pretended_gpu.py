"""A GPU that is not there: its graphs replayed on the CPU, and what these may hold: no wait, no copy to or from the
host, no shape that depends on data. Needs nothing but PyTorch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ifan.cuda_graph import tensors
from ifan.network import Predictions

WAITS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "_unique2", "unique_dim", "equal")
COPIES = (torch.tensor, torch.as_tensor, torch.from_numpy, torch.asarray, Tensor.new_tensor, Tensor.numpy)


class FakeDevice:
    """Streams and graphs of a GPU on the CPU: a replay runs the recorded work again, into the same results."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.recorded: list[Predictions] = []
        self.busy = threading.Lock()

    def aside(self, work: Callable[[], Predictions], *given: Tensor) -> Predictions:
        assert self.busy.acquire(blocking=False), "two callers at once"
        try:
            return work()
        finally:
            self.busy.release()

    def capture(self, work: Callable[[], Predictions]) -> tuple[Predictions, Callable[[], None]]:
        self.log.append("capture")
        held = work()
        self.recorded.append(held)

        def replay() -> None:
            self.log.append("replay")
            for target, value in zip(tensors(held), tensors(work()), strict=True):
                target.copy_(value)

        return held, replay


class NothingWaits(TorchDispatchMode):
    """Raises on what waits or moves; ``names`` are those of all that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        assert name not in WAITS, f"{name} waits for the GPU"
        found = function(*args, **(kwargs or {}))
        devices = {x.device.type for x in tree_leaves((args, kwargs, found)) if isinstance(x, Tensor)}
        assert len(devices) <= 1, f"{name} moves data between {devices}"
        self.names.add(name)
        return found


class NothingIsCopied(TorchFunctionMode):
    """Raises where Python numbers become a tensor, which on a GPU is a copy from the host."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function not in COPIES, f"{function.__name__} moves data from the host"
        if function in (Tensor.__getitem__, Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            assert not any(isinstance(part, list) for part in index), "a list as index moves data from the host"
        return function(*args, **(kwargs or {}))


@contextmanager
def pretended_gpu() -> Iterator[NothingWaits]:
    """New tensors have no data and lie on the device ``meta``; whatever would wait for a GPU in its place raises."""
    with NothingIsCopied(), torch.device("meta"), NothingWaits() as mode:
        yield mode
