"""What the operations and the network would launch on a GPU, and what each launch costs, on a machine without one.

They run on tensors without memory (PyTorch's ``meta`` device) and the kernels' launches are noted in place of being
started. Those of our kernels are priced by `tests.gpu.tools.gpu_cost` and `tests.gpu.tools.cuda_cost`. Every operation
of PyTorch between them is priced by the bytes of its inputs and outputs and, for convolutions and matrix products, by
PyTorch's own count of FLOP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ifan import ops
from ifan.bench import cases
from ifan.bench.problem import Case
from ifan.config import NetworkConfig
from ifan.network import IFAN
from ifan.ops import dispatch, gpu, native, use_backend
from tests.gpu.tools import cuda_cost, gpu_cost
from tests.gpu.tools.gpu_cost import NOTHING, Cost, cdiv, distinct
from tests.gpu.tools.launches import watched

OPS = ("encode_predictions", "channel_moments", "integrate", "dense_block", "transition_up", "hybrid_loss")


@dataclass(frozen=True, slots=True)
class Step:
    """One launch: the operation it belongs to, or PyTorch's name, and what it costs."""

    op: str
    work: Cost


def total(steps: Sequence[Step]) -> Cost:
    """The sum of the launches."""
    return sum((step.work for step in steps), NOTHING)


class Trace(TorchDispatchMode):
    """Collects what would be launched on a GPU; runs the bodies of our operations rather than their fakes."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.op = ""
        self.bodies = {}
        for name in OPS:
            module = import_module(f"ifan.ops.{name}")
            self.bodies[f"ifan::{name}"] = module._forward.registered._init_fn
            self.bodies[f"ifan::{name}_backward"] = module._backward.registered._init_fn

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.name().split(".")[0], kwargs or {}
        if name in self.bodies:
            before, self.op = self.op, name.removeprefix("ifan::").removesuffix("_backward")
            with self:
                found = self.bodies[name](*args, **kwargs)
            self.op = before
            return found
        with self:  # `to` and `contiguous` are a copy or nothing: their parts tell
            found = func.decompose(*args, **kwargs)
        if found is not NotImplemented:
            return found
        found = func(*args, **kwargs)
        work = cost_of_torch(func, args, kwargs, found)
        if work.launches:
            self.steps.append(Step(self.op or _kind(name), work))
        return found


def _kind(name: str) -> str:
    products = ("convolution", "mm", "addmm")
    return "PyTorch: convolutions, linear" if name.removeprefix("aten::") in products else "PyTorch: other"


FREE = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "_unsafe_view", "lift_fresh"}
OVERWRITES = {"fill_", "zero_", "copy_"}


def cost_of_torch(func: Any, args: Any, kwargs: Any, found: Any) -> Cost:
    """One launch that reads its inputs and writes its outputs; nothing for views and allocations."""
    name = func.name().removeprefix("aten::").split(".")[0]
    returns = func._schema.returns
    view = any(value.alias_info is not None and not value.alias_info.is_write for value in returns)
    if view or name in FREE:
        return NOTHING
    inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    outputs = [x for x in tree_leaves(found) if isinstance(x, Tensor)]
    read, written = distinct(*inputs[name in OVERWRITES :]), distinct(*outputs)
    count = flop_registry.get(func.overloadpacket)
    products = int(count(*args, **kwargs, out_val=found)) if count else 0
    return Cost(read, written, read, written, 0, products) if read + written else NOTHING


class CudaModule:
    """In place of ``ifan._cuda``: every call is noted, none runs."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    def integrate_tiles(self, height: int, width: int) -> int:
        """Blocks a plane."""
        return cdiv(height * width, cuda_cost.PIXELS_OF_A_BLOCK)

    def loss_blocks(self, batch: int, pixels: int) -> int:
        """Blocks of the loss."""
        return batch * cdiv(pixels, cuda_cost.THREADS)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *given: self.trace.steps.append(Step(self.trace.op, cuda_cost.cost(name, given)))


