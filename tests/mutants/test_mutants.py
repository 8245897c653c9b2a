"""The changes themselves: each makes another file, types and texts are left alone, and survivors are counted."""

from __future__ import annotations

import ast

import pytest

from tests.mutants import cpp, python, run
from tests.mutants.python import Mutant

CODE = """
from x import y

LIMIT: int | None = 3

@wraps(a + b)
def f(x: int | float = 2, *, flag=True) -> int | None:
    '''Adds 1.'''
    if x < LIMIT and not flag:
        raise ValueError(f"{x + 1}: too small" + str(x + 1))
    g(x, key=sorted(x))
    for z in x:
        if z:
            continue
        x += np.clip(z, 0.0, 1.5)
    return max(x, -1)
"""
EXPECTED = {
    "3  ->  4",
    "2  ->  3",
    "True  ->  False",
    "x < LIMIT  ->  x <= LIMIT",
    "x < LIMIT and (not flag)  ->  x < LIMIT or not flag",
    "not flag  ->  flag",
    "g(x, key=sorted(x))  ->  pass",
    "g(x, key=sorted(x))  ->  g(x)",
    "sorted(x)  ->  list(x)",
    "z  ->  not z",
    "continue  ->  break",
    "x += np.clip(z, 0.0, 1.5)  ->  x -= np.clip(z, 0.0, 1.5)",
    "np.clip(z, 0.0, 1.5)  ->  z",
    "0.0  ->  1.0",
    "1.5  ->  3.0",
    "max(x, -1)  ->  min(x, -1)",
    "-1  ->  1",
    "1  ->  2",
}
KERNEL = """// a < b
#include <x.h>
template <typename T>
int f(const T* x, int n) {
  if (x[n] < 3 && n) continue;
  return std::max(n + 1, 2);  // n + 1
}
"""
IN_KERNEL = {
    "if (x[n] < 3 && n) continue;  ->  if (x[n] <= 3 && n) continue;",
    "if (x[n] < 3 && n) continue;  ->  if (x[n] < 4 && n) continue;",
    "if (x[n] < 3 && n) continue;  ->  if (x[n] < 3 || n) continue;",
    "if (x[n] < 3 && n) continue;  ->  ;",
    "return std::max(n + 1, 2);  // n + 1  ->  return std::min(n + 1, 2);  // n + 1",
    "return std::max(n + 1, 2);  // n + 1  ->  return std::max(n - 1, 2);  // n + 1",
    "return std::max(n + 1, 2);  // n + 1  ->  return std::max(n + 2, 2);  // n + 1",
    "return std::max(n + 1, 2);  // n + 1  ->  return std::max(n + 1, 3);  // n + 1",
}


def test_python_is_changed_where_a_slip_would_matter() -> None:
    made = [python.mutant(CODE, i) for i in range(python.count(CODE))]
    shown = [" ".join(mutant.what.split()).replace(" -> ", "  ->  ") for mutant in made]
    raised = [what for what in shown if what.startswith("raise ")]
    assert set(shown) - set(raised) == EXPECTED
    assert [what.rpartition("  ->  ")[2] for what in raised] == ["pass"]
    plain = ast.unparse(ast.parse(CODE))
    assert len({mutant.text for mutant in made}) == len(made)
    for mutant in made:
        ast.parse(mutant.text)
        assert mutant.text != plain
        assert mutant.what.split("->")[0].split()[0] in CODE.splitlines()[mutant.line - 1]


def test_cpp_is_changed_outside_comments() -> None:
    made = [cpp.mutant(KERNEL, i) for i in range(cpp.count(KERNEL))]
    assert {mutant.what for mutant in made} == IN_KERNEL
    assert {mutant.line for mutant in made} == {5, 6}
    assert all(len(mutant.text.splitlines()) == len(KERNEL.splitlines()) for mutant in made)


@pytest.mark.parametrize("kind", ["python", "cpp"])
def test_areas_name_files_and_tests_that_are_there(kind: str) -> None:
    for area in run.areas(kind):
        assert area.files
        assert all((run.ROOT / place).exists() for place in area.tests), area.name


def test_tests_named_after_a_file_come_first() -> None:
    (training,) = (area for area in run.areas("python") if area.name == "training")
    assert run.tests_of(run.Site(training, "ifan/training/ema.py", 0)) == [
        "tests/training/test_ema.py",
        "tests/training",
    ]
    assert run.tests_of(run.Site(training, "ifan/training/stop.py", 0)) == ["tests/training"]


def test_the_share_is_of_the_changes_that_make_a_difference() -> None:
    site = run.Site(run.Area("a", ("x.py",), ("tests",)), "x.py", 0)
    statuses = ["killed", "killed", "timeout", "survived", "equivalent", "no build"]
    outcomes = [run.Outcome(site, Mutant("", 7, f"change {i}"), status, 1.0) for i, status in enumerate(statuses)]
    lines = run.report(outcomes, 90, 5).splitlines()
    assert lines[0].endswith("x.py:7  change 3")
    assert lines[1].startswith("6 of 90 changes, seed 5: 2 killed, 1 timeout")
    assert lines[2] == "survived: 1 of 4, 25.0%"
