"""An operation as PyTorch knows it, and the fast path of its eager calls.

Registered with `torch.library`, an operation can be compiled, exported and checked. But each call passes PyTorch's
dispatcher and Python code around it several times: some 100 us, 300 us where gradients are recorded. That is more than
many kernels take, and nothing of it is needed where nobody looks at the call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

_Checked = TypeVar("_Checked")
_Function = TypeVar("_Function", bound=Callable[..., Any])

try:  # none of them has a public name; with a PyTorch that lacks one every call runs the registered operation
    from torch._C import _are_functorch_transforms_active as _transformed
    from torch.autograd import _profiler_enabled as _profiled
    from torch.utils._python_dispatch import is_in_torch_dispatch_mode as _intercepted
except ImportError:

    def is_traced() -> bool:
        """True always, as nobody can tell."""
        return True
else:

    def is_traced() -> bool:
        """True if something has to see the operations: compilation, tracing, a dispatch mode, `torch.func`, the
        profiler."""
        return (
            torch.compiler.is_compiling() or _transformed() or _intercepted() or _profiled() or torch.jit.is_tracing()
        )


_PLAIN = (Tensor, Parameter)


def is_plain(tensors: Sequence[Tensor | None]) -> bool:
    """True if no tensor is of a subclass, which may want to see the operation, and none has its negative bit set.

    PyTorch resolves that bit before a registered operation; whoever reads the memory itself would miss it.
    """
    return all(x is None or (type(x) in _PLAIN and not x.is_neg()) for x in tensors)


def constant_in_graphs(function: _Function) -> _Function:
    """Decorator: compiled graphs take the function's value for constant.

    It sets the mark that `torch.compiler.assume_constant_result` sets. That function imports the compiler, which takes
    longer than all of the operations.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


class Operation:
    """The operation ``name``, whose value is ``function(*arguments)``.

    A call that `is_traced`, or has tensor subclasses, runs ``registered``, which `torch.library` made of the function.
    Others take the fast path: the function itself, under `recorded` if gradients are recorded. Without
    `register_autograd` recording is left to ``registered``, whose backward raises.

    Whoever calls the operation has checked the arguments. ``check(*arguments)`` checks them in ``registered`` too,
    which compiled graphs, exported ones and `torch.ops` call.
    """

    def __init__(self, name: str, function: Callable[..., Any], check: Callable[..., None] | None = None) -> None:
        self.registered = torch.library.custom_op(name, _checking(function, check), mutates_args=())
        self.function = function
        self._recorded: Callable[..., Any] | None = None

    def register_fake(self, fake: Callable[..., Any]) -> Callable[..., Any]:
        """As `torch.library.register_fake`."""
        return self.registered.register_fake(fake)

    def register_autograd(self, differentiate: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """As `torch.library.register_autograd`."""
        self.registered.register_autograd(differentiate, setup_context=setup_context)
        self._recorded = recorded(self.function, differentiate, setup_context)

    def __call__(self, *arguments: Any) -> Any:
        """The function's value."""
        if is_traced():
            return self.registered(*arguments)
        tensors, _ = _flat(arguments)
        return self.fast_path(is_plain(tensors), _records(tensors))(*arguments)

    def fast_path(self, plain: bool, recording: bool) -> Callable[..., Any]:
        """Function that runs a call which is not traced, by whether its tensors are plain and gradients recorded."""
        if not plain:
            return self.registered
        if recording:
            return self._recorded or self.registered
        return self.function


def operation(name: str, check: Callable[..., None] | None = None) -> Callable[[Callable[..., Any]], Operation]:
    """Decorator: the function as an `Operation`. Its annotations give the schema, as for `torch.library.custom_op`."""
    return lambda function: Operation(name, function, check)


def _checking(function: Callable[..., Any], check: Callable[..., None] | None) -> Callable[..., Any]:
    if check is None:
        return function

    @functools.wraps(function)
    def checked(*arguments: Any) -> Any:
        check(*arguments)
        return function(*arguments)

    return checked


def recorded(
    function: Callable[..., Any], differentiate: Callable[..., Any], setup_context: Callable[..., None]
) -> Callable[..., Any]:
    """The function, whose calls autograd records; the other arguments are as for `torch.library.register_autograd`.

    Its arguments are tensors, lists of tensors and other values. One call is one `torch.autograd.Function`.
    """

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, arguments: Sequence[Any], structure: Sequence[type | None], *_: Tensor) -> Any:
            found = function(*arguments)
            ctx.structure = structure
            setup_context(ctx, arguments, found)
            return found

        @staticmethod
        def backward(ctx: Any, *upstream: Any) -> tuple[Any, ...]:
            gradients: list[Tensor | None] = [None, None]
            for gradient, kind in zip(differentiate(ctx, *upstream), ctx.structure, strict=True):
                if kind is Tensor:
                    gradients.append(gradient)
                elif kind is list:
                    gradients += gradient
            return tuple(gradients)

    def record(*arguments: Any) -> Any:
        tensors, structure = _flat(arguments)
        return Recorded.apply(arguments, structure, *tensors)

    return record


class CallCache(Generic[_Checked]):
    """Checks, choice of backend and fast path of an operation's calls, by key: one look at each kind of call is enough.

    A key is all that checks and choice depend on (`key`). Kept are calls that the native CPU kernels take, ``MOST`` at
    most: where memory is cold, checks cost as much as small kernels take.
    """

    MOST = 256

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.known: dict[Hashable, tuple[_Checked, str, Callable[..., Any]]] = {}

    def __call__(
        self,
        tensors: Sequence[Tensor | None],
        constants: Hashable,
        check: Callable[[], tuple[_Checked, str]],
        keep: bool = True,
    ) -> tuple[_Checked, str, Callable[..., Any]]:
        """Findings of the checks, the backend, and the function that runs the call.

        Args:
            tensors: all tensors that the checks look at; some may be missing.
            constants: everything else that checks and choice depend on, among it the backend asked for.
            check: checks the call; returns what it found and the backend. It raises if something is wrong.
            keep: false if the checks read values of tensors, so that each call is looked at.
        """
        if is_traced():
            return *check(), self.operation
        recording = _records(tensors)
        seen = key(tensors, (recording, constants)) if keep else None
        known = self.known.get(seen) if keep else None
        if known is None:
            checked, backend = check()
            known = checked, backend, self.operation.fast_path(is_plain(tensors), recording)
            if keep and backend == "cpu" and len(self.known) < self.MOST:
                self.known[seen] = known
        return known


def key(tensors: Sequence[Tensor | None], constants: Hashable) -> Hashable:
    """Key of a call: class, shape, dtype, device, layout and negative bit of its tensors, and the ``constants``."""
    seen = [x if x is None else (type(x), x.shape, x.dtype, x.device, x.is_contiguous(), x.is_neg()) for x in tensors]
    return (constants, *seen)


def _records(tensors: Sequence[Tensor | None]) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _flat(arguments: Sequence[Any]) -> tuple[list[Tensor], list[type | None]]:
    """The tensors among the arguments, and of each argument whether it is a tensor, a list of them or neither."""
    tensors: list[Tensor] = []
    structure: list[type | None] = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            tensors.append(argument)
            structure.append(Tensor)
        elif isinstance(argument, (list, tuple)) and argument and isinstance(argument[0], Tensor):
            tensors += argument
            structure.append(list)
        else:
            structure.append(None)
    return tensors, structure
