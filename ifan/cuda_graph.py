"""The feedback loop on a GPU as one CUDA graph a batch size: the host starts all iterations by one call.

**Has not run on a GPU yet**: what is recorded, when, and what the buffers hold is tested on a CPU with `CudaDevice`
replaced; `make gpu-check` tests the rest where there is a GPU.

The network itself is recorded, so what it shares between tasks and iterations is shared here too. Weights are read
where they lie: values copied into them later count; after training or moving the network it needs a new runner.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ifan.network import IFAN, Lanes, Predictions
from ifan.ops.dispatch import current_backend

BUCKETS = (1, 2, 4, 8, 16, 32, 64)
"""Batch sizes that have a graph; others are filled up to the next, or cut into the largest."""

WARM_UPS = 2
"""Runs before recording: the first compiles kernels, loads libraries and allocates, which no recording may hold."""

_Key = tuple[int, int, str, bool]
"""Batch size, iterations, backend of the operations, whether they begin with given planes."""


class Device(Protocol):
    """Part of a GPU that `GraphRunner` needs."""

    def aside(self, work: Callable[[], Predictions], *given: Tensor) -> Predictions:
        """``work()``, which reads ``given``, after all that the caller has started and before what it starts next."""
        ...

    def capture(self, work: Callable[[], Predictions]) -> tuple[Predictions, Callable[[], object]]:
        """Record ``work()``: where its results will lie, and what fills them in anew."""
        ...


class CudaDevice:
    """`Device` by torch.cuda: one stream, on which graphs are recorded and replayed, and one pool for their memory.

    Replays follow one another on that stream and results are copied out before the next, so graphs may share memory.
    """

    _recording = threading.Lock()  # PyTorch allows one recording at a time in a process

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def aside(self, work: Callable[[], Predictions], *given: Tensor) -> Predictions:
        """See `Device`: the two streams wait for one another by events, the host for neither."""
        caller = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(caller)
        with torch.cuda.stream(self.stream):
            found = work()
        caller.wait_stream(self.stream)
        for tensor in given:
            tensor.record_stream(self.stream)
        for tensor in tensors(found):
            tensor.record_stream(caller)
        return found

    def capture(self, work: Callable[[], Predictions]) -> tuple[Predictions, Callable[[], object]]:
        """See `Device`. Other threads may go on allocating memory meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with self._recording, torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
            found = work()
        return found, graph.replay


@dataclass(frozen=True)
class _Graph:
    """The buffers of one recording: ``given`` (images, and planes if there are any) to fill, then ``replay``, then
    ``found`` to read."""

    given: tuple[Tensor, ...]
    found: Predictions
    replay: Callable[[], object]


