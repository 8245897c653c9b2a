"""The masked multi-task loss: parsing, points and classifications of a batch that mixes datasets."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from ifan import reference
from ifan.ops import checks, native
from ifan.ops.dispatch import choose, current_backend, register_kernel
from ifan.ops.gpu import cuda_refusal, kernels, triton_refusal
from ifan.ops.operation import operation
from ifan.ops.recompute import empty_gradients, gradients
from ifan.ranges import ranged
from ifan.reference.hybrid_loss import IGNORED_PIXEL, UNLABELLED_CLASS, HybridLoss
from ifan.reference.lanes import accumulation_dtype

NAME = "hybrid_loss"
POINT_LOSSES = ("wing", "smooth_l1", "l2")
MOST_CALLS = 256
_NATIVE_CALLS: dict[Hashable, str] = {}
"""Kinds of call that were right and taken by the native kernel; at most `MOST_CALLS`."""

__all__ = ["HybridLoss", "hybrid_loss"]


@ranged(f"ifan.{NAME}")
def hybrid_loss(
    parsing_logits: Tensor,
    parsing_target: Tensor,
    points: Tensor,
    points_target: Tensor,
    points_weight: Tensor,
    class_logits: Tensor,
    class_targets: Tensor,
    class_sizes: Sequence[int],
    task_weights: Tensor,
    *,
    parsing_class_weights: Tensor | None = None,
    parsing_smoothing: float = 0.0,
    class_smoothing: float = 0.0,
    point_loss: str = "wing",
    wing_width: float = 0.1,
    wing_curvature: float = 0.02,
    denominators: Tensor | None = None,
    backend: str | None = None,
) -> HybridLoss:
    """Every task's loss over what is labelled, ``sum(weight * loss) / denominator``, and their weighted sum.

    The tasks are parsing (absent if K = 0), points (absent if P = 0) and n classifications, T in all, in that order.
    The row counts Bp, Bl and Bc are independent and may be 0. A task whose denominator is 0 has loss exactly 0 and
    gradient exactly 0.

    Args:
        parsing_logits: ``(Bp, K, h, w)``; upsampled bilinearly (``align_corners=False``) to the target's size.
        parsing_target: ``(Bp, H, W)`` uint8 class ids, 255 = ignored.
        points: ``(Bl, 2, P)`` predicted x and y in [-.5, .5].
        points_target: ``(Bl, 2, P)``; may be NaN where the weight is 0.
        points_weight: ``(Bl, P)`` weight of each point, at least 0; 0 = unlabelled.
        class_logits: ``(Bc, sum(class_sizes))`` of all classifications, one after another.
        class_targets: ``(Bc, n)`` int64 class ids, -1 = unlabelled.
        class_sizes: the n numbers of classes.
        task_weights: ``(T,)``.
        parsing_class_weights: ``(K,)``, the weight of a pixel by its class; default 1.
        parsing_smoothing, class_smoothing: share in [0, 1) of the cross-entropy against the uniform distribution.
        point_loss: of the distance d in each coordinate, summed over x and y: ``"wing"`` is ``w log(1 + d / c)`` below
            the width w and ``d - w + w log(1 + w / c)`` above; ``"smooth_l1"`` is ``d**2 / 2w`` below and
            ``d - w / 2`` above; ``"l2"`` is ``d**2``.
        wing_width: w, in crop sides; wing_curvature: c.
        denominators: ``(T,)``, the counts of the whole batch where it is spread over processes; default counts.
        backend: see `ifan.ops.use_backend`.

    Returns:
        ``HybridLoss(total (), losses (T,), counts (T,))``: counts are the sums of the labelled elements' weights.
        float32, or float64 if any prediction is; autocast changes nothing. Differentiable in parsing_logits, points,
        class_logits and task_weights, through total and through losses.

    Raises:
        ValueError: a shape, dtype, device or setting is wrong, or (on the CPU) a label is out of range.

    Source: hybrid training, iFAN (arXiv 1711.06055); wing loss, arXiv 1711.06753.
    """
    sizes = list(class_sizes)
    settings = [float(v) for v in (parsing_smoothing, class_smoothing, wing_width, wing_curvature)]
    predictions = [parsing_logits, points, class_logits, task_weights]
    targets = [parsing_target, points_target, points_weight, class_targets]
    constants = (targets, parsing_class_weights, denominators, sizes, settings, point_loss)
    if torch.compiler.is_compiling() or type(parsing_logits) is not Tensor:
        chosen = _checked(backend, predictions, *constants)
    else:  # looking once at a kind of call is enough, and every step makes the same one
        optional, told = (parsing_class_weights, denominators), (backend, current_backend(), point_loss)
        seen = checks.signature(*predictions, *targets, *optional, *sizes, *settings, *told)
        chosen = _NATIVE_CALLS.get(seen, "") or _checked(backend, predictions, *constants)
        if chosen == "cpu" and len(_NATIVE_CALLS) < MOST_CALLS:
            _NATIVE_CALLS[seen] = chosen
    if chosen != "cpu":  # whose kernel looks at every label anyway
        _check_labels(parsing_logits, parsing_target, class_targets, sizes)
    if chosen == "reference":
        return _reference(predictions, *constants)
    return HybridLoss(*_forward(predictions, *constants, chosen)[:3])


def _checked(
    backend: str | None,
    predictions: Sequence[Tensor],
    targets: Sequence[Tensor],
    parsing_class_weights: Tensor | None,
    denominators: Tensor | None,
    sizes: list[int],
    settings: Sequence[float],
    point_loss: str,
) -> str:
    """The backend that runs the call, if all is right with it but the labels, which are not looked at."""
    parsing_logits, points, class_logits, task_weights = predictions
    parsing_target, points_target, points_weight, class_targets = targets
    _check_predictions(parsing_logits, points, class_logits, sizes)
    _check_targets(parsing_logits, parsing_target, points, points_target, points_weight, class_targets, sizes)
    _check_weights(parsing_logits, points, sizes, task_weights, parsing_class_weights, denominators)
    _check_settings(point_loss, *settings)
    return choose(NAME, backend, *predictions[:3])


def _check_predictions(parsing_logits: Tensor, points: Tensor, class_logits: Tensor, sizes: list[int]) -> None:
    checks.dimensions(NAME, "parsing_logits", parsing_logits, "(Bp, K, h, w)")
    checks.dimensions(NAME, "points", points, "(Bl, 2, P)")
    checks.dimensions(NAME, "class_logits", class_logits, "(Bc, sum(class_sizes))")
    checks.shape(NAME, "points", points, (points.shape[0], 2, points.shape[2]), "(Bl, 2, P)")
    width = (class_logits.shape[0], sum(sizes))
    checks.shape(NAME, "class_logits", class_logits, width, "(Bc, sum(class_sizes))")
    values = {"parsing_logits": parsing_logits, "points": points, "class_logits": class_logits}
    checks.floating(NAME, parsing_logits.device, **values)


def _check_targets(
    parsing_logits: Tensor,
    parsing_target: Tensor,
    points: Tensor,
    points_target: Tensor,
    points_weight: Tensor,
    class_targets: Tensor,
    sizes: list[int],
) -> None:
    checks.dimensions(NAME, "parsing_target", parsing_target, "(Bp, H, W)")
    expected = (parsing_logits.shape[0], *parsing_target.shape[1:])
    checks.shape(NAME, "parsing_target", parsing_target, expected, "(Bp, H, W)")
    coarse, fine = parsing_logits.shape[2:], parsing_target.shape[1:]
    if coarse != fine and 0 in (*coarse, *fine):
        checks.fail(
            NAME,
            f"parsing_logits cannot be resized to parsing_target without pixels; got {tuple(coarse)} and "
            f"{tuple(fine)}. Drop the rows.",
        )
    checks.shape(NAME, "points_target", points_target, tuple(points.shape), "(Bl, 2, P)")
    checks.shape(NAME, "points_weight", points_weight, (points.shape[0], points.shape[2]), "(Bl, P)")
    checks.dimensions(NAME, "class_targets", class_targets, "(Bc, n)")
    checks.shape(NAME, "class_targets", class_targets, (class_targets.shape[0], len(sizes)), "(Bc, n)")
    checks.floating(NAME, points.device, points_target=points_target, points_weight=points_weight)
    checks.on_device(NAME, points.device, parsing_target=parsing_target, class_targets=class_targets)
    for name, tensor, dtype in (
        ("parsing_target", parsing_target, torch.uint8),
        ("class_targets", class_targets, torch.int64),
    ):
        if tensor.dtype != dtype:
            checks.fail(NAME, f"{name} must be {dtype}; got {tensor.dtype}. Convert it with .to().")


def _check_labels(parsing_logits: Tensor, parsing_target: Tensor, class_targets: Tensor, sizes: Sequence[int]) -> None:
    if parsing_logits.shape[1]:
        checks.index_range(NAME, "parsing_target", parsing_target, 0, parsing_logits.shape[1] - 1, IGNORED_PIXEL)
    for index, size in enumerate(sizes):
        labels = class_targets[:, index]
        checks.index_range(NAME, f"class_targets[:, {index}]", labels, 0, size - 1, UNLABELLED_CLASS)


def _check_weights(
    parsing_logits: Tensor,
    points: Tensor,
    sizes: list[int],
    task_weights: Tensor,
    parsing_class_weights: Tensor | None,
    denominators: Tensor | None,
) -> None:
    tasks = int(parsing_logits.shape[1] > 0) + int(points.shape[2] > 0) + len(sizes)
    checks.require(tasks > 0, NAME, "expected at least one task; got K = 0, P = 0, n = 0. Pass one task's predictions.")
    optional = {
        "task_weights": (task_weights, tasks, "(T,)"),
        "parsing_class_weights": (parsing_class_weights, parsing_logits.shape[1], "(K,)"),
        "denominators": (denominators, tasks, "(T,)"),
    }
    for name, (tensor, length, meaning) in optional.items():
        if tensor is not None:
            checks.shape(NAME, name, tensor, (length,), meaning)
            checks.floating(NAME, points.device, **{name: tensor})


def _check_settings(
    point_loss: str, parsing_smoothing: float, class_smoothing: float, wing_width: float, wing_curvature: float
) -> None:
    if point_loss not in POINT_LOSSES:
        checks.fail(NAME, f"point_loss must be one of {POINT_LOSSES}; got {point_loss!r}. Choose one.")
    for name, value in (("parsing_smoothing", parsing_smoothing), ("class_smoothing", class_smoothing)):
        if not 0 <= value < 1:
            checks.fail(NAME, f"{name} must be in [0, 1); got {value}. Use 0 for none.")
    for name, value in (("wing_width", wing_width), ("wing_curvature", wing_curvature)):
        if not value > 0:
            checks.fail(NAME, f"{name} must be positive; got {value}. Use 0.1 and 0.02 of a crop side.")


def _reference(
    predictions: Sequence[Tensor],
    targets: Sequence[Tensor],
    parsing_class_weights: Tensor | None,
    denominators: Tensor | None,
    class_sizes: Sequence[int],
    settings: Sequence[float],
    point_loss: str,
) -> HybridLoss:
    """The reference with the custom operation's arguments: what is differentiated, then the constants."""
    parsing_logits, points, class_logits, task_weights = predictions
    parsing_target, points_target, points_weight, class_targets = targets
    parsing_smoothing, class_smoothing, wing_width, wing_curvature = settings
    return reference.hybrid_loss(
        parsing_logits,
        parsing_target,
        points,
        points_target,
        points_weight,
        class_logits,
        class_targets,
        class_sizes,
        task_weights,
        parsing_class_weights=parsing_class_weights,
        parsing_smoothing=parsing_smoothing,
        class_smoothing=class_smoothing,
        point_loss=point_loss,
        wing_width=wing_width,
        wing_curvature=wing_curvature,
        denominators=denominators,
    )


