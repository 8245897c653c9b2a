from __future__ import annotations

import pytest

from tests.native import instructions
from tests.native.build import X86, needs

COUNTS = {"integrate_forward": 1000, "dense_head": 200}
EXPECTED = instructions.Expected("c++ 12", margin=0.03, other_compiler=0.5, counts=COUNTS)


def test_kernels_execute_no_more_instructions_than_expected() -> None:
    if not X86:
        pytest.skip("the counts are those of AVX2")
    needs("valgrind")
    counted = instructions.count_instructions()
    if not counted:
        pytest.skip("valgrind/callgrind.h is not installed")
    complaints = instructions.expected().complaints(counted, instructions.compiler_version())
    assert not complaints, "\n".join([*complaints, "If that is meant: make instruction-counts."])


@pytest.mark.parametrize(
    ("counted", "compiler", "lines"),
    [
        (COUNTS, "c++ 12", []),
        ({**COUNTS, "dense_head": 150}, "c++ 12", []),
        ({**COUNTS, "dense_head": 205}, "c++ 12", []),
        ({**COUNTS, "dense_head": 207}, "c++ 12", ["dense_head: expected at most 200 + 3% instructions; got 207."]),
        ({**COUNTS, "dense_head": 207}, "c++ 14", []),
        ({**COUNTS, "dense_head": 301}, "c++ 14", ["dense_head: expected at most 200 + 50% instructions; got 301."]),
        ({"dense_head": 200}, "c++ 12", ["integrate_forward: expected 1000 instructions; got None."]),
        ({**COUNTS, "new": 1}, "c++ 12", ["new: expected None instructions; got 1."]),
    ],
    ids=["same", "fewer", "margin", "more", "other compiler", "far more", "missing", "new"],
)
def test_what_the_gate_lets_through(counted: dict[str, int], compiler: str, lines: list[str]) -> None:
    assert EXPECTED.complaints(counted, compiler) == lines
