"""What one program of a Triton kernel loads, stores and computes, read from the compiler's intermediate code (TTIR).

The code after inlining, constant folding and the removal of common expressions: one `tt.load` is one access of a whole
tile. Loops are counted by their bounds, which are scalar arithmetic on the arguments.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from tests.gpu.tools.gpu_cost import Cost
from tests.gpu.tools.launches import Started

BITS = re.compile(r"[a-z]+(\d+)")
ARITHMETIC = {"addi", "subi", "muli", "divsi", "remsi"}
FLOATING = re.compile(r"(?:arith\.(?:add|sub|mul|div|maxnum|minnum|maximum|minimum)f|math\.(?:exp2?|log2?)) ")


def cost_of_a_program(code: str, launch: Started) -> Cost:
    """Bytes with nothing masked, and FLOP, of program 0."""
    scalars = dict(_arguments(code, launch))
    found, times, reduction = dict.fromkeys(("loaded", "stored", "flop", "products"), 0), [1], False
    for raw in code.splitlines():
        line = raw.split(" loc(")[0].strip()
        if reduction:
            if line.startswith("})"):
                found["flop"] += times[-1] * _elements(re.findall(r"tensor<(.*?)>", line)[0])
                reduction = False
        elif '"tt.reduce"' in line:
            reduction = True
        elif loop := re.match(r".*scf\.for %\S+ = (%\S+) to (%\S+) step (%\S+) ", line):
            first, last, step = (scalars[name] for name in loop.groups())
            times.append(times[-1] * max(math.ceil((last - first) / step), 0))
        elif line.startswith("}") and len(times) > 1:
            times.pop()
        elif access := re.match(r"(?:%\S+ = )?tt\.(load|store) .* : (.*)", line):
            found[access[1] + ("ed" if access[1] == "load" else "d")] += times[-1] * _bytes(access[2])
        elif product := re.search(r"tt\.dot .* : tensor<(\d+)x(\d+)x\w+> \* tensor<\d+x(\d+)x", line):
            found["products"] += times[-1] * 2 * math.prod(map(int, product.groups()))
        elif FLOATING.search(line):
            found["flop"] += times[-1] * _elements(line.rsplit(" : ", 1)[1].removeprefix("tensor<"))
        else:
            _evaluate(line, scalars, launch.grid)
    assert times == [1]
    return Cost(**found)


def _arguments(code: str, launch: Started) -> Iterator[tuple[str, int]]:
    """The function's integer arguments by the names the code has for them; 1 and ``None`` are constants in it."""

    def walk(value: Any) -> Iterator[Any]:
        if isinstance(value, tuple):
            for part in value:
                yield from walk(part)
        elif value is not None and not (isinstance(value, int) and value == 1):
            yield value

    names = re.findall(r"(%[\w.]+): ", next(line for line in code.splitlines() if "tt.func public" in line))
    for name, value in zip(names, walk(launch.arguments), strict=True):
        if isinstance(value, int):
            yield name, value


def _evaluate(line: str, scalars: dict[str, int], grid: tuple[int, ...]) -> None:
    """Follow scalar integers; anything else is left out."""
    if found := re.fullmatch(r"(%\S+) = arith\.constant (-?\d+) : i\d+", line):
        scalars[found[1]] = int(found[2])
    elif found := re.match(r"(%\S+) = tt\.get_program_id ", line):
        scalars[found[1]] = 0
    elif found := re.match(r"(%\S+) = tt\.get_num_programs (\w)", line):
        scalars[found[1]] = (*grid, 1, 1)["xyz".index(found[2])]
    elif (found := re.fullmatch(r"(%\S+) = arith\.(\w+) (%\S+), (%\S+) : i\d+", line)) and found[2] in ARITHMETIC:
        a, b = (scalars.get(found[i]) for i in (3, 4))
        if a is not None and b is not None:
            scalars[found[1]] = _apply(found[2], a, b)


def _apply(name: str, a: int, b: int) -> int:
    if name in ("divsi", "remsi"):
        return a // b if name == "divsi" else a % b
    return {"addi": a + b, "subi": a - b, "muli": a * b}[name]


def _elements(shape: str) -> int:
    return math.prod(int(part) for part in shape.split("x") if part.isdecimal())


def _bytes(pointers: str) -> int:
    element = pointers.split("!tt.ptr<")[1]
    bits = BITS.match(element)
    assert bits is not None, pointers
    return _elements(pointers.removeprefix("tensor<")) * int(bits[1]) // 8
