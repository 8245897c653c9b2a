"""Names of what runs, as profilers show them."""

from __future__ import annotations

import pytest
import torch

from ifan.config import NetworkConfig
from ifan.network import IFAN
from ifan.profiling import named_ranges, span

PARTS = {
    *("stem of the image", "iteration", "encode", "stem", "re-encoders", "middle block"),
    *("head parsing", "head landmarks", "head emotion"),
    *(f"{part} {i}" for part in ("block", "transition down", "transition up", "block up") for i in range(1, 6)),
    *("ifan.integrate", "ifan.dense_block", "ifan.transition_up", "ifan.encode_predictions"),
}
"""Every range of inference with two iterations."""


def run() -> None:
    network = IFAN(NetworkConfig(size=32, iterations=2, growth=4, block_layers=1, stem_channels=8, up_channels=16))
    with torch.inference_mode():
        network.eval()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def names_in(profiler: torch.profiler.profile) -> set[str]:
    return {event.name for event in profiler.events() or []}


def test_torch_profiler_sees_every_part() -> None:
    with named_ranges(), torch.profiler.profile() as profiler:
        run()
    assert names_in(profiler) >= PARTS


def test_names_are_off_unless_asked_for() -> None:
    with torch.profiler.profile() as profiler:
        run()
    assert not names_in(profiler) & PARTS
    with named_ranges(), named_ranges(False), torch.profiler.profile() as profiler, span("inside"):
        pass
    assert "inside" not in names_in(profiler)


def test_nvtx_ranges_nest(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch.cuda replaced: every range that is entered is left, in order, also by an error."""
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", calls.append)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: calls.append("pop"))

    def broken() -> None:
        with span("outer"):
            with span("first"):
                pass
            with span("second"):
                raise KeyError

    with named_ranges(), pytest.raises(KeyError):
        broken()
    assert calls == ["outer", "first", "pop", "second", "pop", "pop"]
    calls.clear()
    with named_ranges():
        run()
    assert set(calls) - {"pop"} == PARTS
    assert calls.count("pop") * 2 == len(calls)
    assert calls.count("iteration") == 2
    assert calls.index("iteration") < calls.index("stem") < calls.index("ifan.dense_block") < calls.index("encode")


def test_compiled_functions_hold_no_range() -> None:
    torch._dynamo.reset()

    def twice(x: torch.Tensor) -> torch.Tensor:
        with span("inside"):
            return x + x

    with named_ranges(), torch.profiler.profile() as profiler:
        torch.compile(twice, fullgraph=True, backend="eager")(torch.ones(1))
    assert "inside" not in names_in(profiler)
