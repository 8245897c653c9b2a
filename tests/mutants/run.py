"""``python -m tests.mutants.run``: changes the code in many small ways and says which of them no test notices.

Each change is made in a copy of the working tree, where first the tests that run the changed line are called, shortest
first, and then, if they notice nothing, all tests of its area (``areas.yaml``). A change that nothing notices is a
survivor: a test is missing, or the change makes no difference (``equivalent.yaml`` lists those).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.mutants import cpp, python
from tests.mutants.python import Mutant

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KEPT = ROOT / "build" / "mutants"
PRELOADED = (
    "numpy",
    "torch",
    "cv2",
    "av",
    "yaml",
    "hypothesis",
    "pytest",
    "_pytest.assertion.rewrite",
    "safetensors.torch",
)
"""Imported once, before the processes that test a change are forked: nothing of ours."""

FIRST_SECONDS = 30.0
"""Of tests that run the changed line, before all others."""


@dataclass(frozen=True, slots=True)
class Area:
    """Files that are changed together with the tests that should notice."""

    name: str
    files: tuple[str, ...]
    tests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Site:
    """The ``number``-th change of a file."""

    area: Area
    file: str
    number: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a change: ``killed``, ``timeout``, ``survived``, ``equivalent``, or ``no build``."""

    site: Site
    mutant: Mutant
    status: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.status:10} {self.seconds:5.0f} s  {self.site.file}:{self.mutant.line}  {self.mutant.what}"


def areas(kind: str) -> list[Area]:
    """Areas of ``areas.yaml``."""
    listed = yaml.safe_load((HERE / "areas.yaml").read_text(encoding="utf-8"))[kind]
    found = []
    for name, area in listed.items():
        files = [str(path.relative_to(ROOT)) for pattern in area["files"] for path in sorted(ROOT.glob(pattern))]
        found.append(Area(name, tuple(files), tuple(area["tests"])))
    return found


def sites(chosen: Sequence[Area], counted: Callable[[str], int]) -> list[Site]:
    """All changes of all files; of a file in two areas, in the first one."""
    found: dict[str, list[Site]] = {}
    for area in chosen:
        for file in area.files:
            if file not in found:
                found[file] = [Site(area, file, i) for i in range(counted((ROOT / file).read_text(encoding="utf-8")))]
    return [site for listed in found.values() for site in listed]


class Copy:
    """A copy of the working tree, in which one process at a time runs tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout.splitlines()  # fmt: skip
        built = [
            str(path.relative_to(ROOT)) for name in ("_cpu.*", "_build.json") for path in ROOT.glob(f"ifan/{name}")
        ]
        shutil.rmtree(folder, ignore_errors=True)
        for file in [*listed, *built]:
            if (ROOT / file).is_file():
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / file, folder / file)
        (folder / "ifan" / "kernels").symlink_to("../kernels")

    @contextlib.contextmanager
    def changed(self, site: Site, mutant: Mutant) -> Iterator[None]:
        """The copy with one change."""
        path = self.folder / site.file
        before = path.stat()
        path.write_text(mutant.text, encoding="utf-8")
        try:
            yield
        finally:
            shutil.copy2(ROOT / site.file, path)
            assert path.stat().st_mtime_ns == before.st_mtime_ns

    def test(self, tests: Sequence[str], limit: float, plugin: Callable[[], Any] | None = None) -> int | None:
        """Exit code of pytest, ``None`` after ``limit`` seconds; ``plugin`` gives one, whose result goes to a file."""
        child = os.fork()
        if child == 0:
            code = 99
            try:
                code = self._in_child(tests, plugin)
            finally:
                os._exit(code)
        return _wait(child, limit)

    def _in_child(self, tests: Sequence[str], plugin: Callable[[], Any] | None) -> int:
        os.setsid()
        os.chdir(self.folder)
        with open(self.folder.with_suffix(".log"), "wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
            del sys.modules[name]
        sys.path.insert(0, str(self.folder))
        os.environ["PYTHONPATH"] = str(self.folder)
        if plugin is None:  # what is changed leaves nothing behind
            sys.dont_write_bytecode = True
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        import pytest

        made = plugin() if plugin else None
        options = ["-q", "-p", "no:cacheprovider", *(() if made else ("-x",))]
        code = pytest.main([*options, *tests], [made] if made else [])
        if made:
            self.folder.with_suffix(".json").write_text(json.dumps(made.result()))
        return int(code)


def _wait(child: int, limit: float) -> int | None:
    """Exit code of a process; ends it, with all that it started, after ``limit`` seconds."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


@dataclass(frozen=True, slots=True)
class Baseline:
    """What the unchanged tests of an area take, and which of them run a line."""

    seconds: dict[str, float]
    lines: dict[str, dict[str, list[str]]]

    def running(self, file: str, line: int) -> list[str]:
        """Tests that run a line, shortest first, for at most `FIRST_SECONDS`."""
        found, total = [], 0.0
        for test in sorted(self.lines.get(file, {}).get(str(line), []), key=lambda test: self.seconds.get(test, 0.0)):
            total += self.seconds.get(test, 0.0)
            if found and total > FIRST_SECONDS:
                break
            found.append(test)
        return found


