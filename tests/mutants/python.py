"""Small changes of Python code, such as a slip makes; some test should notice each."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
EXCHANGED = {"min": "max", "max": "min", "any": "all", "all": "any", "minimum": "maximum", "maximum": "minimum"}
LEFT_OUT = {"sorted": "list", "abs": None, "clip": None, "clamp_min": None, "reversed": "list"}
"""Calls that are left out; what stands for them keeps their first argument."""

LEFT_ALONE = {"annotation", "returns", "decorator_list", "bases", "exc", "cause"}
"""Parts of definitions and of ``raise`` that no test should have to notice."""


UNSEEN = {"strict", "encoding"}
"""Keywords that make a difference in no sound program, or on no ordinary machine."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A changed file: its whole ``text``, the ``line`` of the change in the original, and ``what`` it was."""

    text: str
    line: int
    what: str


@dataclass(frozen=True, slots=True)
class _Change:
    """``holder.name``, or its item ``index``, becomes ``new``, or goes; ``old`` is what a reader is shown of it."""

    holder: ast.AST
    name: str
    index: int | None
    new: ast.AST | None
    old: ast.AST


def count(source: str) -> int:
    """Number of the changes that `mutant` can make of a file."""
    return sum(1 for _ in _changes(ast.parse(source)))


def mutant(source: str, number: int) -> Mutant:
    """The file with its ``number``-th change, counted from 0."""
    tree = ast.parse(source)
    change = next(c for i, c in enumerate(_changes(tree)) if i == number)
    before, value = ast.unparse(change.old), getattr(change.holder, change.name)
    replaced = (value if change.index is None else value[change.index]) is change.old
    if change.index is None:
        setattr(change.holder, change.name, change.new)
    elif change.new is None:
        del value[change.index]
    else:
        value[change.index] = change.new
    after = ast.unparse(change.new if replaced and change.new else change.old)
    return Mutant(ast.unparse(ast.fix_missing_locations(tree)), change.old.lineno, f"{before}  ->  {after}")  # type: ignore[attr-defined]


def _changes(tree: ast.Module) -> Iterator[_Change]:
    for holder, name, index, node in _nodes(tree):
        yield from _of_operators(node)
        yield from (_Change(holder, name, index, new, node) for new in _in_place_of(node))
        if isinstance(node, ast.Call) and ast.unparse(node.func) not in ("field", "dataclass"):
            for i, keyword in enumerate(node.keywords):
                if keyword.arg is not None and not _is_left_alone(keyword):
                    yield _Change(node, "keywords", i, None, node)


def _nodes(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Nodes below with their holders, less types, decorators, docstrings, texts and what only a type checker sees."""
    for name, value in ast.iter_fields(node):
        if name in LEFT_ALONE:
            continue
        for index, item in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(item, ast.AST) and not _is_left_alone(item):
                yield node, name, index, item
                yield from _nodes(item)


def _is_left_alone(node: ast.AST) -> bool:
    if isinstance(node, (ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Assert)):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.keyword) and node.arg in UNSEEN:
        return True
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _of_operators(node: ast.AST) -> Iterator[_Change]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in SWAPPED:
        yield _Change(node, "ops", 0, SWAPPED[type(node.ops[0])](), node)
    elif isinstance(node, (ast.BoolOp, ast.BinOp, ast.AugAssign)) and type(node.op) in SWAPPED:
        sides = (node.left, node.right) if isinstance(node, ast.BinOp) else ()
        if not any(_is_text(side) for side in sides):
            yield _Change(node, "op", None, SWAPPED[type(node.op)](), node)
    elif isinstance(node, (ast.If, ast.IfExp, ast.While)) and not isinstance(node.test, (ast.Compare, ast.BoolOp)):
        yield _Change(node, "test", None, ast.UnaryOp(ast.Not(), node.test), node.test)


def _is_text(node: ast.AST) -> bool:
    """True of a text, and of the ``None`` of a type."""
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes, type(None)))
    )


def _in_place_of(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that may stand where this one does."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        yield ast.Constant(_other(node.value))
    elif isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if name in EXCHANGED:
            func = (
                ast.Name(EXCHANGED[name]) if isinstance(node.func, ast.Name) else _with_attr(node.func, EXCHANGED[name])
            )
            yield ast.Call(func, node.args, node.keywords)
        elif name in LEFT_OUT and not node.keywords:
            kept = _kept(node)
            if kept is not None:
                other = LEFT_OUT[name]
                yield ast.Call(ast.Name(other), [kept], []) if other else kept
    elif (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)) or isinstance(node, ast.Raise):
        yield ast.Pass()
    elif isinstance(node, ast.Continue):
        yield ast.Break()


def _other(value: bool | int | float) -> bool | int | float:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value * 2 or 1.0


def _with_attr(func: ast.expr, name: str) -> ast.expr:
    assert isinstance(func, ast.Attribute)
    return ast.Attribute(func.value, name, ast.Load())


def _kept(call: ast.Call) -> ast.expr | None:
    """First argument of a function; of a method such as ``x.clamp_min(0)``, x."""
    if isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) not in ("np", "torch", "math"):
        return call.func.value
    return call.args[0] if call.args else None
