"""The fused operations in plain, differentiable PyTorch: the definition of truth and the fallback.

They know torch, and `ifan.concat` for the operations' arguments.
"""

from ifan.reference.channel_moments import channel_moments
from ifan.reference.dense_block import dense_block
from ifan.reference.encode_predictions import encode_predictions
from ifan.reference.hybrid_loss import HybridLoss, hybrid_loss
from ifan.reference.integrate import integrate
from ifan.reference.transition_up import transition_up

__all__ = [
    "HybridLoss",
    "channel_moments",
    "dense_block",
    "encode_predictions",
    "hybrid_loss",
    "integrate",
    "transition_up",
]
