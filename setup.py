"""Builds the native modules beside the pure-Python package.

ifan._cpu: every csrc/cpu/*.cpp is compiled once an instruction set (*_bf16.cpp for AVX512_BF16 alone),
csrc/cpu/runtime/*.cpp and csrc/*.cpp once, all by ninja, with $CXX, $CXXFLAGS and $LDFLAGS. IFAN_NATIVE=auto
(default): a missing or failing compiler leaves a pure-Python install; require: that is an error; off: nothing native is
built. What happened is kept in ifan/_build.json.

ifan._cuda: csrc/cuda/*, where nvcc lies in $CUDA_HOME/bin or on the PATH; half a minute on one core, no GPU needed.
IFAN_CUDA=auto (default), require and off mean the same for it. ptxas' report of each kernel is kept beside its object,
after an editable installation in build/ifan._cuda.
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
FLAGS += " -fstack-protector-strong -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2 " + os.environ.get("CXXFLAGS", "")
LDFLAGS = os.environ.get("LDFLAGS", "" if sys.platform == "darwin" else "-s")
ISAS = {"baseline": ""}
if platform.machine() in ("x86_64", "AMD64"):
    ISAS |= {
        "avx2": "-mavx2 -mfma -mf16c",
        "avx512": "-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprfchw -mprefer-vector-width=512",
    }
# Of the files *_bf16.cpp: kernels that exist for this instruction set alone.
BF16_ISAS = {"avx512bf16": ISAS["avx512"] + " -mavx512bf16"} if "avx512" in ISAS else {}
CUDA = os.environ.get("IFAN_CUDA", "auto")
CUDA_TARGETS = ("compute_80,code=sm_80", "compute_90a,code=sm_90a", "compute_100,code=[sm_100,compute_100]")
"""Machine code for A100, H100 and B200; the last one's PTX is for whatever comes after. 8.6 and 8.9 run that of 8.0."""
NOTES: dict[str, str] = {}


def compiler() -> str | None:
    """The C++ compiler: $CXX, else the first of c++, g++ and clang++ on the PATH."""
    if os.environ.get("CXX"):
        return shutil.which(os.environ["CXX"])
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def extensions() -> list[Extension]:
    """What to build; empty, with the reason noted, where nothing can be."""
    for variable, mode in (("IFAN_NATIVE", MODE), ("IFAN_CUDA", CUDA)):
        if mode not in ("auto", "require", "off"):
            sys.exit(f"ifan: {variable} must be auto, require or off; got {mode!r}. Unset it for auto.")
    if MODE == "off":
        NOTES["ifan._cpu"] = "skipped: IFAN_NATIVE=off at installation"
    elif compiler() is None:
        NOTES["ifan._cpu"] = f"skipped: no C++ compiler found (CXX={os.environ.get('CXX') or 'unset'})"
    if NOTES and MODE == "require":
        sys.exit("ifan: IFAN_NATIVE=require, but " + NOTES["ifan._cpu"])
    found = [] if NOTES else [extension("ifan._cpu", "csrc/cpu/**/*.cpp", "csrc/*.cpp")]
    if CUDA == "off" or nvcc() is None or not found:
        reason = (
            "IFAN_CUDA=off at installation" if CUDA == "off" else "nvcc is neither in $CUDA_HOME/bin nor on the PATH"
        )
        NOTES["ifan._cuda"] = f"skipped: {reason}" if found else NOTES["ifan._cpu"]
        if CUDA == "require":
            sys.exit("ifan: IFAN_CUDA=require, but " + NOTES["ifan._cuda"])
        return found
    return [*found, extension("ifan._cuda", "csrc/cuda/*.cu", "csrc/cuda/*.cpp")]


def extension(name: str, *patterns: str) -> Extension:
    """A module of all sources that match, each pattern in the order of its files' names."""
    return Extension(name, [str(path.relative_to(ROOT)) for pattern in patterns for path in sorted(ROOT.glob(pattern))])


def nvcc() -> str | None:
    """The CUDA compiler of $CUDA_HOME, else the one on the PATH."""
    home = os.environ.get("CUDA_HOME")
    return (shutil.which("nvcc", path=f"{home}/bin") if home else None) or shutil.which("nvcc")


