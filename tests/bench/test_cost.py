"""Growth of cost: the fit, and one setting of each kind."""

from __future__ import annotations

import pytest

from benchmarks import cost


def test_fit_finds_what_the_rows_were_made_of() -> None:
    rows = {str(n): {"ms": 40 + 7.5 * n} for n in (1, 2, 8, 64)}
    assert cost.fitted(rows) == pytest.approx({"fixed": 40, "each": 7.5, "worst": 0}, abs=1e-9)
    squares = {str(n): {"ms": 3 + 0.01 * n**2} for n in (64, 128, 256)}
    assert cost.fitted(squares, 2) == pytest.approx({"fixed": 3, "each": 0.01, "worst": 0}, abs=1e-9)
    bent = {"1": {"ms": 100.0}, "2": {"ms": 400.0}, "3": {"ms": 100.0}}
    assert cost.fitted(bent)["worst"] > 0.3


def test_settings_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "SECONDS", 0.0)
    assert {len(arguments) for settings in cost.cases().values() for arguments in settings.values()} == {3, 5}
    for arguments in (("engine", 64, 2, 1), ("photo", 2)):
        found = cost.measure(arguments)
        assert found["calls"] == 3
        assert found["ms"] > 0
