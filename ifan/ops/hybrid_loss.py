"""The masked multi-task loss: parsing, points and classifications of a batch that mixes datasets."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ifan import reference
from ifan.ops import native
from ifan.ops.call import CallCache, is_plain, is_traced, key, operation
from ifan.ops.dispatch import choose, current_backend, register_kernel
from ifan.ops.gpu import cuda_refusal, kernels, triton_refusal
from ifan.ops.hybrid_loss_checks import NAME, check_all_but_labels, check_labels
from ifan.ops.recompute import empty_gradients, gradients
from ifan.profiling import ranged
from ifan.reference.hybrid_loss import HybridLoss
from ifan.reference.lanes import accumulation_dtype

_KINDS: dict[Hashable, _Kind] = {}
"""Kinds of call that were right and taken by the native kernel, by their key; at most `CallCache.MOST`."""
_READ = (torch.float32, torch.uint8, torch.int64)
"""What the kernel reads: predictions and weights, parsing labels, class labels."""

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
    predictions = (parsing_logits, points, class_logits, task_weights)
    targets = (parsing_target, points_target, points_weight, class_targets)
    optional = (parsing_class_weights, denominators)
    numbers = (parsing_smoothing, class_smoothing, wing_width, wing_curvature)
    constants = (targets, *optional, list(class_sizes), [float(value) for value in numbers], point_loss)
    if is_traced():
        chosen = _checked(backend, predictions, *constants)
    else:  # looking once at a kind of call is enough, and every step makes the same one
        told = (*class_sizes, *numbers, point_loss, backend, current_backend())
        seen = key((*predictions, *targets, *optional), told)
        kind = _KINDS.get(seen)
        if kind is None:
            chosen = _checked(backend, predictions, *constants)
            if chosen == "cpu" and is_plain([*predictions, *targets]):
                kind = _Kind(predictions, *constants)
                if len(_KINDS) < CallCache.MOST:
                    _KINDS[seen] = kind
        if kind is not None:
            return HybridLoss(*kind(predictions, targets, *optional))
    if chosen != "cpu":  # whose kernel looks at every label anyway
        check_labels(parsing_logits, parsing_target, class_targets, constants[3])
    if chosen == "reference":
        return _reference(predictions, *constants)
    return HybridLoss(*_forward(list(predictions), list(targets), *constants[1:], chosen)[:3])


def _checked(backend: str | None, predictions: Sequence[Tensor], *constants: Any) -> str:
    """The backend that runs the call, if all is right with it but the labels, which are not looked at."""
    check_all_but_labels(predictions, *constants)
    return choose(NAME, backend, *predictions[:3])


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
    constants = (targets, parsing_class_weights, denominators, list(class_sizes), list(settings), point_loss)
    if backend in ("triton", "cuda"):
        made: tuple[Tensor, Tensor, Tensor, list[Tensor]] = kernels(backend, NAME).forward(predictions, *constants)
        return made
    if backend == "cpu":
        kind = _Kind(predictions, *constants)
        return kind.forward(*kind.converted(predictions, targets, parsing_class_weights, denominators))
    found = _reference(predictions, *constants)
    return found.total, found.losses, found.counts, []


class _Kind:
    """The native kernel for calls of one kind: of these shapes, dtypes, layouts and settings.

    A call is one native call forward and one backward, under a `torch.autograd.Function` of four tensors.
    """

    def __init__(
        self,
        predictions: Sequence[Tensor],
        targets: Sequence[Tensor],
        class_weights: Tensor | None,
        denominators: Tensor | None,
        class_sizes: list[int],
        settings: Sequence[float],
        point_loss: str,
    ) -> None:
        logits, points, classes, _ = predictions
        self.class_sizes, self.rest = class_sizes, (class_sizes, settings, point_loss, "cpu")
        self.kernel = native.cpu_module().HybridLoss(
            logits.shape, targets[0].shape[1:], points.shape[::2], len(classes), class_sizes, settings, point_loss
        )
        given = [*predictions, *targets, *(value for value in (class_weights, denominators) if value is not None)]
        self.readable = all(x.is_contiguous() and x.dtype in _READ for x in given)

    def __call__(self, predictions: Sequence[Tensor], *constants: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Total, losses and counts."""
        if not self.readable:  # recorded, so that a gradient comes back in its prediction's dtype
            predictions, *converted = self.converted(predictions, *constants)
            constants = tuple(converted)
        if torch.is_grad_enabled() and any(value.requires_grad for value in predictions):
            recorded: tuple[Tensor, Tensor, Tensor] = _Recorded.apply(self, constants, *predictions)
            return recorded
        return self.forward(predictions, *constants)[:3]

    @staticmethod
    def converted(
        predictions: Sequence[Tensor],
        targets: Sequence[Tensor],
        class_weights: Tensor | None,
        denominators: Tensor | None,
    ) -> tuple[list[Tensor], list[Tensor], Tensor | None, Tensor | None]:
        """The arguments as the kernel reads them: contiguous, floating point in float32."""

        def read(x: Tensor) -> Tensor:
            return (x if x.dtype in _READ else x.float()).contiguous()

        optional = [None if value is None else read(value) for value in (class_weights, denominators)]
        return [read(x) for x in predictions], [read(x) for x in targets], optional[0], optional[1]

    def forward(
        self,
        predictions: Sequence[Tensor],
        targets: Sequence[Tensor],
        class_weights: Tensor | None,
        denominators: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Total, losses, counts, and for backward the task weights and each task's gradients of its loss."""
        logits, points, classes, weights = predictions
        labels, points_target, points_weight, class_targets = targets
        made = [torch.empty_like(logits), torch.empty_like(points), torch.empty_like(classes)]
        total, losses, counts = weights.new_empty(()), torch.empty_like(weights), torch.empty_like(weights)
        kept = torch.empty_like(weights)
        right = self.kernel.forward(
            logits.data_ptr(),
            labels.data_ptr(),
            0 if class_weights is None else class_weights.data_ptr(),
            points.data_ptr(),
            points_target.data_ptr(),
            points_weight.data_ptr(),
            classes.data_ptr(),
            class_targets.data_ptr(),
            weights.data_ptr(),
            0 if denominators is None else denominators.data_ptr(),
            *[value.data_ptr() for value in made],
            total.data_ptr(),
            losses.data_ptr(),
            counts.data_ptr(),
            kept.data_ptr(),
            torch.get_num_threads(),
        )
        if not right:
            check_labels(logits, labels, class_targets, self.class_sizes)
        return total, losses, counts, [kept, *made]

    def backward(
        self,
        total: Tensor | None,
        of_losses: Tensor | None,
        losses: Tensor | None,
        made: Sequence[Tensor],
        found: Sequence[Tensor],
    ) -> Tensor | None:
        """Fill ``found``, which may be what forward ``made``, with the gradients of logits, points and class logits.

        With ``losses`` return that of the task weights.
        """
        of_losses = None if of_losses is None else of_losses.contiguous()
        of_weights = None if losses is None else torch.empty_like(losses)
        self.kernel.backward(
            0 if total is None else total.data_ptr(),
            0 if of_losses is None else of_losses.data_ptr(),
            *[value.data_ptr() for value in made],
            *[value.data_ptr() for value in found],
            0 if losses is None else losses.data_ptr(),
            0 if of_weights is None else of_weights.data_ptr(),
            torch.get_num_threads(),
        )
        return of_weights


class _Recorded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kind: _Kind, constants: Sequence[Any], *predictions: Tensor) -> Any:
        *found, ctx.made = kind.forward(predictions, *constants)
        ctx.kind = kind
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(found[1], *predictions, *constants[0], *constants[1:])
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, total: Tensor | None, of_losses: Tensor | None, _: Any) -> tuple[Any, ...]:
        made, ctx.made = ctx.made, None  # the first backward may change it, a later one makes it again
        if made is not None and not (torch.is_grad_enabled() or ctx.needs_input_grad[5]):
            ctx.kind.backward(total, of_losses, None, made, made[1:])
            return None, None, made[1], made[2], made[3], None
        losses, *saved = ctx.saved_tensors
        predictions, targets, optional = saved[:4], saved[4:8], saved[8:]
        made = made or ctx.kind.forward(predictions, targets, *optional)[3]
        if not torch.is_grad_enabled():
            of_weights = ctx.kind.backward(total, of_losses, losses, made, made[1:])
            return None, None, made[1], made[2], made[3], of_weights
        arriving = _arriving(total, of_losses, losses)
        return None, None, *_backward(arriving, losses, made, predictions, targets, *optional, *ctx.kind.rest)


