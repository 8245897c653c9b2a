"""The command line as a whole: help, version, information, errors in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from ifan import __version__
from ifan.cli import main as cli
from ifan.cli.info import ENVIRONMENT
from ifan.cli.options import over_all

ROOT = Path(__file__).resolve().parents[2]


COMMANDS = ("info", "demo", "predict", "serve", "train", "evaluate", "pack", "export", "bench")


def test_the_help_fits_a_terminal(run) -> None:
    _, text, _ = run("--help")
    assert max(map(len, text.splitlines())) <= 80
    assert "..." not in text.partition("Commands:")[2]


@pytest.mark.parametrize(
    ("line", "found"), [("ifan ev", "evaluate"), ("ifan predict --recu", "--recursive")], ids=["command", "option"]
)
def test_a_shell_completes(run, monkeypatch: pytest.MonkeyPatch, line: str, found: str) -> None:
    monkeypatch.setenv("_IFAN_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    code, text, _ = run()
    assert (code, text.split()) == (0, [found])


def test_help_names_every_command_without_torch() -> None:
    """In a process of its own: what an import drags in is what makes a command line slow."""
    code = (
        "import sys\nfrom ifan.cli.main import main\ntry:\n    main(['--help'])\nfinally:\n"
        "    heavy = {'torch', 'huggingface_hub', 'numpy', 'rich', 'ifan.config'} & set(sys.modules)\n"
        "    print('heavy:', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "heavy: []" in done.stdout
    for name in COMMANDS:
        assert f" {name} " in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run, command: str) -> None:
    code, text, _ = run(command, "--help")
    assert code == 0
    assert "Usage: ifan " + command in " ".join(text.split())


def test_progress_of_several_datasets_is_one() -> None:
    said: list[tuple[int, int]] = []
    note = over_all({"a": [1, 2], "b": [3]}, lambda done, total, failed=0: said.append((done, total)))
    note("a", 1, 2)
    note("a", 2, 2)
    note("b", 1, 1)
    assert said == [(1, 3), (2, 3), (3, 3)]


def test_version(run) -> None:
    assert run("--version") == (0, f"ifan {__version__}\n", "")


def test_info_as_json(run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="the figures of PyTorch are looked at")
    monkeypatch.setenv("IFAN_DEBUG", "0")
    code, text, _ = run("info", "--json")
    facts = json.loads(text)
    assert code == 0
    assert facts["versions"]["ifan"] == __version__
    assert facts["versions"]["torch"]
    assert facts["processor"]["name"]
    assert facts["processor"]["threads"] >= 1
    assert facts["environment"]["IFAN_DEBUG"] == "0"
    assert len(ENVIRONMENT) <= 4
    backends = {b["name"]: b for b in facts["backends"]}
    assert list(backends) == ["reference", "cpu", "triton", "cuda"]
    assert backends["reference"]["available"]
    assert facts["cuda_graphs"].startswith(("has not run on a GPU", "checked on "))
    has_bf16 = backends["cpu"]["available"] and "avx512_bf16" in facts["processor"]["features"]
    assert (facts["processor"]["bf16_missing"] is None) == has_bf16
    assert all(b["available"] or (b["reason"] and b["fix"]) for b in backends.values())


def test_info_tables_hold_what_the_json_holds(run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="the figures of PyTorch are looked at")
    monkeypatch.setenv("COLUMNS", "200")
    code, text, _ = run("info")
    assert code == 0
    for word in ("torch", "processor", "bf16", "reference", "triton", "one CUDA graph a batch size", *ENVIRONMENT):
        assert word in text


@pytest.mark.parametrize("error", [ValueError("a\nb"), FileNotFoundError(2, "No such file", "x.yaml")])
def test_user_errors_are_one_line(run, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "application", lambda _: app)
    monkeypatch.delenv("IFAN_DEBUG", raising=False)
    code, text, errors = run()
    assert (code, text, errors.count("\n")) == (1, "", 1)
    assert errors.startswith("error: ")
    monkeypatch.setenv("IFAN_DEBUG", "1")
    with pytest.raises(type(error)):
        cli.main([])


def test_unknown_command_is_a_usage_error(run) -> None:
    code, _, errors = run("prdict")
    assert code == 2
    assert "prdict" in errors
