"""Builds the native modules beside the pure-Python package, by ninja, with $CXX, $CXXFLAGS and $LDFLAGS.

ifan._cpu: every csrc/cpu/*.cpp is compiled once an instruction set (*_bf16.cpp for AVX512_BF16 alone), the rest once.
ifan._cuda: csrc/cuda/*, by nvcc of $CUDA_HOME/bin or the PATH; half a minute on one core, no GPU needed.
IFAN_NATIVE (default: build) and IFAN_CUDA (default: off) say what becomes of them. build: without a compiler the module
is left out; require: that is an error; off: it is left out. A compiler that fails is always an error. What happened is
kept in ifan/_build.json, ptxas' report of each CUDA kernel beside its object (editable: in build/ifan._cuda).
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
FLAGS = "-O3 -std=c++17 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math -Wall -Wextra -pthread"
FLAGS += " -fstack-protector-strong -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2 " + os.environ.get("CXXFLAGS", "")
LDFLAGS = os.environ.get("LDFLAGS", "" if sys.platform == "darwin" else "-s")
AVX512 = "-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprfchw -mprefer-vector-width=512"
X86 = platform.machine() in ("x86_64", "AMD64")
ISAS = {"baseline": ""} | ({"avx2": "-mavx2 -mfma -mf16c", "avx512": AVX512} if X86 else {})
BF16_ISAS = {"avx512bf16": AVX512 + " -mavx512bf16"} if X86 else {}
CUDA_TARGETS = ("compute_80,code=sm_80", "compute_90a,code=sm_90a", "compute_100,code=[sm_100,compute_100]")
"""Machine code for A100, H100 and B200; the last one's PTX is for whatever comes after. 8.6 and 8.9 run that of 8.0."""
SOURCES = {"ifan._cpu": ("csrc/cpu/**/*.cpp", "csrc/*.cpp"), "ifan._cuda": ("csrc/cuda/*.cu", "csrc/cuda/*.cpp")}
ASKED = {"ifan._cpu": ("IFAN_NATIVE", "build"), "ifan._cuda": ("IFAN_CUDA", "off")}
MODES = {name: (variable, os.environ.get(variable) or default) for name, (variable, default) in ASKED.items()}
NOTES: dict[str, str] = {}


def compiler() -> str | None:
    """C++ compiler: $CXX, else the first of c++, g++ and clang++ on the PATH; none on Windows: the code is POSIX."""
    names = (os.environ["CXX"],) if os.environ.get("CXX") else ("c++", "g++", "clang++")
    return None if sys.platform == "win32" else next(filter(None, map(shutil.which, names)), None)


def nvcc() -> str | None:
    """The CUDA compiler of $CUDA_HOME, else the one on the PATH."""
    home = os.environ.get("CUDA_HOME")
    return (shutil.which("nvcc", path=f"{home}/bin") if home else None) or shutil.which("nvcc")


def refusal(name: str, variable: str, mode: str) -> str | None:
    """Reason why a module is left out; ``None`` if it is built."""
    if mode not in ("build", "require", "off"):
        sys.exit(f"ifan: {variable} must be build, require or off; got {mode!r}. Unset it for {ASKED[name][1]}.")
    reason = None
    if mode == "off":
        return f"skipped: {variable}=off at installation, {variable}=build adds it"
    if compiler() is None:
        reason = f"skipped: no C++ compiler found (CXX={os.environ.get('CXX') or 'unset'})"
    elif name == "ifan._cuda" and nvcc() is None:
        reason = "skipped: nvcc is neither in $CUDA_HOME/bin nor on the PATH"
    if reason and mode == "require":
        sys.exit(f"ifan: {variable}=require, but {reason}")
    return reason


def extensions() -> list[Extension]:
    """Modules to build, each with its sources in the order of their names; why others are left out goes into NOTES."""
    refused = {name: refusal(name, *mode) for name, mode in MODES.items()}
    NOTES.update({name: reason for name, reason in refused.items() if reason})
    files = {name: [path for pattern in SOURCES[name] for path in sorted(ROOT.glob(pattern))] for name in SOURCES}
    return [Extension(n, [str(f.relative_to(ROOT)) for f in files[n]]) for n in SOURCES if n not in NOTES]


def ninja_file(rules: dict[str, str], objects: list[tuple[Path, str, str, str]], target: Path) -> str:
    """What ninja reads. ``objects``: object, rule, source and ``$flags`` of each; rule ``link`` joins them."""
    lines = [f"rule {rule}\n  command = {command}" for rule, command in rules.items()]
    lines = [line if line.startswith("rule link") else f"{line}\n  depfile = $out.d\n  deps = gcc" for line in lines]
    lines += [f"build {made}: {rule} {ROOT / source}\n  flags = {flags}" for made, rule, source, flags in objects]
    return "\n".join([*lines, f"build {target}: link {' '.join(str(item[0]) for item in objects)}", ""])