@_forward.register_fake
def _(predictions: Sequence[Tensor], *rest: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    weights = predictions[3]
    dtype = accumulation_dtype(*[tensor.dtype for tensor in predictions[:3]])
    empty = [weights.new_empty(shape, dtype=dtype) for shape in ((), weights.shape, weights.shape)]
    gradients_of = [value.float() for value in predictions[:3]] if rest[-1] == "cpu" else predictions[:3]
    kept = weights.new_empty(weights.shape, dtype=dtype)
    made = [] if rest[-1] == "reference" else [kept, *empty_gradients(gradients_of)]
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
        kind = _Kind(predictions, targets, None, None, list(class_sizes), settings, point_loss)
        found = [torch.empty_like(value) for value in made[1:]]
        of_weights = cast(Tensor, kind.backward(upstream[0], upstream[1], losses, made, found))
        return native.in_dtypes_of(predictions, [*found, of_weights])

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
    ctx.save_for_backward(*predictions, *targets, parsing_class_weights, denominators, output[1], *output[3])


def _differentiate(ctx: Any, total: Tensor | None, of_losses: Tensor | None, *_: Any) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    predictions, targets, constants, losses, made = saved[:4], saved[4:8], saved[8:10], saved[10], saved[11:]
    arriving = _arriving(total, of_losses, losses)
    found = _backward(arriving, losses, list(made), list(predictions), list(targets), *constants, *ctx.settings)
    no_sizes: list[None] | None = (
        None if ctx.settings[0] else []
    )  # an empty list is a structure to autograd, a filled one a value
    return (found, [None] * 4, None, None, no_sizes, *[None] * 3)


def _arriving(total: Tensor | None, of_losses: Tensor | None, losses: Tensor) -> list[Tensor]:
    return [
        losses.new_zeros(()) if total is None else total,
        torch.zeros_like(losses) if of_losses is None else of_losses,
    ]


_forward.register_autograd(_differentiate, setup_context=_setup_context)
