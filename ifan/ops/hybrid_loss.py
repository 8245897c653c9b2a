"""The masked multi-task loss: parsing, points and classifications of a batch that mixes datasets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ifan import reference
from ifan.ops import native
from ifan.ops.call import CallCache, is_plain, is_traced, operation
from ifan.ops.dispatch import choose, current_backend, register_kernel
from ifan.ops.gpu import cuda_refusal, kernels, triton_refusal
from ifan.ops.hybrid_loss_checks import NAME, check_all_but_labels, check_labels, check_made
from ifan.ops.hybrid_loss_native import NativeLoss
from ifan.ops.recompute import empty_gradients, gradients
from ifan.profiling import ranged
from ifan.reference.hybrid_loss import HybridLoss, LossOptions, LossPredictions, LossTargets
from ifan.reference.lanes import accumulation_dtype

__all__ = ["HybridLoss", "LossOptions", "LossPredictions", "LossTargets", "hybrid_loss"]


@ranged(f"ifan.{NAME}")
def hybrid_loss(
    predictions: LossPredictions, targets: LossTargets, options: LossOptions, *, backend: str | None = None
) -> HybridLoss:
    """Every task's loss over what is labelled, ``sum(weight * loss) / denominator``, and their weighted sum.

    The tasks are parsing (absent if K = 0), points (absent if P = 0) and n classifications, T in all, in that order.
    A task whose denominator is 0 has loss exactly 0 and gradient exactly 0.

    Args:
        predictions: `LossPredictions`: parsing logits ``(Bp, K, h, w)``, points ``(Bl, 2, P)`` in crop sides, class
            logits ``(Bc, sum of class_sizes)``.
        targets: `LossTargets`: their labels. Pixels may be ignored, points and classes unlabelled.
        options: `LossOptions`: class sizes, task weights ``(T,)``, smoothings, the loss of points, denominators.
        backend: see `ifan.ops.use_backend`.

    Returns:
        ``HybridLoss(total (), losses (T,), counts (T,))``: counts are the sums of the labelled elements' weights.
        float32, or float64 if any prediction is; autocast changes nothing. Differentiable in the predictions and in
        the task weights, through total and through losses.

    Raises:
        ValueError: a shape, dtype, device or setting is wrong, or (on the CPU) a label is out of range.

    Source: hybrid training, iFAN (arXiv 1711.06055); wing loss, arXiv 1711.06753.
    """
    values = (predictions.parsing_logits, predictions.points, predictions.class_logits, options.task_weights)
    labels = (targets.parsing, targets.points, targets.points_weight, targets.classes)
    fixed = (*labels, options.parsing_class_weights, options.denominators)
    settings = (options.parsing_smoothing, options.class_smoothing, options.wing_width, options.wing_curvature)
    rest = (options.class_sizes, settings, options.point_loss)

    def check() -> tuple[NativeLoss | None, str]:
        check_all_but_labels(values, fixed, *rest)
        chosen = choose(NAME, backend, *values[:3])
        fast = chosen == "cpu" and not is_traced() and is_plain((*values, *fixed))
        return NativeLoss(values, fixed, *rest) if fast else None, chosen

    constants = (*options.class_sizes, *settings, options.point_loss, backend or current_backend())
    loss, chosen, run = _CALLS((*values, *fixed), constants, check)
    if loss is not None:
        return HybridLoss(*_by_kernel(loss, values, fixed))
    if chosen != "cpu":  # whose kernel looks at every label anyway
        check_labels(values[0], labels[0], labels[3], options.class_sizes)
    if chosen == "reference":
        return reference.hybrid_loss(predictions, targets, options)
    numbers = [float(value) for value in settings]
    return HybridLoss(*run(list(values), _all_tensors(values, fixed), list(rest[0]), numbers, rest[2], chosen)[:3])


def _by_kernel(
    loss: NativeLoss, predictions: Sequence[Tensor], targets: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor, Tensor]:
    """Total, losses and counts, under one `torch.autograd.Function` of four tensors if gradients are recorded."""
    if not loss.readable:  # recorded, so that a gradient comes back in its prediction's dtype
        predictions, targets = loss.converted(predictions, targets)
    if torch.is_grad_enabled() and any(value.requires_grad for value in predictions):
        recorded: tuple[Tensor, Tensor, Tensor] = _Recorded.apply(loss, targets, *predictions)
        return recorded
    return loss.forward(predictions, targets)[:3]


class _Recorded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: NativeLoss, targets: Sequence[Tensor | None], *predictions: Tensor) -> Any:
        *found, ctx.made = loss.forward(predictions, targets)
        ctx.loss = loss
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(found[1], *predictions, *targets)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, total: Tensor | None, of_losses: Tensor | None, _: Any) -> tuple[Any, ...]:
        made, ctx.made = ctx.made, None  # the first backward may change it, a later one makes it again
        if made is not None and not (torch.is_grad_enabled() or ctx.needs_input_grad[5]):
            ctx.loss.backward(total, of_losses, None, made, made[1:])
            return None, None, made[1], made[2], made[3], None
        losses, *saved = ctx.saved_tensors
        predictions, targets, loss = saved[:4], saved[4:], ctx.loss
        made = made or loss.forward(predictions, targets)[3]
        if not torch.is_grad_enabled():
            of_weights = loss.backward(total, of_losses, losses, made, made[1:])
            return None, None, made[1], made[2], made[3], of_weights
        arriving = _arriving(total, of_losses, losses, made)
        rest = (loss.class_sizes, loss.settings, loss.point_loss, "cpu")
        return None, None, *_backward(arriving, predictions, _all_tensors(predictions, targets), *rest)


def _reference(
    predictions: Sequence[Tensor],
    targets: Sequence[Any],
    class_sizes: Sequence[int],
    settings: Sequence[float],
    point_loss: str,
) -> HybridLoss:
    """The reference with the operation's arguments."""
    *judged, task_weights = predictions
    *labels, class_weights, denominators = targets
    of_pixels, of_classes, width, curvature = settings
    options = LossOptions(
        class_sizes, task_weights, class_weights, of_pixels, of_classes, point_loss, width, curvature, denominators
    )
    return reference.hybrid_loss(LossPredictions(*judged), LossTargets(*labels), options)


