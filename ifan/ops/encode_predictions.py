"""Predictions of all tasks drawn as planes, the network's second input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ifan import reference
from ifan.ops import checks, native
from ifan.ops.call import CallCache, operation
from ifan.ops.dispatch import choose, current_backend, register_kernel
from ifan.ops.gpu import kernels, triton_refusal
from ifan.ops.recompute import empty_gradients, gradients
from ifan.profiling import ranged

NAME = "encode_predictions"
MOST_RADIUS = 2**15
"""Pixels. Squares of such distances are exact enough in float32, and far from the largest number."""


@ranged(f"ifan.{NAME}")
def encode_predictions(
    parsing_logits: Tensor,
    points: Tensor,
    class_logits: Tensor,
    class_sizes: Sequence[int],
    radius: int = 5,
    *,
    backend: str | None = None,
) -> Tensor:
    """Draw parsing probabilities, point discs and constant class probabilities as one stack of planes.

    Args:
        parsing_logits: ``(B, K, S, S)``, floating point; K may be 0. Its dtype is that of the result.
        points: ``(B, 2, P)`` x and y in [-.5, .5] of the crop; P may be 0. Points outside draw the part that is inside.
        class_logits: ``(B, sum(class_sizes))`` logits of all classification tasks, one after another.
        class_sizes: number of classes of each classification task, at least 1; each is softmaxed apart.
        radius: of the discs, in pixels, at most `MOST_RADIUS`: pixel (i, j) is 1 where
            ``(j - cx)**2 + (i - cy)**2 < radius**2`` about the centre ``c = round_half_even((p + .5) * S)``.
        backend: see `ifan.ops.use_backend`.

    Returns:
        planes ``(B, K + P + sum(class_sizes), S, S)``. Differentiable in both logits; discs are constants.

    Raises:
        ValueError: a shape, dtype, device, class size or the radius is wrong.

    Source: encoders of predictions, iFAN (arXiv 1711.06055) and its release.
    """
    tensors, sizes = (parsing_logits, points, class_logits), list(class_sizes)

    def check() -> tuple[None, str]:
        _check(*tensors, sizes, radius)
        return None, choose(NAME, backend, *tensors)

    _, chosen, run = _CALLS(tensors, (*sizes, radius, backend or current_backend()), check)
    if chosen == "reference":
        return reference.encode_predictions(*tensors, sizes, radius)
    planes: Tensor = run(*tensors, sizes, radius, chosen)
    return planes


def _check(
    parsing_logits: Tensor, points: Tensor, class_logits: Tensor, class_sizes: Sequence[int], radius: int
) -> None:
    checks.dimensions(NAME, "parsing_logits", parsing_logits, "(B, K, S, S)")
    checks.dimensions(NAME, "points", points, "(B, 2, P)")
    batch, _, height, width = parsing_logits.shape
    checks.require(
        height == width, NAME, f"parsing_logits must be square (S, S); got {(height, width)}. Crop to a square first."
    )
    checks.shape(NAME, "points", points, (batch, 2, points.shape[2]), "(B, 2, P)")
    checks.dimensions(NAME, "class_logits", class_logits, "(B, sum(class_sizes))")
    checks.shape(NAME, "class_logits", class_logits, (batch, class_logits.shape[1]), "(B, sum(class_sizes))")
    checks.class_sizes(NAME, class_sizes, class_logits)
    checks.floating(
        NAME, parsing_logits.device, parsing_logits=parsing_logits, points=points, class_logits=class_logits
    )
    if not 0 <= radius <= MOST_RADIUS:
        checks.fail(NAME, f"radius must be in 0..{MOST_RADIUS} pixels; got {radius}. Use 5 for 128 px.")


register_kernel(NAME, "cpu", native.input_refusal)
register_kernel(NAME, "triton", triton_refusal)


def _check_call(*arguments: Any) -> None:
    *checked, backend = arguments
    _check(*checked)
    choose(NAME, backend, *checked[:3])


def _check_backward(gradient: Tensor, parsing_logits: Tensor, points: Tensor, class_logits: Tensor, *rest: Any) -> None:
    _check_call(parsing_logits, points, class_logits, *rest)
    batch, classes, size = parsing_logits.shape[:3]
    expected = (batch, classes + points.shape[2] + class_logits.shape[1], size, size)
    checks.shape(NAME, "gradient", gradient, expected, "that of the planes")
    checks.floating(NAME, parsing_logits.device, gradient=gradient)


@operation("ifan::encode_predictions", check=_check_call)
def _forward(
    parsing_logits: Tensor, points: Tensor, class_logits: Tensor, class_sizes: Sequence[int], radius: int, backend: str
) -> Tensor:
    if backend == "triton":
        planes: Tensor = kernels(backend, NAME).forward(parsing_logits, points, class_logits, class_sizes, radius)
        return planes
    if backend == "cpu":
        return _cpu_forward(parsing_logits, points, class_logits, class_sizes, radius)
    return reference.encode_predictions(parsing_logits, points, class_logits, class_sizes, radius).contiguous()


def _cpu_forward(
    parsing_logits: Tensor, points: Tensor, class_logits: Tensor, class_sizes: Sequence[int], radius: int
) -> Tensor:
    parsing, places, classes = (value.float().contiguous() for value in (parsing_logits, points, class_logits))
    batch, count, size = parsing.shape[:3]
    planes = parsing.new_empty((batch, count + places.shape[2] + classes.shape[1], size, size))
    native.cpu_module().encode_forward(
        parsing.data_ptr(),
        places.data_ptr(),
        classes.data_ptr(),
        class_sizes,
        parsing.shape,
        places.shape[2],
        radius,
        planes.data_ptr(),
        torch.get_num_threads(),
    )
    return planes.to(parsing_logits.dtype)


def _cpu_backward(
    gradient: Tensor, parsing_logits: Tensor, points: Tensor, class_logits: Tensor, class_sizes: Sequence[int]
) -> list[Tensor]:
    arriving, parsing, classes = (value.float().contiguous() for value in (gradient, parsing_logits, class_logits))
    found = [torch.empty_like(value) for value in (parsing, classes)]
    native.cpu_module().encode_backward(
        arriving.data_ptr(),
        parsing.data_ptr(),
        classes.data_ptr(),
        class_sizes,
        parsing.shape,
        points.shape[2],
        *[value.data_ptr() for value in found],
        torch.get_num_threads(),
    )
    return [found[0].to(parsing_logits.dtype), found[1].to(class_logits.dtype)]


@_forward.register_fake
def _(parsing_logits: Tensor, points: Tensor, class_logits: Tensor, *_: Any) -> Tensor:
    batch, classes, size = parsing_logits.shape[:3]
    return parsing_logits.new_empty((batch, classes + points.shape[2] + class_logits.shape[1], size, size))


_CALLS = CallCache[None](_forward)


@operation("ifan::encode_predictions_backward", check=_check_backward)
def _backward(
    gradient: Tensor,
    parsing_logits: Tensor,
    points: Tensor,
    class_logits: Tensor,
    class_sizes: Sequence[int],
    radius: int,
    backend: str,
) -> list[Tensor]:
    if backend == "triton":
        found: list[Tensor] = kernels(backend, NAME).backward(
            gradient, parsing_logits, points, class_logits, class_sizes
        )
        return found
    if backend == "cpu":
        return _cpu_backward(gradient, parsing_logits, points, class_logits, class_sizes)
    return gradients(
        lambda parsing, classes: [reference.encode_predictions(parsing, points, classes, class_sizes, radius)],
        [parsing_logits, class_logits],
        [gradient],
    )


@_backward.register_fake
def _(gradient: Tensor, parsing_logits: Tensor, points: Tensor, class_logits: Tensor, *_: Any) -> list[Tensor]:
    return empty_gradients([parsing_logits, class_logits])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.class_sizes, ctx.radius, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    parsing, classes = _backward(gradient, *ctx.saved_tensors, ctx.class_sizes, ctx.radius, ctx.backend)
    return parsing, None, classes, None, None, None


_forward.register_autograd(_differentiate, setup_context=_setup_context)