def baseline(copy: Copy, area: Area) -> Baseline:
    """Made once for the files as they are; raises ``SystemExit`` if a test fails without a change."""
    files = [path for place in area.tests for path in _files(ROOT / place)] + [ROOT / file for file in area.files]
    state = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
    kept = KEPT / f"{area.name}-{state}.json"
    if not kept.exists():
        from tests.mutants.coverage_plugin import LinesOfTests

        sources = [str(copy.folder / file) for file in area.files if file.endswith(".py")]
        code = copy.test(area.tests, 3600, lambda: LinesOfTests(sources or ["none"]))
        if code != 0:
            sys.exit(
                f"mutants: the tests of {area.name} fail as they are ({copy.folder.with_suffix('.log')}): mend them"
            )
        found = json.loads(copy.folder.with_suffix(".json").read_text())
        found["lines"] = {str(Path(file).relative_to(copy.folder)): lines for file, lines in found["lines"].items()}
        kept.write_text(json.dumps(found))
    found = json.loads(kept.read_text())
    return Baseline(found["seconds"], found["lines"])


def _files(place: Path) -> list[Path]:
    return sorted(place.rglob("*.py")) if place.is_dir() else [place]


def judge(copy: Copy, site: Site, of: Baseline) -> Outcome:
    """Make a change and see whether a test notices."""
    began = time.monotonic()
    maker = python if site.file.endswith(".py") else cpp
    mutant = maker.mutant((ROOT / site.file).read_text(encoding="utf-8"), site.number)
    everything = sum(of.seconds.values())

    def outcome(status: str) -> Outcome:
        return Outcome(site, mutant, status, time.monotonic() - began)

    if _is_equivalent(site.file, mutant.what):
        return outcome("equivalent")
    with copy.changed(site, mutant):
        if maker is cpp and not build(copy, site.file):
            return outcome("no build")
        first = of.running(site.file, mutant.line)
        for tests in filter(None, (first, site.area.tests)):
            code = copy.test(tests, 60 + 5 * min(everything, 60 if tests is first else everything))
            if code != 0:
                return outcome("timeout" if code is None else "killed")
    return outcome("survived")


def _is_equivalent(file: str, what: str) -> bool:
    listed = yaml.safe_load((HERE / "equivalent.yaml").read_text(encoding="utf-8")) or {}
    return what in listed.get(file, {})


def build(copy: Copy, file: str) -> bool:
    """Compile a changed C++ file for this processor and link it with the other objects; true if it compiles."""
    folder, target = _objects(), copy.folder.with_suffix(".o")
    made = folder / (_isa() if Path(file).parent == Path("csrc/cpu") else "once") / f"{Path(file).stem}.o"
    listed = [sys.executable, "-m", "ninja", "-C", str(folder), "-t", "commands"]
    *compiles, link = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.splitlines()
    (command,) = (line for line in compiles if f"-o {made}" in line)
    command = command.replace(str(ROOT / file), str(copy.folder / file)).replace(str(made), str(target))
    if subprocess.run(command, shell=True, cwd=folder, capture_output=True, check=False).returncode:
        return False
    ((original, module),) = zip(ROOT.glob("ifan/_cpu*.so"), copy.folder.glob("ifan/_cpu*.so"), strict=True)
    module.unlink()
    link = link.replace(str(made), str(target)).replace(str(original), str(module))
    subprocess.run(link, shell=True, cwd=folder, capture_output=True, check=True)
    return True


@functools.cache
def _objects() -> Path:
    """Folder of what compiling the package last left: ninja's file and the objects."""
    found = sorted(ROOT.glob("build/**/ifan._cpu/build.ninja"), key=lambda path: path.stat().st_mtime)
    if not found:
        sys.exit("mutants: expected compiled objects in build/; got none: run make clean test")
    return found[-1].parent


@functools.cache
def _isa() -> str:
    """Instruction set of the kernels that run here."""
    command = "from ifan.ops.native import cpu_module; print(cpu_module().features()['isa'])"
    asked = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    return asked.stdout.strip()


_copy: Copy
_baselines: dict[str, Baseline]


def _begin_worker() -> None:
    global _copy
    _copy = Copy(KEPT / f"copy-{os.getpid()}")


def _judge(site: Site) -> Outcome:
    return judge(_copy, site, _baselines[site.area.name])


def main() -> None:
    """Prints a line a change, then the survivors and their share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("python", "cpp"), default="python", help="whose code is changed")
    parser.add_argument("--count", type=int, default=200, help="how many changes")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--areas", nargs="*", help="names of areas.yaml; all if left out")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args()
    chosen = [area for area in areas(options.kind) if not options.areas or area.name in options.areas]
    listed = sites(chosen, (python if options.kind == "python" else cpp).count)
    sample = random.Random(options.seed).sample(listed, min(options.count, len(listed)))
    for name in PRELOADED:
        importlib.import_module(name)
    KEPT.mkdir(parents=True, exist_ok=True)
    first = Copy(KEPT / "baseline")
    global _baselines
    _baselines = {area.name: baseline(first, area) for area in chosen if any(site.area == area for site in sample)}
    outcomes = []
    with multiprocessing.get_context("fork").Pool(options.jobs, _begin_worker) as pool:
        for outcome in pool.imap_unordered(_judge, sample):
            print(outcome, flush=True)
            outcomes.append(outcome)
    print(report(outcomes, len(listed), options.seed))


def report(outcomes: Sequence[Outcome], of: int, seed: int) -> str:
    """Survivors, and the share that they are of the changes that make a difference."""
    counted = Counter(outcome.status for outcome in outcomes)
    lines = [str(outcome) for outcome in outcomes if outcome.status == "survived"]
    judged = len(outcomes) - counted["equivalent"] - counted["no build"]
    lines.append(f"{len(outcomes)} of {of} changes, seed {seed}: " + ", ".join(f"{n} {k}" for k, n in counted.items()))
    lines.append(f"survived: {counted['survived']} of {judged}, {counted['survived'] / max(judged, 1):.1%}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
