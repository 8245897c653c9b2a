"""Builds the native modules beside the pure-Python package.

ifan._cpu: every csrc/cpu/*.cpp is compiled once an instruction set, csrc/cpu/runtime/*.cpp and csrc/*.cpp once,
all by ninja, with $CXX, $CXXFLAGS and $LDFLAGS. IFAN_NATIVE=auto (default): a missing or failing compiler leaves a
pure-Python install; require: that is an error; off: nothing native is built. What happened is kept in ifan/_build.json.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Distribution, Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.absolute()
MODE = os.environ.get("IFAN_NATIVE", "auto")
FLAGS = "-O3 -std=c++17 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math -Wall -Wextra -pthread"
FLAGS += " " + os.environ.get("CXXFLAGS", "")
LDFLAGS = os.environ.get("LDFLAGS", "" if sys.platform == "darwin" else "-s")
ISAS = {"baseline": ""}
if platform.machine() in ("x86_64", "AMD64"):
    ISAS |= {
        "avx2": "-mavx2 -mfma -mf16c",
        "avx512": "-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512",
    }
NOTES: dict[str, str] = {}


def compiler() -> str | None:
    """The C++ compiler: $CXX, else the first of c++, g++ and clang++ on the PATH."""
    if os.environ.get("CXX"):
        return shutil.which(os.environ["CXX"])
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def extensions() -> list[Extension]:
    """What to build; empty, with the reason noted, where nothing can be."""
    if MODE not in ("auto", "require", "off"):
        sys.exit(f"ifan: IFAN_NATIVE must be auto, require or off; got {MODE!r}. Unset it for auto.")
    if MODE == "off":
        NOTES["ifan._cpu"] = "skipped: IFAN_NATIVE=off at installation"
    elif compiler() is None:
        NOTES["ifan._cpu"] = f"skipped: no C++ compiler found (CXX={os.environ.get('CXX') or 'unset'})"
    if NOTES and MODE == "require":
        sys.exit("ifan: IFAN_NATIVE=require, but " + NOTES["ifan._cpu"])
    sources = [*sorted(ROOT.glob("csrc/cpu/**/*.cpp")), *sorted(ROOT.glob("csrc/*.cpp"))]
    return [] if NOTES else [Extension("ifan._cpu", [str(path.relative_to(ROOT)) for path in sources])]


def cpu_ninja(objects: Path, sources: list[str], target: Path) -> str:
    """The ninja file of a CPU module."""
    import pybind11  # a build requirement: absent when nothing native is built

    include = f"-I{pybind11.get_include()} -I{sysconfig.get_path('include')} -I{ROOT}/csrc/cpu -I{ROOT}/csrc"
    link = "-bundle -undefined dynamic_lookup" if sys.platform == "darwin" else "-shared -Wl,--gc-sections"
    libraries = "-ldl" if sys.platform == "linux" else ""
    lines = [
        f"rule compile\n  command = {compiler()} -MMD -MF $out.d {FLAGS} {include} $isa -c $in -o $out",
        "  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = {compiler()} {link} {LDFLAGS} -pthread $in -o $out {libraries}",
    ]
    linked = []
    for source in sources:
        kernel = Path(source).parent == Path("csrc/cpu")
        for isa in ISAS if kernel else ["once"]:
            linked.append(str(objects / isa / f"{Path(source).stem}.o"))
            flags = f"-DIFAN_ISA={isa} {ISAS[isa]}" if kernel else ""
            lines.append(f"build {linked[-1]}: compile {ROOT / source}\n  isa = {flags}")
    lines.append(f"build {target}: link {' '.join(linked)}")
    return "\n".join(lines) + "\n"


class Build(build_ext):
    """Compiles by ninja and keeps going when that fails, unless IFAN_NATIVE=require."""

    def build_extensions(self) -> None:
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name)).absolute()
            objects = Path(self.build_temp).absolute() / extension.name
            objects.mkdir(parents=True, exist_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            NOTES[extension.name] = self.compile(objects, list(extension.sources), target)
        built = [e for e in self.extensions if NOTES[e.name] == "built"]
        if MODE == "require" and len(built) < len(self.extensions):
            sys.exit(f"ifan: IFAN_NATIVE=require, but the native build failed: {NOTES}")
        self.extensions[:] = built

    def compile(self, objects: Path, sources: list[str], target: Path) -> str:
        """Build one module; returns ``built`` or the reason why not."""
        try:
            import ninja

            (objects / "build.ninja").write_text(cpu_ninja(objects, sources, target))
            subprocess.run([os.path.join(ninja.BIN_DIR, "ninja"), "-C", str(objects)], check=True)
        except subprocess.CalledProcessError:
            return f"failed: {compiler()} does not compile it (pip install -v shows its message)"
        except (ImportError, OSError) as error:
            return f"failed: {error}"
        return "built"

    def run(self) -> None:
        super().run()
        write_notes(ROOT / "ifan" if self.inplace else Path(self.build_lib, "ifan"))


class BuildPython(build_py):
    """Writes the note as well: build_ext does not run where there is nothing to compile."""

    def run(self) -> None:
        super().run()
        write_notes(ROOT / "ifan" if self.editable_mode else Path(self.build_lib, "ifan"))


def write_notes(folder: Path) -> None:
    """``_build.json``: what became of each native module."""
    if NOTES:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "_build.json").write_text(json.dumps(NOTES, indent=1) + "\n")
        for name in (name for name, note in NOTES.items() if note != "built"):
            for stale in folder.glob(name.split(".")[-1] + ".*.so"):  # left by an earlier editable installation
                stale.unlink()
        print("ifan:", "; ".join(f"{name} {note}" for name, note in NOTES.items()), file=sys.stderr)


EXTENSIONS = extensions()
NATIVE = bool(EXTENSIONS)


class NativeDistribution(Distribution):
    """Decides the wheel's tag, before anything is compiled: pure Python where nothing native is tried."""

    def has_ext_modules(self) -> bool:
        return NATIVE


if __name__ == "__main__":
    setup(
        packages=[*find_packages(include=["ifan", "ifan.*"]), "ifan.kernels"],
        package_dir={"ifan.kernels": "kernels"},
        package_data={"ifan": ["py.typed", "_build.json", "presets/*.yaml", "weights/*/*", "assets/*"]},
        ext_modules=EXTENSIONS,
        cmdclass={"build_ext": Build, "build_py": BuildPython},
        distclass=NativeDistribution,
    )
