"""The packages: nothing that is compiled or read is missing from the source archive, and licences are told apart."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKED = ("csrc", "kernels", "ifan", "tests", "examples", "docs")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], str]:
    """Names in the source archive, and what making it printed."""
    if not (ROOT / ".git").exists():
        pytest.skip("the tests run without the repository")
    folder = tmp_path_factory.mktemp("sdist")
    egg = folder / "egg"
    egg.mkdir()
    command = [sys.executable, "setup.py", "egg_info", "--egg-base", str(egg), "sdist", "--dist-dir", str(folder)]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as file:
        return {name.partition("/")[2] for name in file.getnames()}, made.stdout + made.stderr


def test_source_archive_holds_every_file_of_the_repository(archive: tuple[set[str], str]) -> None:
    listed = subprocess.run(["git", "ls-files", *PACKED], cwd=ROOT, capture_output=True, text=True, check=True)
    kept = {name for name in listed.stdout.split("\n") if name and (ROOT / name).exists()}
    assert len(kept) > 300
    assert not kept - archive[0]


def test_source_archive_holds_nothing_built(archive: tuple[set[str], str]) -> None:
    assert not [name for name in archive[0] if name.endswith((".so", ".pyc", "_build.json"))]


def test_building_warns_of_no_package_and_no_missing_file(archive: tuple[set[str], str]) -> None:
    for warning in ("would be ignored", "no directories found", "no files found", "Deprecation"):
        assert warning not in archive[1]


def test_metadata_tells_the_weights_licence_from_that_of_the_code() -> None:
    about = metadata.metadata("ifan")
    assert about["License-Expression"] == "Apache-2.0 AND MIT AND LicenseRef-ifan-weights-research-only"
    assert {"LICENSE", "LICENSE-WEIGHTS", "ifan/assets/README.md"} <= set(about.get_all("License-File") or ())
    always = [need for need in about.get_all("Requires-Dist") or () if "extra ==" not in need]
    assert len(always) == 7
    assert not [need for need in always if need.startswith(("torch", "huggingface"))]
