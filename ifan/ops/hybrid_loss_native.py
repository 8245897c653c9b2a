"""The native kernel of `ifan.ops.hybrid_loss`, given the shapes and settings once for calls that are alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ifan.ops import checks, native
from ifan.ops.hybrid_loss_checks import NAME, check_labels

_READ = (torch.float32, torch.uint8, torch.int64)
"""Types that the kernel reads: predictions and weights, parsing labels, class labels."""

Tensors = Sequence[Tensor]
Optional = Sequence[Tensor | None]


class NativeLoss:
    """Loss and gradients of calls that share shapes, dtypes, layouts and settings: one native call each way.

    The arguments are those of the operation ``ifan::hybrid_loss``, and have been checked.
    """

    def __init__(
        self,
        predictions: Tensors,
        targets: Optional,
        class_sizes: Sequence[int],
        settings: Sequence[float],
        point_loss: str,
    ) -> None:
        logits, points, classes, _ = predictions
        labels = targets[0]
        assert labels is not None
        self.class_sizes, self.settings, self.point_loss = list(class_sizes), list(map(float, settings)), point_loss
        shapes = logits.shape, labels.shape[1:], points.shape[::2], len(classes)
        self.kernel = native.cpu_module().HybridLoss(*shapes, self.class_sizes, self.settings, point_loss)
        self.readable = all(x is None or (x.is_contiguous() and x.dtype in _READ) for x in (*predictions, *targets))
        """True if the kernel reads calls of this kind as they are, without `converted`."""

    @staticmethod
    def converted(predictions: Tensors, targets: Optional) -> tuple[list[Tensor], list[Tensor | None]]:
        """The tensors as the kernel reads them: contiguous, floating point in float32."""

        def read(x: Tensor) -> Tensor:
            return (x if x.dtype in _READ else x.float()).contiguous()

        return [read(x) for x in predictions], [None if x is None else read(x) for x in targets]

    def forward(self, predictions: Tensors, targets: Optional) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Total, losses, counts, and for backward the task weights and each task's gradients of its loss."""
        logits, points, classes, weights = predictions
        labels, points_target, points_weight, class_targets, class_weights, denominators = targets
        assert labels is not None
        assert points_target is not None
        assert points_weight is not None
        assert class_targets is not None
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
            checks.fail(NAME, "labels must stay as they are during the call; another thread changed them. Copy them.")
        return total, losses, counts, [kept, *made]

    def backward(
        self,
        total: Tensor | None,
        of_losses: Tensor | None,
        losses: Tensor | None,
        made: Tensors,
        found: Tensors,
    ) -> Tensor | None:
        """Fill ``found``, which may be what forward ``made``, with the gradients of logits, points and class logits.

        ``total`` and ``of_losses`` are the arriving gradients. With ``losses`` return that of the task weights.
        """
        total, of_losses = (None if x is None else x.resolve_neg().contiguous() for x in (total, of_losses))
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