def cuda_ninja(objects: Path, sources: list[str], target: Path) -> str:
    """The ninja file of the CUDA module: no torch; the CUDA runtime linked in, its names hidden from torch's own."""
    import pybind11

    # nvcc itself says where its toolkit lies: the one on the PATH may be a script.
    said = subprocess.run([str(nvcc()), "--dryrun", "-c", "x.cu"], capture_output=True, text=True, check=False).stderr
    tops = [line.split("TOP=")[1].strip() for line in said.splitlines() if "TOP=" in line]
    folders = [Path(top, folder) for top in tops for folder in ("lib64", "lib", "targets/x86_64-linux/lib")]
    runtime = next((path for folder in folders for path in folder.glob("libcudart_static.a")), None)
    if runtime is None:
        raise OSError(f"nvcc ({nvcc()}) names no toolkit with libcudart_static.a")
    include = f"-I{pybind11.get_include()} -I{sysconfig.get_path('include')} -I{tops[0]}/include"
    targets = " ".join(f"-gencode=arch={name}" for name in CUDA_TARGETS)
    kernel = f"{nvcc()} -ccbin {compiler()} -std=c++17 -O3 -lineinfo -Xptxas -v {targets}"
    kernel += " -Xcompiler -fPIC,-fvisibility=hidden"
    link = f"{compiler()} -shared -Wl,--exclude-libs,ALL,--gc-sections,-s"
    lines = [
        f"rule bind\n  command = {compiler()} -MMD -MF $out.d {FLAGS} {include} -c $in -o $out",
        "  depfile = $out.d\n  deps = gcc",
        f"rule kernel\n  command = {kernel} -MMD -MF $out.d -c $in -o $out > $out.log 2>&1 || (cat $out.log; exit 1)",
        "  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = {link} $in {runtime} -ldl -lrt -pthread -o $out",
    ]
    linked = [str(objects / f"{Path(source).stem}.o") for source in sources]
    for source, made in zip(sources, linked, strict=True):
        lines.append(f"build {made}: {'kernel' if source.endswith('.cu') else 'bind'} {ROOT / source}")
    lines.append(f"build {target}: link {' '.join(linked)}")
    return "\n".join(lines) + "\n"


def cpu_ninja(objects: Path, sources: list[str], target: Path) -> str:
    """The ninja file of a CPU module."""
    import pybind11  # a build requirement: absent when nothing native is built

    include = f"-I{pybind11.get_include()} -I{sysconfig.get_path('include')} -I{ROOT}/csrc/cpu -I{ROOT}/csrc"
    hardened = "-Wl,--gc-sections,-z,relro,-z,now,-z,noexecstack"
    link = "-bundle -undefined dynamic_lookup" if sys.platform == "darwin" else f"-shared {hardened}"
    libraries = "-ldl" if sys.platform == "linux" else ""
    lines = [
        f"rule compile\n  command = {compiler()} -MMD -MF $out.d {FLAGS} {include} $isa -c $in -o $out",
        "  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = {compiler()} {link} {LDFLAGS} -pthread $in -o $out {libraries}",
    ]
    linked = []
    for source in sources:
        kernel = Path(source).parent == Path("csrc/cpu")
        isas = (BF16_ISAS if Path(source).stem.endswith("_bf16") else ISAS) if kernel else {"once": ""}
        for isa, options in isas.items():
            linked.append(str(objects / isa / f"{Path(source).stem}.o"))
            flags = f"-DIFAN_ISA={isa} {options}" if kernel else ""
            lines.append(f"build {linked[-1]}: compile {ROOT / source}\n  isa = {flags}")
    lines.append(f"build {target}: link {' '.join(linked)}")
    return "\n".join(lines) + "\n"


class Build(build_ext):
    """Compiles by ninja and keeps going when that fails, unless IFAN_NATIVE=require."""

    def build_extensions(self) -> None:
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name)).absolute()
            # Kept by an editable installation, so that the next one compiles only what has changed.
            objects = (ROOT / "build" if self.editable_mode else Path(self.build_temp).absolute()) / extension.name
            objects.mkdir(parents=True, exist_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            NOTES[extension.name] = self.compile(objects, list(extension.sources), target)
        built = [e for e in self.extensions if NOTES[e.name] == "built"]
        for variable, mode, name in (("IFAN_NATIVE", MODE, "ifan._cpu"), ("IFAN_CUDA", CUDA, "ifan._cuda")):
            if mode == "require" and NOTES[name] != "built":
                sys.exit(f"ifan: {variable}=require, but the native build failed: {NOTES}")
        self.extensions[:] = built

    def compile(self, objects: Path, sources: list[str], target: Path) -> str:
        """Build one module; returns ``built`` or the reason why not."""
        try:
            import ninja

            written = (cuda_ninja if target.name.startswith("_cuda.") else cpu_ninja)(objects, sources, target)
            (objects / "build.ninja").write_text(written)
            subprocess.run([os.path.join(ninja.BIN_DIR, "ninja"), "-C", str(objects)], check=True)
        except subprocess.CalledProcessError:
            used = nvcc() if target.name.startswith("_cuda.") else compiler()
            return f"failed: {used} does not compile it (pip install -v shows its message)"
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
