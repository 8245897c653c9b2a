"""Writes the parts of docs/kernels that follow from data files and from the kernels' own code; `make docs-generated`.

Each part stands between ``<!-- name -->`` and ``<!-- /name -->`` of its page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path

from ifan.kernels.configs import CONFIGS

from tests.gpu.tools import cuda_compile, gpu_compile, records, roofline

KERNELS = Path(__file__).resolve().parents[3] / "docs" / "kernels"


def filled(page: str, parts: Mapping[str, Callable[[], str]]) -> str:
    """The page with every part made anew; ``ValueError`` for a part that has no place in it."""
    for name, make in parts.items():
        first, last = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        page = page[: page.index(first) + len(first)] + make() + page[page.index(last) :]
    return page


def triton_tables() -> str:
    """A section a version of Triton."""
    return "\n".join(
        f"## Triton {version}\n\n{gpu_compile.LEGEND}\n\n{records.markdown(table, ('kernel', 'case'))}"
        for version, table in records.read(gpu_compile.KNOWN).items()
    )


def cuda_table() -> str:
    """The kernels by the newest nvcc that is known."""
    version, table = list(records.read(cuda_compile.KNOWN).items())[-1]
    return f"nvcc {version}. {cuda_compile.LEGEND}\n\n{records.markdown(table, ('kernel', 'types'))}"


def configurations() -> str:
    """A line a GPU family."""
    names = [field.name for field in fields(next(iter(CONFIGS.values())))]
    lines = ["| family | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    lines += [
        f"| {family} | " + " | ".join(str(getattr(one, name)) for name in names) + " |"
        for family, one in CONFIGS.items()
    ]
    return "\n".join(lines) + "\n"


PAGES: dict[str, Mapping[str, Callable[[], str]]] = {
    "gpu_compile.md": {"tables": triton_tables},
    "cuda.md": {"table": cuda_table},
    "triton.md": {"configurations": configurations},
    "roofline.md": roofline.TABLES,
}


def main() -> None:
    """Write all pages, and the roofline's picture."""
    for name, parts in PAGES.items():
        page = KERNELS / name
        page.write_text(filled(page.read_text(encoding="utf-8"), parts), encoding="utf-8")
    roofline.draw(roofline.PICTURE, roofline.GPUS[1])


if __name__ == "__main__":
    main()