register_kernel(NAME, "cpu", native.input_refusal)
register_kernel(NAME, "triton", triton_refusal)
register_kernel(NAME, "cuda", cuda_refusal)


def _all_tensors(predictions: Sequence[Tensor], targets: Sequence[Tensor | None]) -> list[Tensor]:
    """The targets as the operation takes them, with an empty tensor for one that is missing."""
    return [predictions[0].new_empty(0) if x is None else x for x in targets]


def _optional(targets: Sequence[Tensor]) -> list[Tensor | None]:
    """Inverse of `_all_tensors`: the four labels, then class weights and denominators or none."""
    return [*targets[:4], *(x if x.numel() else None for x in targets[4:])]


def _check_call(predictions: Sequence[Tensor], targets: Sequence[Tensor], *rest: Any) -> None:
    check_all_but_labels(predictions, _optional(targets), *rest[:-1])
    choose(NAME, rest[-1], *predictions[:3])


@operation("ifan::hybrid_loss", check=_check_call)
def _forward(
    predictions: Sequence[Tensor],
    targets: Sequence[Tensor],
    class_sizes: Sequence[int],
    settings: Sequence[float],
    point_loss: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Total, losses, counts, and what backward needs of a backend that makes its gradients here.

    Args:
        predictions: parsing logits, points, class logits, task weights.
        targets: labels of parsing, points, their weights, class labels; class weights and denominators, empty for none.
        settings: parsing smoothing, class smoothing, wing width and curvature.
    """
    if backend in ("triton", "cuda"):
        arguments = (predictions, _optional(targets), class_sizes, settings, point_loss)
        made: tuple[Tensor, Tensor, Tensor, list[Tensor]] = kernels(backend, NAME).forward(*arguments)
        return made
    if backend == "cpu":
        loss = NativeLoss(predictions, _optional(targets), class_sizes, settings, point_loss)
        return loss.forward(*loss.converted(predictions, _optional(targets)))
    found = _reference(predictions, _optional(targets), class_sizes, settings, point_loss)
    return found.total, found.losses, found.counts, []


_CALLS = CallCache["NativeLoss | None"](_forward)


@_forward.register_fake
def _(predictions: Sequence[Tensor], *rest: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    weights = predictions[3]
    dtype = accumulation_dtype(*[tensor.dtype for tensor in predictions[:3]])
    empty = [weights.new_empty(shape, dtype=dtype) for shape in ((), weights.shape, weights.shape)]
    gradients_of = [value.float() for value in predictions[:3]] if rest[-1] == "cpu" else predictions[:3]
    kept = weights.new_empty(weights.shape, dtype=dtype)
    made = [] if rest[-1] == "reference" else [kept, *empty_gradients(gradients_of)]
    return empty[0], empty[1], empty[2], made


def _check_backward(upstream: Sequence[Tensor], *arguments: Any) -> None:
    _check_call(*arguments)
    check_made(upstream, arguments[0], arguments[-1])


@operation("ifan::hybrid_loss_backward", check=_check_backward)
def _backward(
    upstream: Sequence[Tensor],
    predictions: Sequence[Tensor],
    targets: Sequence[Tensor],
    class_sizes: Sequence[int],
    settings: Sequence[float],
    point_loss: str,
    backend: str,
) -> list[Tensor]:
    """Gradients of the predictions; ``upstream``: see `_arriving`."""
    total, of_losses, losses, *made = upstream
    if backend in ("triton", "cuda"):
        arriving = [total, of_losses]
        found: list[Tensor] = kernels(backend, NAME).backward(arriving, predictions, losses, made, class_sizes)
        return found
    if backend == "cpu":
        loss = NativeLoss(predictions, _optional(targets), class_sizes, settings, point_loss)
        total, of_losses, losses, *made = (native.in_dtype(x, torch.float32).contiguous() for x in upstream)
        found = [torch.empty_like(value) for value in made[1:]]
        of_weights = cast(Tensor, loss.backward(total, of_losses, losses, made, found))
        return native.in_dtypes_of(predictions, [*found, of_weights])

    def run(*values: Tensor) -> tuple[Tensor, Tensor]:
        found = _reference(values, _optional(targets), class_sizes, settings, point_loss)
        return found.total, found.losses

    return gradients(run, predictions, [total, of_losses])


@_backward.register_fake
def _(upstream: Sequence[Tensor], predictions: Sequence[Tensor], *_: Any) -> list[Tensor]:
    return empty_gradients(predictions)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    predictions, targets, *ctx.settings = inputs
    ctx.set_materialize_grads(False)  # what forward made is as large as the logits and receives no gradient
    ctx.save_for_backward(*predictions, *targets, output[1], *output[3])


def _differentiate(ctx: Any, total: Tensor | None, of_losses: Tensor | None, *_: Any) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    predictions, targets, losses, made = saved[:4], saved[4:10], saved[10], saved[11:]
    arriving = _arriving(total, of_losses, losses, made)
    found = _backward(arriving, list(predictions), list(targets), *ctx.settings)
    no_sizes: list[None] | None = (
        None if ctx.settings[0] else []
    )  # an empty list is a structure to autograd, a filled one a value
    return (found, [None] * len(targets), no_sizes, *[None] * 3)


def _arriving(total: Tensor | None, of_losses: Tensor | None, losses: Tensor, made: Sequence[Tensor]) -> list[Tensor]:
    """Inputs of the backward operation: gradients of total and losses, the losses, and what forward made."""
    given = losses.new_zeros(()) if total is None else total
    return [given, torch.zeros_like(losses) if of_losses is None else of_losses, losses, *made]


_forward.register_autograd(_differentiate, setup_context=_setup_context)
