"""An operation as PyTorch knows it, and the short way to it in eager mode.

Registered with `torch.library`, an operation can be compiled, exported and checked, but each call passes PyTorch's
dispatcher and Python code around it several times: some 100 us, 300 us where gradients are recorded, which is more than
many kernels take. Nothing of that is needed where nobody looks at the call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

try:  # none of them has a public name; with a PyTorch that lacks one every call runs the registered operation
    from torch._C import _are_functorch_transforms_active as _transformed
    from torch.autograd import _profiler_enabled as _profiled
    from torch.utils._python_dispatch import is_in_torch_dispatch_mode as _intercepted
except ImportError:

    def is_watched() -> bool:
        """Always, as nobody can tell."""
        return True
else:

    def is_watched() -> bool:
        """Whether something has to see the operations: tracing, a dispatch mode, `torch.func`, the profiler."""
        return _transformed() or _intercepted() or _profiled() or torch.jit.is_tracing()


_PLAIN = (Tensor, Parameter)


def is_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether none is of a subclass, which may want to see the operation."""
    return all(type(x) in _PLAIN for x in tensors)


def is_plain_eager(tensors: Sequence[Tensor]) -> bool:
    """Whether nothing has to see an operation on these tensors."""
    return not torch.compiler.is_compiling() and not is_watched() and is_plain(tensors)


class Operation:
    """The operation ``name``, whose value is ``function(*arguments)``.

    A call runs ``registered``, what `torch.library` made of it, where something has to see it: compilation, tracing,
    tensor subclasses, dispatch modes, `torch.func`, the profiler. In plain eager mode it runs the function itself,
    under a `torch.autograd.Function`, if gradients are recorded. Without
    `register_autograd` recording is left to ``registered``, whose backward raises.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.registered = torch.library.custom_op(name, function, mutates_args=())
        self._function = function
        self._recorded: type[torch.autograd.Function] | None = None

    def register_fake(self, fake: Callable[..., Any]) -> Callable[..., Any]:
        """As `torch.library.register_fake`."""
        return self.registered.register_fake(fake)

    def register_autograd(self, differentiate: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """As `torch.library.register_autograd`."""
        self.registered.register_autograd(differentiate, setup_context=setup_context)
        self._recorded = _recorded(self._function, differentiate, setup_context)

    def __call__(self, *arguments: Any) -> Any:
        """The function's value."""
        if torch.compiler.is_compiling() or is_watched():
            return self.registered(*arguments)
        tensors, _ = _flat(arguments)
        recording = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
        return self.way(is_plain(tensors), recording)(*arguments)

    def way(self, plain: bool, recording: bool) -> Callable[..., Any]:
        """What runs a call that nothing watches: with tensors that `is_plain`, and ``recording`` gradients."""
        if not plain or (recording and self._recorded is None):
            return self.registered
        return self._record if recording else self._function

    def _record(self, *arguments: Any) -> Any:
        tensors, kinds = _flat(arguments)
        assert self._recorded is not None
        return self._recorded.apply(arguments, kinds, *tensors)


def operation(name: str) -> Callable[[Callable[..., Any]], Operation]:
    """Decorator: the function as an `Operation`. Its annotations give the schema, as for `torch.library.custom_op`."""
    return lambda function: Operation(name, function)


def _flat(arguments: Sequence[Any]) -> tuple[list[Tensor], list[type | None]]:
    """The tensors among the arguments, and of each argument whether it is a tensor, a list of them or neither."""
    tensors: list[Tensor] = []
    kinds: list[type | None] = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            tensors.append(argument)
            kinds.append(Tensor)
        elif isinstance(argument, (list, tuple)) and argument and isinstance(argument[0], Tensor):
            tensors += argument
            kinds.append(list)
        else:
            kinds.append(None)
    return tensors, kinds


def _recorded(
    function: Callable[..., Any], differentiate: Callable[..., Any], setup_context: Callable[..., None]
) -> type[torch.autograd.Function]:
    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, arguments: Sequence[Any], kinds: Sequence[type | None], *_: Tensor) -> Any:
            found = function(*arguments)
            ctx.kinds = kinds
            setup_context(ctx, arguments, found)
            return found

        @staticmethod
        def backward(ctx: Any, *upstream: Any) -> tuple[Any, ...]:
            gradients: list[Tensor | None] = [None, None]
            for gradient, kind in zip(differentiate(ctx, *upstream), ctx.kinds, strict=True):
                if kind is Tensor:
                    gradients.append(gradient)
                elif kind is list:
                    gradients += gradient
            return tuple(gradients)

    return Recorded