@contextmanager
def traced(family: str, backend: str) -> Iterator[list[Step]]:
    """Collect the launches of what runs inside on ``meta`` tensors, with the backend's kernels and family's tiles."""
    trace, refusals = Trace(), dict(dispatch._KERNELS)
    missing, module, address, autocast = gpu.cuda_missing, native.cuda_module, Tensor.data_ptr, torch.autocast
    dispatch._KERNELS.update(dict.fromkeys(refusals, (lambda *_: None, lambda *_: False)))
    gpu.cuda_missing, native.cuda_module = (lambda: None), (lambda: CudaModule(trace))  # type: ignore[assignment,return-value]
    Tensor.data_ptr = lambda _: 256  # type: ignore[assignment,method-assign]  # there is none; aligned, and not null
    torch.autocast = lambda *_, **__: nullcontext()  # type: ignore[assignment,misc]  # meta tensors know none
    try:
        with (
            use_backend(backend),
            watched(lambda launch: trace.steps.append(Step(trace.op, gpu_cost.cost(launch))), family=family),
            trace,
        ):
            yield trace.steps
    finally:
        dispatch._KERNELS.update(refusals)
        gpu.cuda_missing, native.cuda_module, Tensor.data_ptr = missing, module, address  # type: ignore[method-assign]
        torch.autocast = autocast  # type: ignore[misc]


def _network(batch: int) -> tuple[IFAN, Tensor]:
    """The paper's network at 128 px with weights in bfloat16, and images."""
    with torch.device("meta"):
        model = IFAN(NetworkConfig(size=128)).to(torch.bfloat16)
        return model, torch.empty(batch, 3, 128, 128, dtype=torch.uint8)


@lru_cache
def inference_steps(family: str, backend: str, batch: int, iterations: int) -> Sequence[Step]:
    """Inference of all tasks."""
    model, images = _network(batch)
    with torch.no_grad(), traced(family, backend) as steps:
        model.eval()(images, iterations=iterations)
    return tuple(steps)


@lru_cache
def training_steps(family: str, backend: str, batch: int) -> Sequence[Step]:
    """Forward and backward of a batch labelled for all tasks, three iterations; without the optimiser."""
    model, images = _network(batch)
    with torch.device("meta"):
        labels = torch.empty(batch, 128, 128, dtype=torch.uint8)
        points, weights, classes = torch.empty(batch, 2, 5), torch.empty(batch, 5), torch.zeros(batch, 1).long()
        shares = torch.ones(3)
    with traced(family, backend) as steps:
        found = model.train()(images)[-1]
        logits = torch.cat(list(found.class_logits.values()), 1)
        judged = ops.LossPredictions(found.parsing_logits, found.points, logits)
        options = ops.LossOptions(list(model.class_sizes), shares)
        ops.hybrid_loss(judged, ops.LossTargets(labels, points, weights, classes), options).total.backward()
    return tuple(steps)


@lru_cache
def operation_steps(family: str, case: Case, backend: str, dtype: torch.dtype) -> Sequence[Step]:
    """An operation as the benchmarks call it, its maps in ``dtype``."""
    made: cases.Operation = case.build.args[0]  # type: ignore[attr-defined]
    with torch.device("meta"):
        values = [x.detach().to("meta") for x in made.make()]
    kinds = [dtype if x.dim() == 4 and x.dtype == torch.float32 and x.shape[2] > 3 else x.dtype for x in values]
    values = [x.to(kind).requires_grad_(x.is_floating_point()) for x, kind in zip(values, kinds, strict=True)]
    with traced(family, backend) as steps:
        if not made.backward:
            with torch.no_grad():
                made.call(values, backend)
        else:
            outputs = [x for x in made.call(values, backend) if x.requires_grad]
            upstream = [torch.empty_like(x) for x in outputs]
            torch.autograd.grad(outputs, [x for x in values if x.requires_grad], upstream, allow_unused=True)
    return tuple(steps)
