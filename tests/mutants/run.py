"""``python -m tests.mutants.run``: changes the code in many small ways and says which of them no test notices.

Each change is made in a copy of the working tree, where the tests of its area (``areas.yaml``) run until one fails,
first those named after the changed file. A change that none notices is a survivor: a test is missing, or the change
makes no difference (``equivalent.yaml`` lists those).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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

LONGEST = 900.0
"""Seconds that the tests of an area may take; a change may make a loop endless."""


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

    def test(self, tests: Sequence[str], limit: float) -> int | None:
        """Exit code of pytest, which stops at the first failure; ``None`` after ``limit`` seconds."""
        child = os.fork()
        if child == 0:
            code = 99
            try:
                code = self._in_child(tests)
            finally:
                os._exit(code)
        return _wait(child, limit)

    def _in_child(self, tests: Sequence[str]) -> int:
        os.setsid()
        os.chdir(self.folder)
        with open(self.folder.with_suffix(".log"), "wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
            del sys.modules[name]
        sys.path.insert(0, str(self.folder))
        os.environ["PYTHONPATH"] = str(self.folder)
        sys.dont_write_bytecode = True  # what is changed leaves nothing behind
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        import pytest

        return int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests]))


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


def tests_of(site: Site) -> list[str]:
    """The tests of a site's area, files named after the changed one first."""
    stem = Path(site.file).stem
    files = [path for place in site.area.tests for path in sorted((ROOT / place).rglob("test_*.py"))]
    named = [path for path in files if stem in path.stem]
    return [*(str(path.relative_to(ROOT)) for path in named), *site.area.tests]


def check(copy: Copy, area: Area) -> None:
    """Raise ``SystemExit`` if a test of an area fails without a change."""
    if copy.test(area.tests, LONGEST) != 0:
        sys.exit(
            f"mutants: the tests of {area.name} fail as they are, see {copy.folder.with_suffix('.log')}: mend them"
        )


def judge(copy: Copy, site: Site) -> Outcome:
    """Make a change and see whether a test notices."""
    began = time.monotonic()
    maker = python if site.file.endswith(".py") else cpp
    mutant = maker.mutant((ROOT / site.file).read_text(encoding="utf-8"), site.number)

    def outcome(status: str) -> Outcome:
        return Outcome(site, mutant, status, time.monotonic() - began)

    if _is_equivalent(site.file, mutant.what):
        return outcome("equivalent")
    with copy.changed(site, mutant):
        if maker is cpp and not build(copy, site.file):
            return outcome("no build")
        code = copy.test(tests_of(site), LONGEST)
    return outcome({None: "timeout", 0: "survived"}.get(code, "killed"))


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
    (module,) = copy.folder.glob("ifan/_cpu*.so")
    module.unlink()  # another file: the one that is there may be in use
    link = re.sub(r"-o \S+", f"-o {module}", link.replace(str(made), str(target)))
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


def _begin_worker() -> None:
    global _copy
    _copy = Copy(KEPT / f"copy-{os.getpid()}")


def _judge(site: Site) -> Outcome:
    return judge(_copy, site)


def main() -> None:
    """Prints a line a change, then the survivors and their share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("python", "cpp"), default="python", help="whose code is changed")
    parser.add_argument("--count", type=int, default=200, help="how many changes")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--areas", nargs="*", help="names of areas.yaml; all if left out")
    parser.add_argument("--trusted", action="store_true", help="the tests pass as they are: do not run them first")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args()
    chosen = [area for area in areas(options.kind) if not options.areas or area.name in options.areas]
    listed = sites(chosen, (python if options.kind == "python" else cpp).count)
    sample = random.Random(options.seed).sample(listed, min(options.count, len(listed)))
    for name in PRELOADED:
        importlib.import_module(name)
    KEPT.mkdir(parents=True, exist_ok=True)
    if not options.trusted:
        unchanged = Copy(KEPT / "unchanged")
        for area in chosen:
            check(unchanged, area)
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
