"""The one table of tolerances: relative, and absolute for a sum of n terms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_RELATIVE = {torch.float64: 1e-7, torch.float32: 1.3e-6, torch.float16: 1e-3, torch.bfloat16: 1.6e-2}
_ABSOLUTE = {torch.float64: 1e-10, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}
_GROWS = {torch.float64, torch.float32}


def tolerance(dtype: torch.dtype, terms: int = 1) -> dict[str, float]:
    """``rtol`` and ``atol`` for values of ``dtype`` that are sums of ``terms`` terms of about unit size."""
    growth = max(terms, 1) ** 0.5 if dtype in _GROWS else 1.0
    return {"rtol": _RELATIVE[dtype], "atol": _ABSOLUTE[dtype] * growth}


def assert_close(actual: Tensor, expected: Tensor, terms: int = 1, dtype: torch.dtype | None = None) -> None:
    """``actual`` equals ``expected`` within the table's tolerance for ``dtype`` (default: that of ``actual``)."""
    torch.testing.assert_close(
        actual.double(), expected.double(), **tolerance(dtype or actual.dtype, terms), msg=_message(actual, expected)
    )


def assert_no_worse(actual: Tensor, eager: Tensor, exact: Tensor, factor: float = 2.0) -> None:
    """The largest error of ``actual`` against the float64 result is at most ``factor`` times that of ``eager``."""
    scale = float(exact.abs().max()) if exact.numel() else 0.0
    ours, theirs = (float((value.double() - exact).abs().max()) if value.numel() else 0.0 for value in (actual, eager))
    rounding = scale * torch.finfo(actual.dtype).eps / 2
    assert ours <= factor * max(theirs, rounding), f"error {ours:.3g} against eager's {theirs:.3g}"


def _message(actual: Tensor, expected: Tensor) -> Any:
    return lambda text: f"shape {tuple(actual.shape)} against {tuple(expected.shape)}: {text}"
