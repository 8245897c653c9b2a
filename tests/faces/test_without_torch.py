"""Photos are analysed without PyTorch: where it is installed it is not imported, where it is not nothing is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ifan.native import cpu_refusal
from ifan.optional import MissingPackageError, require

ROOT = Path(__file__).resolve().parents[2]
PORTRAIT = ROOT / "ifan" / "assets" / "astronaut.png"
NO_TORCH = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""
pytestmark = pytest.mark.skipif(cpu_refusal() is not None, reason=f"no native kernels: {cpu_refusal()}")


def python(code: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=check)


@pytest.mark.parametrize("before", ["", NO_TORCH], ids=["installed", "missing"])
def test_a_photo_is_analysed_without_torch(before: str) -> None:
    python(before + f"import sys, ifan; r = ifan.load()({str(PORTRAIT)!r}); assert len(r) == 1\n"
           "assert r[0].best('emotion')[0] == 'happy' and 'torch' not in sys.modules")  # fmt: skip


def test_what_needs_torch_says_how_to_get_it() -> None:
    python(
        NO_TORCH + "import ifan\n"
        "for use in (lambda: ifan.IFAN, lambda: ifan.use_backend, lambda: ifan.load(device='cuda')):\n"
        "    try: use()\n"
        "    except ImportError as error:\n"
        "        assert \"needs PyTorch: pip install 'ifan[torch]'\" in str(error), error\n"
        "    else: raise AssertionError(use)"
    )


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--config", "paper-64", "--data", "toy=toy:8", "--out", "run"],
        ["evaluate", "--weights", "paper-64", "--data", "toy=toy:8"],
        ["predict", "photo.png", "--out", "out", "--device", "cuda"],
    ],
    ids=lambda command: command[0],
)
def test_commands_that_need_torch_say_so_in_one_line(command: list[str]) -> None:
    done = python(NO_TORCH + "from ifan.cli.main import main; main(sys.argv[1:])", *command, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "needs PyTorch: pip install 'ifan[torch]'" in done.stderr


def test_commands_that_need_none_run(tmp_path: Path) -> None:
    run = NO_TORCH + "from ifan.cli.main import main; main(sys.argv[1:])"
    python(run, "predict", str(PORTRAIT), "--out", str(tmp_path / "folder"))
    python(run, "predict", str(PORTRAIT), "--out", str(tmp_path / "table.jsonl"))
    assert (tmp_path / "folder" / "astronaut.json").exists()
    assert json.loads((tmp_path / "table.jsonl").read_text())["emotion"] == "happy"
    assert "needs PyTorch: pip install" in python(run, "info").stdout


def test_a_missing_package_is_an_import_error_and_the_users_to_mend() -> None:
    with pytest.raises(MissingPackageError, match=r"^this needs Nothing: pip install 'ifan\[nothing\]'$") as error:
        require("this", "nothing_of_that_name", "Nothing", "ifan[nothing]")
    assert isinstance(error.value, ImportError)
    assert isinstance(error.value, ValueError)
