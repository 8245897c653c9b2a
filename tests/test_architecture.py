"""Who may know whom, read from the import statements of package and kernels; how many parameters are too many.

A room is a module or folder directly below ``ifan``. `KNOWS` says of each room which others its modules may import, at
the top or inside a function.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FRAMEWORKS = {"torch", "triton"}
MOST_PARAMETERS = 7

HELPERS = {
    "allocator",
    "config",
    "device",
    "files",
    "native",
    "optional",
    "processor",
    "profiling",
    "progress",
    "safetensors_io",
}
"""Small modules that every room above may use; among themselves they know one another."""

GRAPH = {*HELPERS, "wiring", "crop", "predictions"}
NETWORK = {*GRAPH, "reference", "kernels", "concat", "ops", "layers", "network", "hub", "weights"}
ANALYSIS = {*GRAPH, "weights", "engine", "torch_runner", "cuda_graph", "refine", "faces"}
LEARNING = {*NETWORK, *ANALYSIS, "data", "training", "evaluation"}

KNOWS: dict[str, set[str]] = {
    "reference": {"concat", "config"},
    "kernels": {"concat", "config"},
    "concat": {"config"},
    "config": set(),
    "wiring": {"config"},
    "crop": {"config"},
    "predictions": {"config"},
    **dict.fromkeys(HELPERS - {"config"}, HELPERS),
    "ops": {*HELPERS, "reference", "kernels", "concat"},
    "layers": {*HELPERS, "wiring", "concat", "ops"},
    "network": {*HELPERS, "wiring", "concat", "ops", "layers", "hub", "weights", "predictions"},
    "hub": {*HELPERS, "weights"},
    "weights": {*HELPERS, "wiring", "network"},
    "engine": {*HELPERS, "wiring", "predictions", "weights", "torch_runner"},
    "cuda_graph": {*HELPERS, "ops", "network"},
    "torch_runner": {*HELPERS, "ops", "network", "predictions", "cuda_graph"},
    "refine": {*HELPERS, "wiring", "crop", "predictions"},
    "faces": {*ANALYSIS, "data"},  # how pictures are read
    "data": {*HELPERS, "crop", "concat"},
    "training": LEARNING - {"faces", "evaluation"},
    "evaluation": LEARNING - {"faces", "training"},
    "bulk": ANALYSIS,
    "export": {*NETWORK, "refine", "faces"},
    "bench": {*LEARNING, "export"},
    "cli": {*LEARNING, "bulk", "export", "bench"},
}

WITHOUT_FRAMEWORK = {"config", "wiring", "crop", "predictions", "engine", "faces", "bulk"}
"""Rooms that import no framework, at the top or later, nor load one when they are imported."""


@dataclass(frozen=True)
class Import:
    """``importer`` imports ``imported``; ``lazily``: inside a function."""

    importer: str
    imported: str
    lazily: bool


@cache
def modules() -> dict[str, Path]:
    """Every module of the package, the kernels by the name that they are installed under."""
    found = {}
    for folder, package in ((ROOT / "ifan", "ifan"), (ROOT / "kernels", "ifan.kernels")):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


def room(module: str) -> str:
    """The part after ``ifan``; empty for the package itself."""
    return module.split(".")[1] if "." in module else ""


def imports_of(importer: str, source: str) -> Iterator[Import]:
    """Imports of a module, without those for type checkers alone.

    ``from a import b`` is one of ``a.b`` where that is a module; relative ones are those of a module in its package.
    """

    def walk(node: ast.AST, lazily: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from (Import(importer, name.name, lazily) for name in child.names)
            elif isinstance(child, ast.ImportFrom):
                package = importer.split(".")[: -child.level or None] if child.level else []
                origin = ".".join([*package, *([child.module] if child.module else [])])
                for name in child.names:
                    whole = f"{origin}.{name.name}"
                    yield Import(importer, whole if whole in modules() else origin, lazily)
            else:
                yield from walk(child, lazily or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    return walk(ast.parse(source), False)


@cache
def imports() -> tuple[Import, ...]:
    return tuple(one for name, path in modules().items() for one in imports_of(name, path.read_text(encoding="utf-8")))


def cycles(edges: dict[str, set[str]]) -> list[str]:
    """One path for each module that can reach itself, the shortest of its kind."""

    def path_back(start: str) -> list[str] | None:
        seen, paths = set[str](), [[start]]
        for path in paths:
            for after in sorted(edges.get(path[-1], ())):
                if after == start:
                    return [*path, after]
                if after not in seen:
                    seen.add(after)
                    paths.append([*path, after])
        return None

    found: dict[frozenset[str], str] = {}
    for start in sorted(edges):
        if path := path_back(start):
            found.setdefault(frozenset(path), " -> ".join(path))
    return sorted(found.values())


def loaded_by(module: str) -> dict[str, str]:
    """What importing a module imports, each with the module that asks for it; packages run before their modules."""
    found, queue = {module: ""}, [module]
    for name in queue:
        parts = name.split(".")
        above = [".".join(parts[:i]) for i in range(1, len(parts))]
        after = [one.imported for one in imports() if one.importer == name and not one.lazily]
        for imported in (*above, *after):
            if imported not in found:
                found[imported] = name
                queue.append(imported)
    return found


def strangers() -> set[str]:
    """Pairs of rooms that do not know each other."""
    return {
        f"{room(one.importer)} knows {room(one.imported)}"
        for one in imports()
        if one.imported.startswith("ifan.") and room(one.importer) not in ("", room(one.imported))
        if room(one.imported) not in KNOWS.get(room(one.importer), set())
    }


def framework_imports() -> set[str]:
    """Modules of `WITHOUT_FRAMEWORK` that import one, and rooms that load one."""
    inside = {name for name in modules() if room(name) in WITHOUT_FRAMEWORK}
    direct = {
        f"{one.importer} imports {one.imported.split('.')[0]}"
        for one in imports()
        if one.importer in inside and one.imported.split(".")[0] in FRAMEWORKS
    }
    return direct | {
        f"{room(name)} loads {framework}"
        for name in inside
        for framework in FRAMEWORKS & {imported.split(".")[0] for imported in loaded_by(name)}
    }


def long_signatures() -> set[str]:
    """Functions with too many parameters, except commands and Triton kernels, whose parameters are the interface."""
    found = set()
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and parameters(node) > MOST_PARAMETERS:
                kernel = any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)
                command = room(module) == "cli" and "typer." in ast.unparse(node.args)
                if not kernel and not command:
                    found.add(f"{module}.{node.name}: more than {MOST_PARAMETERS} parameters")
    return found


def parameters(function: ast.FunctionDef) -> int:
    """How many there are without ``self``; ``*`` and ``**`` count one each."""
    given = function.args
    named = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    stars = [a for a in (given.vararg, given.kwarg) if a]
    return len([name for name in named if name not in ("self", "cls")]) + len(stars)


def test_every_room_has_its_place() -> None:
    rooms = {room(name) for name in modules()} - {""}
    assert sorted(rooms - set(KNOWS)) == [], "a new room: say in KNOWS whom it may know"


@pytest.mark.parametrize("rule", [strangers, framework_imports, long_signatures], ids=lambda rule: rule.__name__)
def test_rule_holds(rule) -> None:
    assert sorted(rule()) == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    edges: dict[str, set[str]] = {}
    for one in imports():
        if one.imported in modules() and one.imported not in (one.importer, "ifan"):
            edges.setdefault(one.importer, set()).add(one.imported)
    assert cycles(edges) == []


def test_imports_are_read_rightly() -> None:
    source = """
import os.path
from ifan import config
if TYPE_CHECKING:
    import torch
def f():
    from ifan.config import NetworkConfig
class A:
    import numpy
from . import bench
from .cli.main import main
"""
    found = [(one.imported, one.lazily) for one in imports_of("ifan.x", source)]
    assert found == [
        ("os.path", False),
        ("ifan.config", False),
        ("ifan.config", True),
        ("numpy", False),
        ("ifan.bench", False),
        ("ifan.cli.main", False),
    ]


def test_cycles_are_found() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"d"}}) == ["a -> b -> c -> a", "d -> d"]
    assert cycles({"a": {"b", "c"}, "b": {"c"}}) == []


def test_parameters_are_counted() -> None:
    tree = ast.parse("def f(self, a, /, b, *c, d=1, **e): ...").body[0]
    assert isinstance(tree, ast.FunctionDef)
    assert parameters(tree) == 5