register_kernel(NAME, "cpu", native.input_refusal)
register_kernel(NAME, "triton", triton_refusal)
register_kernel(NAME, "cuda", cuda_refusal)


@operation("ifan::hybrid_loss")
def _forward(
    predictions: Sequence[Tensor],
    targets: Sequence[Tensor],
    parsing_class_weights: Tensor | None,
    denominators: Tensor | None,
    class_sizes: Sequence[int],
    settings: Sequence[float],
    point_loss: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Total, losses, counts, and what backward needs of a backend that makes its gradients here."""
    constants = (targets, parsing_class_weights, denominators, class_sizes, settings, point_loss)
    if backend in ("triton", "cuda"):
        made: tuple[Tensor, Tensor, Tensor, list[Tensor]] = kernels(backend, NAME).forward(predictions, *constants)
        return made
    if backend == "cpu":
        return _cpu_forward(predictions, *constants)
    found = _reference(predictions, *constants)
    return found.total, found.losses, found.counts, []


def _cpu_forward(
    predictions: Sequence[Tensor],
    targets: Sequence[Tensor],
    class_weights: Tensor | None,
    denominators: Tensor | None,
    class_sizes: Sequence[int],
    settings: Sequence[float],
    point_loss: str,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    parsing, points, classes, task_weights = (value.float().contiguous() for value in predictions)
    labels, class_targets = targets[0].contiguous(), targets[3].contiguous()
    points_target, points_weight = (value.float().contiguous() for value in targets[1:3])
    optional = [None if value is None else value.float().contiguous() for value in (class_weights, denominators)]
    weights_at, denominators_at = (0 if value is None else value.data_ptr() for value in optional)
    made = [torch.empty_like(value) for value in (parsing, points, classes)]
    total = task_weights.new_empty(())
    losses, counts, divisors = (torch.empty_like(task_weights) for _ in range(3))
    right = native.cpu_module().hybrid_loss(
        (parsing.data_ptr(), labels.data_ptr(), weights_at, made[0].data_ptr()),
        parsing.shape,
        labels.shape[1:],
        (points.data_ptr(), points_target.data_ptr(), points_weight.data_ptr(), made[1].data_ptr()),
        points.shape[::2],
        (classes.data_ptr(), class_targets.data_ptr(), made[2].data_ptr()),
        classes.shape[0],
        class_sizes,
        settings,
        point_loss,
        (task_weights.data_ptr(), denominators_at),
        [value.data_ptr() for value in (total, losses, counts, divisors)],
        torch.get_num_threads(),
    )
    if not right:
        _check_labels(predictions[0], labels, class_targets, class_sizes)
    return total, losses, counts, [divisors, *made]


def _cpu_backward(
    upstream: Sequence[Tensor | None],
    losses: Tensor,
    made: Sequence[Tensor],
    predictions: Sequence[Tensor],
    class_sizes: Sequence[int],
    in_place: bool = False,
) -> list[Tensor]:
    """What forward made are the gradients of each task's sum; ``in_place`` turns them into those of the predictions."""
    arriving = [None if value is None else value.float().contiguous() for value in upstream]
    task_weights, (divisors, *sums) = predictions[3].float().contiguous(), made
    found = [*(value if in_place else torch.empty_like(value) for value in sums), torch.empty_like(losses)]
    parsing, points, classes = (
        (source.data_ptr(), target.data_ptr(), source.numel()) for source, target in zip(sums, found[:3], strict=True)
    )
    native.cpu_module().hybrid_loss_backward(
        [0 if value is None else value.data_ptr() for value in arriving],
        (task_weights.data_ptr(), losses.data_ptr(), divisors.data_ptr()),
        parsing,
        sums[0].shape[1] > 0,
        points,
        sums[1].shape[2] > 0,
        (*classes[:2], sums[2].shape[0]),
        class_sizes,
        found[3].data_ptr(),
        torch.get_num_threads(),
    )
    return native.in_dtypes_of(predictions, found)


@_forward.register_fake
def _(predictions: Sequence[Tensor], *rest: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    weights = predictions[3]
    dtype = accumulation_dtype(*[tensor.dtype for tensor in predictions[:3]])
    empty = [weights.new_empty(shape, dtype=dtype) for shape in ((), weights.shape, weights.shape)]
    gradients_of = [value.float() for value in predictions[:3]] if rest[-1] == "cpu" else predictions[:3]
    made = [] if rest[-1] == "reference" else [torch.empty_like(empty[1]), *empty_gradients(gradients_of)]
    return empty[0], empty[1], empty[2], made


@operation("ifan::hybrid_loss_backward")
def _backward(
    upstream: Sequence[Tensor],
    losses: Tensor,
    made: Sequence[Tensor],
    predictions: Sequence[Tensor],
    targets: Sequence[Tensor],
    parsing_class_weights: Tensor | None,
    denominators: Tensor | None,
    class_sizes: Sequence[int],
    settings: Sequence[float],
    point_loss: str,
    backend: str,
) -> list[Tensor]:
    if backend in ("triton", "cuda"):
        found: list[Tensor] = kernels(backend, NAME).backward(upstream, predictions, losses, made, class_sizes)
        return found
    if backend == "cpu":
        return _cpu_backward(upstream, losses, made, predictions, class_sizes)

    def run(*values: Tensor) -> tuple[Tensor, Tensor]:
        constants = (targets, parsing_class_weights, denominators, class_sizes, settings, point_loss)
        found = _reference(values, *constants)
        return found.total, found.losses

    return gradients(run, predictions, upstream)


@_backward.register_fake
def _(
    upstream: Sequence[Tensor], losses: Tensor, made: Sequence[Tensor], predictions: Sequence[Tensor], *_: Any
) -> list[Tensor]:
    return empty_gradients(predictions)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    predictions, targets, parsing_class_weights, denominators, *ctx.settings = inputs
    ctx.set_materialize_grads(False)  # what forward made is as large as the logits and receives no gradient
    ctx.in_place = ctx.settings[-1] == "cpu" and getattr(ctx, "direct", False)
    ctx.made, made = (output[3], []) if ctx.in_place else (None, output[3])
    ctx.save_for_backward(*predictions, *targets, parsing_class_weights, denominators, output[1], *made)


def _differentiate(ctx: Any, total: Tensor | None, losses: Tensor | None, *_: Any) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    predictions, targets, constants, made = list(saved[:4]), list(saved[4:8]), saved[8:10], list(saved[11:])
    if ctx.in_place:  # the first backward gets what forward made to change it, a later one makes it again
        made, ctx.made = ctx.made or _cpu_forward(predictions, targets, *constants, *ctx.settings[:-1])[3], None
    if ctx.in_place and not torch.is_grad_enabled():
        found = _cpu_backward([total, losses], saved[10], made, predictions, ctx.settings[0], in_place=True)
    else:
        arriving = [
            saved[10].new_zeros(()) if total is None else total,
            torch.zeros_like(saved[10]) if losses is None else losses,
        ]
        found = _backward(arriving, saved[10], made, predictions, targets, *constants, *ctx.settings)
    no_sizes: list[None] | None = (
        None if ctx.settings[0] else []
    )  # an empty list is a structure to autograd, a filled one a value
    return (found, [None] * 4, None, None, no_sizes, *[None] * 3)


_forward.register_autograd(_differentiate, setup_context=_setup_context)
