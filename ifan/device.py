"""The check of a PyTorch device that somebody named."""

from __future__ import annotations

import torch


def usable_device(device: str | torch.device) -> torch.device:
    """The device of that name; ``ValueError`` says why it cannot be used here."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"device {str(device)!r}: cannot be used here ({reason}); use cpu") from error
