"""The fused operations the network calls, and the switch between their backends."""

from ifan.ops.channel_moments import by_task, channel_moments, with_channel_moments
from ifan.ops.dense_block import dense_block
from ifan.ops.dispatch import BackendError, BackendStatus, backend_status, current_backend, set_backend, use_backend
from ifan.ops.encode_predictions import encode_predictions
from ifan.ops.hybrid_loss import HybridLoss, LossOptions, LossPredictions, LossTargets, hybrid_loss
from ifan.ops.integrate import integrate
from ifan.ops.transition_up import transition_up

__all__ = [
    "BackendError",
    "BackendStatus",
    "HybridLoss",
    "LossOptions",
    "LossPredictions",
    "LossTargets",
    "backend_status",
    "by_task",
    "channel_moments",
    "current_backend",
    "dense_block",
    "encode_predictions",
    "hybrid_loss",
    "integrate",
    "set_backend",
    "transition_up",
    "use_backend",
    "with_channel_moments",
]
