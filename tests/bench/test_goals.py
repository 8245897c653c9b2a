"""Floors: reading the file, verdicts, and the tables that show them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ifan.bench import report
from ifan.bench.goals import GOALS, INAPPLICABLE, REACHED, SHORT, UNMEASURED, judge, load_goals
from ifan.bench.problem import Ready
from ifan.bench.suite import suite
from tests.support.fakes import MACHINE, case, right

ONE = case({"ifan": lambda: Ready(right)})


def write(folder: Path, text: str) -> Path:
    path = folder / "goals.yaml"
    path.write_text(text)
    return path


def goal(folder: Path, extra: str = "", floor: str = "2.0", rivals: str = "[eager, openvino]") -> Any:
    text = f"goals:\n  - {{row: {ONE.name}, rivals: {rivals}, floor: {floor}, aim: 3{extra}}}"
    return load_goals(write(folder, text), [ONE])


def measured(ratios: dict[str, float], **changes: Any) -> dict[str, Any]:
    names = ["ifan", *ratios]
    entry = {"status": "ok", "note": "", "error": 0.0, "prepare_s": 0.0, "ms": {"median": 1.0, "p20": 1.0, "p80": 2.0}}
    row = {k: getattr(ONE, k) for k in ("name", "op", "shape", "work", "dtype", "bytes", "flop")}
    row |= {**MACHINE, "contenders": {n: dict(entry) for n in names}, "problem": None, "best": None}
    row |= {"ratios": {n: {"median": r, "p20": r, "p80": r} for n, r in ratios.items()}}
    row |= dict.fromkeys(("gb_s", "gb_s_share", "gflop_s", "gflop_s_share"))
    return row | changes


def test_the_shipped_goals_name_rows_that_exist() -> None:
    goals = load_goals(GOALS, suite())
    assert len(goals) == 15
    assert goals[0].floor("avx2") == 2.0
    assert goals[0].floor("avx512") == 1.6
    assert goals[0].floor("baseline") == 2.0
    assert next(g for g in goals if g.row.startswith("dense_block")).floor("avx512") == 4.0
    assert [g.aim for g in goals if g.row.startswith("integrate 8")] == [None]


@pytest.mark.parametrize(
    ("ratios", "state", "rival"),
    [
        ({"eager": 4.0, "openvino": 2.5}, REACHED, "openvino"),
        ({"eager": 4.0, "openvino": 1.9}, SHORT, "openvino"),
        ({"eager": 1.0, "compile": 9.0, "openvino": 5.0}, SHORT, "eager"),
    ],
)
def test_the_fastest_rival_counts(tmp_path: Path, ratios: dict[str, float], state: str, rival: str) -> None:
    (verdict,) = judge(goal(tmp_path), [measured(ratios)])
    assert (verdict.state, verdict.rival, verdict.ratio) == (state, rival, ratios[rival])
    assert verdict.failed == (state == SHORT)


def test_the_floor_is_that_of_the_instruction_set(tmp_path: Path) -> None:
    goals = goal(tmp_path, floor="{avx2: 2.0, avx512: 1.6}")
    row = measured({"eager": 1.8, "openvino": 1.8})
    assert judge(goals, [row])[0].state == SHORT
    assert judge(goals, [row | {"isa": "avx512"}])[0].state == REACHED


def test_a_missing_rival_is_named(tmp_path: Path) -> None:
    row = measured({"eager": 4.0})
    row["contenders"]["openvino"] = {"status": "missing", "note": "openvino is not installed", "ms": None}
    (verdict,) = judge(goal(tmp_path), [row])
    assert verdict.state == REACHED
    assert verdict.notes == ("without openvino: missing, openvino is not installed",)
    assert "without openvino: missing, openvino is not installed" in report.verdict_table([verdict])


def test_nothing_measured_is_a_failure_but_what_does_not_apply_is_not(tmp_path: Path) -> None:
    goals = goal(tmp_path)
    for row, state in (
        (measured({}), UNMEASURED),
        (measured({}, problem="ifan: wrong"), UNMEASURED),
        (measured({}, problem="not applicable: no bfloat16 arithmetic here"), INAPPLICABLE),
    ):
        (verdict,) = judge(goals, [row])
        assert (verdict.state, verdict.failed) == (state, state == UNMEASURED)
        assert (verdict.floor, verdict.ratio, verdict.rival) == (2.0, None, None)
        asked = tuple(f"without {name}: it was not asked for" for name in ("eager", "openvino"))
        assert verdict.notes == ((row["problem"],) if row["problem"] else asked)
    (verdict,) = judge(goals, [])
    assert (verdict.state, verdict.floor, verdict.notes) == (UNMEASURED, 2.0, ("the row was not run",))


@pytest.mark.parametrize(("ratio", "state"), [(2.0, REACHED), (1.999, SHORT)])
def test_the_floor_itself_is_enough(tmp_path: Path, ratio: float, state: str) -> None:
    assert judge(goal(tmp_path, rivals="[eager]"), [measured({"eager": ratio})])[0].state == state


def test_goals_keep_their_order_and_their_rows(tmp_path: Path) -> None:
    other = case({"ifan": lambda: Ready(right)}, op="other")
    entries = "".join(f"  - {{row: {c.name}, rivals: [eager], floor: 1, aim: 2}}\n" for c in (other, ONE, other))
    goals = load_goals(write(tmp_path, f"goals:\n{entries}"), [ONE, other])
    assert [g.row for g in goals] == [other.name, ONE.name, other.name]
    rows = [measured({"eager": 3.0}), measured({"eager": 0.5}, name=other.name)]
    assert [verdict.state for verdict in judge(goals, rows)] == [SHORT, REACHED, SHORT]


@pytest.mark.parametrize(("ours", "state"), [(9.0, REACHED), (10.0, REACHED), (11.0, SHORT), (None, UNMEASURED)])
def test_memory_is_part_of_a_goal(tmp_path: Path, ours: float | None, state: str) -> None:
    goals = goal(tmp_path, ", memory: {rival: eager, most: 0.1}", rivals="[eager]")
    row = measured({"eager": 4.0})
    row["contenders"]["eager"]["extra_mb"] = 100.0
    row["contenders"]["ifan"]["extra_mb"] = ours
    (verdict,) = judge(goals, [row])
    assert verdict.state == state
    assert verdict.memory == (None if ours is None else ours / 100)
    said = "memory not measured: " if ours is None else f"extra memory {ours} MB of eager's 100.0 MB, at most 10%"
    assert verdict.notes == (said,)
    row["ratios"]["eager"]["median"] = 1.0
    assert judge(goals, [row])[0].state == SHORT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing: 1", "expected a list under the key goals; got NoneType"),
        ("goals: []", "expected a list under the key goals"),
        ("goals: [1]", "goal 1: expected a mapping; got 1"),
        ("goals: [{row: x, rivals: [eager], aim: 1}]", "goal 1: floor: expected a number"),
        ("goals: [{row: x, rivals: [eager], floor: 1, aim: 1, flor: 2}]", "unknown key 'flor'"),
        ("goals: [{row: x, rivals: [eager], floor: 1, aim: 1}]", "no row is called 'x'"),
        ("goals: [", "cannot read the goals"),
    ],
)
def test_a_wrong_file_is_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"goals.yaml: .*") as raised:
        load_goals(write(tmp_path, text), [ONE])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_tables_and_json(tmp_path: Path) -> None:
    rows = [measured({"eager": 4.0, "compile": 3.0}), measured({}, problem="ifan: failed: a|b")]
    rows[0]["contenders"]["compile"]["note"] = "default; default compiled in 3 s"
    rows[0] |= {"gb_s": 5.0, "gb_s_share": 0.5}
    table = report.markdown(rows).splitlines()
    columns = [cell.strip() for cell in table[0].split(" | ")]
    assert columns[0] == "| op"
    assert {"ifan ms", "eager ms", "compile ms", "/ eager", "GB/s", "of copy", "GFLOP/s", "of GEMM"} <= set(columns)
    assert {line.count(" | ") for line in table[:4]} == {len(columns) - 1}
    assert "1 (1-2)" in table[2]
    assert "4.00x | 3.00x | 5.0 | 50%" in table[2]
    assert any("default compiled in 3 s" in line for line in table[4:])
    assert any("ifan: failed" in line for line in table[4:])
    verdicts = judge(goal(tmp_path), rows[:1])
    tree = json.loads(json.dumps(report.as_json(rows, verdicts)))
    assert tree["format"] == 1
    for row in tree["rows"]:
        assert {"commit", "processor", "threads", "versions", "isa", "contenders", "ratios"} <= set(row)
    assert tree["goals"][0] | {"notes": []} == {
        "row": ONE.name,
        "rivals": ["eager", "openvino"],
        "state": REACHED,
        "floor": 2.0,
        "aim": 3.0,
        "ratio": 4.0,
        "rival": "eager",
        "memory_share": None,
        "notes": [],
    }
    assert "Abacus (avx2 kernels), 2 threads; copy 10.0 GB/s, float32 GEMM 100 GFLOP/s" in report.heading(rows[0])


def test_plots_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from ifan.bench.plots import draw

    rows = [measured({"eager": 4.0, "openvino": 2.0}, gflop_s=30.0)]
    files = draw(rows, tmp_path / "plots")
    assert [f.name for f in files] == ["bars.png", "roofline.png"]
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in files)
    assert draw([measured({})], tmp_path) == []