class GraphRunner:
    """A network on a GPU whose whole feedback loop is replayed from CUDA graphs.

    Args:
        network: in evaluation mode, on the GPU.
        iterations: feedback iterations; ``None`` = as the configuration says.
        tasks: what the last iteration predicts; ``None`` = all. Earlier iterations always predict everything.
        device: stands between this and torch.cuda; ``None`` = the network's GPU.
        most_graphs: so many recordings are kept, those used last.

    May be called from several threads at once. Where a recording fails, a warning says why and the network runs without
    one from then on. Raises ``ValueError`` for an unknown task or fewer than one iteration.
    """

    def __init__(
        self,
        network: IFAN,
        iterations: int | None = None,
        tasks: Sequence[str] | None = None,
        *,
        device: Device | None = None,
        most_graphs: int = len(BUCKETS),
    ) -> None:
        self.network, self.config, self.most_graphs = network, network.config, most_graphs
        self.iterations = self.config.iterations_per_crop if iterations is None else iterations
        if self.iterations < 1:
            raise ValueError(f"iterations: expected at least 1; got {self.iterations}")
        names = [t.name for t in self.config.tasks] if tasks is None else list(tasks)
        self.tasks = [self.config.task(name).name for name in names]
        self.device = device or CudaDevice(network.stem.weight.device)
        self.failed = False
        self._graphs: OrderedDict[_Key, _Graph] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, images: Tensor, iterations: int | None = None) -> Predictions:
        """The last iteration's predictions for ``images (N, 3, I, I)`` uint8 RGB on the network's device, a row a
        sample; ``iterations`` if not the runner's. Autocast changes nothing."""
        return self._checked(self.iterations if iterations is None else iterations, images)

    def iterate(self, images: Tensor, planes: Tensor) -> Predictions:
        """One iteration from ``planes (N, K + P + sum of C, S, S)``."""
        return self._checked(1, images, planes)

    @torch.inference_mode()
    def _checked(self, passes: int, *given: Tensor) -> Predictions:
        images = given[0]
        size, where = self.config.image_size, self.network.stem.weight.device
        if images.dtype != torch.uint8 or images.shape[1:] != (3, size, size) or images.device != where:
            raise ValueError(
                f"images: expected (N, 3, {size}, {size}) uint8 on {where}; got {tuple(images.shape)} {images.dtype} "
                f"on {images.device}. Crop to that size and move them."
            )
        if self.failed or not images.shape[0]:
            return self._network(passes, *given)
        return joined([self._run(passes, *part) for part in zip(*(x.split(BUCKETS[-1]) for x in given), strict=True)])

    def _run(self, passes: int, *given: Tensor) -> Predictions:
        images = given[0]
        bucket = next(size for size in BUCKETS if size >= images.shape[0])
        key = (bucket, passes, current_backend(), len(given) > 1)

        def work() -> Predictions:
            graph = self._graph(key)
            for buffer, value in zip(graph.given, given, strict=True):
                buffer[: images.shape[0]].copy_(value)  # the rest are faces of earlier calls: nobody reads them
            graph.replay()
            return _first(graph.found, images.shape[0])

        with self._lock:  # until the copies are on the stream, the buffers are this call's
            try:
                return self.device.aside(work, *given)
            except RuntimeError as error:
                if key in self._graphs:
                    raise
                self.failed = True
                reason = " ".join(str(error).split())[:300]
        warnings.warn(f"no CUDA graph could be recorded, inference is slower: {reason}", RuntimeWarning, stacklevel=6)
        return self._network(passes, *given)

    def _graph(self, key: _Key) -> _Graph:
        """The recording for that key, made if there is none yet."""
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key]
        bucket, passes, _, from_planes = key
        size, weight = self.config.image_size, self.network.stem.weight
        given = [torch.zeros(bucket, 3, size, size, dtype=torch.uint8, device=weight.device)]
        if from_planes:
            given.append(weight.new_zeros(bucket, *self.network.first_planes().shape[1:]))
        for _ in range(WARM_UPS):
            self._network(passes, *given)
        found, replay = self.device.capture(lambda: self._network(passes, *given))
        self._graphs[key] = _Graph(tuple(given), found, replay)
        while len(self._graphs) > self.most_graphs:  # after recording, which waited for the replays of those that go
            self._graphs.popitem(last=False)
        return self._graphs[key]

    def _network(self, passes: int, images: Tensor, planes: Tensor | None = None) -> Predictions:
        lanes = Lanes.for_tasks(images.shape[0], self.config, self.tasks, images.device)
        with torch.autocast(
            images.device.type, enabled=False
        ):  # its cache of cast weights must not outlive a recording
            return self.network(images, lanes, passes, planes=planes)[-1]


def tensors(predictions: Predictions) -> list[Tensor]:
    """All tensors of some predictions."""
    found = predictions
    return [found.parsing_logits, found.points, *found.class_logits.values(), *found.rows.values()]


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Predictions of slices of a batch as those of the batch."""
    if len(parts) == 1:
        return parts[0]
    first, rows, start = parts[0], defaultdict(list), 0
    for part in parts:
        for name, row in part.rows.items():
            rows[name].append(row + start)
        start += max((row.shape[0] for row in part.rows.values()), default=0)
    return Predictions(
        torch.cat([p.parsing_logits for p in parts]),
        torch.cat([p.points for p in parts]),
        {name: torch.cat([p.class_logits[name] for p in parts]) for name in first.class_logits},
        {name: torch.cat(row) for name, row in rows.items()},
    )


def _first(found: Predictions, count: int) -> Predictions:
    """Copies of the first ``count`` samples' rows."""
    classes = {name: logits[:count].clone() for name, logits in found.class_logits.items()}
    rows = {name: row[:count].clone() for name, row in found.rows.items()}
    return Predictions(found.parsing_logits[:count].clone(), found.points[:count].clone(), classes, rows)


def in_bfloat16(network: IFAN) -> IFAN:
    """A copy whose convolutions hold their weights in bfloat16, and so read and write bfloat16.

    Normalisation, its statistics, the label means and the dense heads stay float32: points need more than eight bits.
    """
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.to(torch.bfloat16)
    return network
