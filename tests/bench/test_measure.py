"""A row says what became of every contender, and one that fails ends neither the row nor the run."""

from __future__ import annotations

import json
import time

import pytest
import torch

from ifan.bench import rivals
from ifan.bench.problem import Missing, Ready, Run, Setting, largest_error, vector_error
from ifan.bench.suite import choose, suite
from tests.support.fakes import TRUTH, case, right, row


def missing() -> Ready:
    raise Missing("openvino is not installed")


def broken() -> Ready:
    raise RuntimeError("boom\nand more")


def test_statuses_and_ratios() -> None:
    def slow(i: int) -> list[torch.Tensor]:
        time.sleep(0.004)
        return list(right(i))

    makers = {
        "ifan": lambda: Ready(right),
        "eager": lambda: Ready(slow, "slowly"),
        "compile": lambda: Ready(lambda i: [TRUTH[i % 2] + 0.1]),
        "onnxruntime": broken,
        "openvino": missing,
    }
    found = row(case(makers))
    statuses = {name: entry["status"] for name, entry in found["contenders"].items()}
    expected = {"ifan": "ok", "eager": "ok", "compile": "wrong", "onnxruntime": "failed", "openvino": "missing"}
    assert statuses == expected
    assert found["problem"] is None
    assert list(found["ratios"]) == ["eager"]
    assert found["best"] == "eager"
    assert found["ratios"]["eager"]["median"] > 2
    assert found["contenders"]["compile"]["ms"] is None
    assert "0.05 of its size; 0.001 is accepted" in found["contenders"]["compile"]["note"]
    assert found["contenders"]["onnxruntime"]["note"] == "RuntimeError: boom and more"
    assert found["contenders"]["eager"]["ms"]["count"] == 3
    assert found["gb_s"] == pytest.approx(1000 / found["contenders"]["ifan"]["ms"]["median"] / 1e6)
    json.dumps(found, allow_nan=False)


def test_a_contender_that_goes_wrong_later_has_no_time() -> None:
    calls = iter(range(100))

    def drifting(i: int) -> list[torch.Tensor]:
        return [TRUTH[i % 2] * (1 if next(calls) < 2 else 2)]

    found = row(case({"ifan": lambda: Ready(drifting), "eager": lambda: Ready(right)}))
    assert found["contenders"]["ifan"]["status"] == "wrong"
    assert found["ratios"] == {}
    assert "later runs" in found["problem"]


def test_our_own_wrong_result_gives_no_ratio() -> None:
    makers = {"ifan": lambda: Ready(lambda i: [TRUTH[i % 2] + 0.1]), "eager": lambda: Ready(right)}
    found = row(case(makers))
    assert {name: entry["status"] for name, entry in found["contenders"].items()} == {"ifan": "wrong", "eager": "ok"}
    assert found["contenders"]["ifan"]["ms"] is None
    assert found["contenders"]["eager"]["ms"]["count"] == 3
    assert found["problem"].startswith("ifan: wrong: differs from the truth by 0.05 of its size")
    assert (found["ratios"], found["best"], found["gb_s"], found["gflop_s"]) == ({}, None, None, None)


def test_a_contender_that_ignores_its_input_is_wrong() -> None:
    makers = {"ifan": lambda: Ready(right), "eager": lambda: Ready(lambda i: [TRUTH[0]])}
    assert row(case(makers))["contenders"]["eager"]["status"] == "wrong"


def test_what_is_compared_may_be_another_run_than_what_is_timed() -> None:
    def wrong(i: int) -> list[torch.Tensor]:
        return [TRUTH[i % 2] * 2]

    makers = {"ifan": lambda: Ready(wrong, check=right), "eager": lambda: Ready(right, check=wrong)}
    found = row(case(makers))["contenders"]
    assert {name: entry["status"] for name, entry in found.items()} == {"ifan": "ok", "eager": "wrong"}
    assert found["ifan"]["ms"]["count"] == 3


def test_a_case_that_cannot_be_built_is_one_row() -> None:
    def fail(setting: Setting) -> None:
        raise MemoryError("too large")

    found = row(case({}).__class__("op", "1", "forward", fail))  # type: ignore[arg-type]
    assert found["problem"] == "failed: MemoryError: too large"
    assert found["best"] is None


def test_without_bf16_the_row_does_not_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ifan.bench.measure.has_bf16", lambda device: False)
    found = row(case({"ifan": lambda: Ready(right)}, needs_bf16=True))
    assert found["problem"].startswith("not applicable")
    assert found["contenders"] == {}


def test_only_named_rivals_run() -> None:
    makers = {"ifan": lambda: Ready(right), "eager": lambda: Ready(right), "openvino": broken}
    assert list(row(case(makers), ["eager"])["contenders"]) == ["ifan", "eager"]


def test_errors() -> None:
    one, two = torch.tensor([1.0, -4.0]), torch.tensor([1.0, -3.0])
    assert largest_error([two], [one]) == 0.25
    assert vector_error([two], [one]) == pytest.approx(1 / 17**0.5)
    for wrong in ([], [one, one], [one[:1]], [one * torch.nan]):
        assert largest_error(wrong, [one]) == vector_error(wrong, [one]) == float("inf")
    assert largest_error([one[:0]], [one[:0]]) == 0


def test_compile_keeps_the_faster_mode_and_names_what_failed(tmp_path: object) -> None:
    def make(mode: str) -> Run:
        if mode == "broken":
            raise RuntimeError("no compiler")

        def run(i: int) -> list[torch.Tensor]:
            time.sleep({"slow": 0.03, "fast": 0.0}[mode])
            return list(right(i))

        return run

    setting = Setting(tmp_path, compile_modes=("broken", "slow", "fast"))  # type: ignore[arg-type]
    ready = rivals.compiled(make, setting)
    assert ready.note.startswith("fast; broken failed: RuntimeError: no compiler; slow compiled in 0 s")
    assert ready.first is not None
    with pytest.raises(Missing, match="broken failed"):
        rivals.compiled(make, Setting(tmp_path, compile_modes=("broken",)))  # type: ignore[arg-type]


def test_compile_is_given_up_in_time(tmp_path: object) -> None:
    def make(mode: str) -> Run:
        while True:
            time.sleep(0.01)

    began = time.monotonic()
    with pytest.raises(Missing, match="default not compiled in 0 s"):
        rivals.compiled(make, Setting(tmp_path, compile_seconds=0.1))  # type: ignore[arg-type]
    assert time.monotonic() - began < 5


def test_names_are_unique_and_chosen_by_part_or_glob() -> None:
    for quick in (True, False):
        names = [case.name for case in suite(quick)]
        assert len(set(names)) == len(names)
    assert {c.op for c in choose(suite(), "dense_block")} == {"dense_block"}
    assert len(choose(suite(), "network 8x*bfloat16")) == 1
    with pytest.raises(ValueError, match="no row is called so; expected part of one of: channel_moments"):
        choose(suite(), "dens_block")


def test_counts_of_the_network() -> None:
    """24.1 GMAC for three iterations with stem and re-encoders shared, as counted for the released graph."""
    one = next(c for c in suite() if c.name.startswith("network 1x3x128x128 inference"))
    assert one.flop / 2e9 == pytest.approx(24.13, abs=0.01)