def cpu_ninja(folder: Path, sources: list[str], target: Path, include: str) -> str:
    """The ninja file of the CPU module."""
    objects = []
    for source in map(Path, sources):
        kernel = source.parent == Path("csrc/cpu")
        isas = (BF16_ISAS if source.stem.endswith("_bf16") else ISAS) if kernel else {"once": ""}
        for isa, options in isas.items():
            flags = f"-DIFAN_ISA={isa} {options}" if kernel else ""
            objects.append((folder / isa / f"{source.stem}.o", "compile", str(source), flags))
    hardened = "-shared -Wl,--gc-sections,-z,relro,-z,now,-z,noexecstack"
    link = "-bundle -undefined dynamic_lookup" if sys.platform == "darwin" else hardened
    include += f" -I{ROOT}/csrc/cpu -I{ROOT}/csrc"
    rules = {
        "compile": f"{compiler()} -MMD -MF $out.d {FLAGS} {include} $flags -c $in -o $out",
        "link": f"{compiler()} {link} {LDFLAGS} -pthread $in -o $out {'-ldl' if sys.platform == 'linux' else ''}",
    }
    return ninja_file(rules, objects, target)


def cuda_ninja(folder: Path, sources: list[str], target: Path, include: str) -> str:
    """The ninja file of the CUDA module: no torch; the CUDA runtime linked in, its names hidden from torch's own."""
    # nvcc itself says where its toolkit lies: the one on the PATH may be a script.
    said = subprocess.run([str(nvcc()), "--dryrun", "-c", "x.cu"], capture_output=True, text=True, check=False).stderr
    tops = [line.split("TOP=")[1].strip() for line in said.splitlines() if "TOP=" in line]
    folders = [Path(top, name) for top in tops for name in ("lib64", "lib", "targets/x86_64-linux/lib")]
    runtime = next((path for place in folders for path in place.glob("libcudart_static.a")), None)
    if runtime is None:
        raise OSError(f"nvcc ({nvcc()}) names no toolkit with libcudart_static.a")
    kernel = f"{nvcc()} -ccbin {compiler()} -std=c++17 -O3 -lineinfo -Xptxas -v -Xcompiler -fPIC,-fvisibility=hidden "
    kernel += " ".join(f"-gencode=arch={name}" for name in CUDA_TARGETS)
    rules = {
        ".cpp": f"{compiler()} -MMD -MF $out.d {FLAGS} {include} -I{tops[0]}/include -c $in -o $out",
        ".cu": f"{kernel} -MMD -MF $out.d -c $in -o $out > $out.log 2>&1 || (cat $out.log; exit 1)",
        "link": f"{compiler()} -shared -Wl,--exclude-libs,ALL,--gc-sections,-s $in {runtime} -ldl -lrt -o $out",
    }
    return ninja_file(rules, [(folder / f"{Path(s).stem}.o", Path(s).suffix, s, "") for s in sources], target)


class Build(build_ext):
    """Compiles by ninja; a failure says how to do without."""

    def build_extensions(self) -> None:
        import ninja
        import pybind11  # build requirements: absent when nothing native is built

        include = f"-I{pybind11.get_include()} -I{sysconfig.get_path('include')}"
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name)).absolute()
            # Kept by an editable installation, so that the next one compiles only what has changed.
            folder = (ROOT / "build" if self.editable_mode else Path(self.build_temp).absolute()) / extension.name
            folder.mkdir(parents=True, exist_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            write = cuda_ninja if extension.name == "ifan._cuda" else cpu_ninja
            try:
                (folder / "build.ninja").write_text(write(folder, list(extension.sources), target, include))
                subprocess.run([os.path.join(ninja.BIN_DIR, "ninja"), "-C", str(folder)], check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                variable, mode = MODES[extension.name]
                message = f"{variable}={mode}, but the native build failed: {error}. The compiler's message is above"
                sys.exit(
                    f"ifan: {message} (pip install -v shows it); {variable}=off installs without {extension.name}."
                )
            NOTES[extension.name] = "built"

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
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "_build.json").write_text(json.dumps(NOTES, indent=1) + "\n")
    for name in (name for name, note in NOTES.items() if note != "built"):
        for stale in folder.glob(name.split(".")[-1] + ".*.so"):  # left by an earlier editable installation
            stale.unlink()
    print("ifan:", "; ".join(f"{name} {note}" for name, note in NOTES.items()), file=sys.stderr)


class NativeDistribution(Distribution):
    """Tags the wheel for this platform if something native is built, else for any: setuptools counts an empty list."""

    def has_ext_modules(self) -> bool:
        return bool(self.ext_modules)


if __name__ == "__main__":
    setup(
        packages=[*find_packages(include=["ifan", "ifan.*"]), "ifan.kernels"],
        package_dir={"ifan.kernels": "kernels"},
        package_data={"ifan": ["py.typed", "_build.json", "presets/*.yaml", "weights/*/*", "assets/*", "bench/*.yaml"]},
        include_package_data=False,
        ext_modules=extensions(),
        cmdclass={"build_ext": Build, "build_py": BuildPython},
        distclass=NativeDistribution,
    )
