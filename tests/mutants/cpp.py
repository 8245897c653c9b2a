"""Small changes of C++ code, such as a slip makes, found in its text: clang-format puts blanks around operators."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.mutants.python import Mutant

SWAPPED = {
    " < ": " <= ",
    " <= ": " < ",
    " > ": " >= ",
    " >= ": " > ",
    " == ": " != ",
    " != ": " == ",
    " && ": " || ",
    " || ": " && ",
    " + ": " - ",
    " - ": " + ",
    " * ": " + ",
    " / ": " * ",
    " % ": " / ",
    " += ": " -= ",
    " -= ": " += ",
}
PATTERNS = (
    (re.compile("|".join(map(re.escape, SWAPPED))), lambda found: SWAPPED[found.group()]),
    (re.compile(r"(?<![\w.])\d+(?![\w.])"), lambda found: str(int(found.group()) + 1)),
    (re.compile(r"\d+\.\d+f?\b"), lambda found: f"2 * {found.group()}"),
    (
        re.compile(r"\b(?:std::)?(min|max)\b(?=[<(])"),
        lambda found: "std::" + ("max" if "min" in found.group() else "min"),
    ),
    (re.compile(r"\bif \(.*\) (?:continue|return|break);"), lambda found: ";"),
    (re.compile(r"\b(true|false)\b"), lambda found: "false" if found.group() == "true" else "true"),
)
SKIPPED = re.compile(r"\s*(#|//|template|using|static_assert|namespace|constexpr int64_t k)")
"""Lines that are left alone."""


def count(source: str) -> int:
    """Number of the changes that `mutant` can make of a file."""
    return sum(1 for _ in _changes(source))


def mutant(source: str, number: int) -> Mutant:
    """The file with its ``number``-th change, counted from 0."""
    line, changed = next(found for i, found in enumerate(_changes(source)) if i == number)
    lines = source.split("\n")
    before, lines[line] = lines[line], changed
    return Mutant("\n".join(lines), line + 1, f"{before.strip()}  ->  {changed.strip()}")


def _changes(source: str) -> Iterator[tuple[int, str]]:
    """Number of a line, from 0, and what it becomes."""
    for number, line in enumerate(source.split("\n")):
        code = line.split("//")[0]
        if SKIPPED.match(line) or '"' in code:
            continue
        for pattern, change in PATTERNS:
            for found in pattern.finditer(code):
                yield number, line[: found.start()] + change(found) + line[found.end() :]
