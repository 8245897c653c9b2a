"""``ifan``: gathers the commands and turns the user's mistakes into one line and exit code 1."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

from ifan import __version__
from ifan.cli import one_line

COMMANDS = {
    "info": "Show versions, processor, backends, settings and weights.",
    "demo": "Analyse the portrait in the package.",
    "predict": "Analyse photos and clips: files for each, or one table.",
    "live": "Show a camera's faces in a window.",
    "serve": "Serve a page to try the network, on this machine only.",
    "train": "Train one network on datasets that each label some of its tasks.",
    "evaluate": "Measure weights on datasets, beside a constant predictor.",
    "pack": "Pack datasets into files that load fast.",
    "export": "Write the network for other runtimes.",
    "bench": "Measure speed against other ways to run the same network.",
}
"""The commands, each a function in a module of that name, in the order of the help; the help imports none of them."""


def application(command: str | None = None) -> typer.Typer:
    """The command line with that command alone, or without its name with all of them as the help lists them.

    Reading the options of all commands would take longer than most of them.
    """
    app = typer.Typer(
        help="Face parsing, landmarks and emotion from one network.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # rich takes longer to import than all else that the help needs
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    if command:
        app.command(command)(getattr(import_module(f"ifan.cli.{command}"), command))
    else:
        for name, summary in COMMANDS.items():
            app.command(name, help=summary)(_listed)
    return app


def _listed() -> None:
    """Stands for a command in the help."""


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ifan {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Face parsing, landmarks and emotion from one network."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    A ``ValueError``, ``OSError`` or ``MemoryError`` is the user's to mend: one line on stderr, exit code 1. With
    ``IFAN_DEBUG=1`` in the environment its traceback is shown instead.
    """
    try:
        given = sys.argv[1:] if arguments is None else list(arguments)
        first = next((word for word in _completed() or given if not word.startswith("-")), None)
        application(first if first in COMMANDS else None)(args=given, prog_name="ifan")
    except (ValueError, OSError, MemoryError) as error:
        if os.environ.get("IFAN_DEBUG", "0") not in ("", "0"):
            raise
        typer.echo(
            f"error: {one_line(error) or 'not enough memory; close other programs or take smaller inputs'}", err=True
        )
        sys.exit(1)


def _completed() -> list[str]:
    """The words after ``ifan`` on the line that a shell asks to complete; none in an ordinary call."""
    if "_IFAN_COMPLETE" not in os.environ:
        return []
    line = os.environ.get("_TYPER_COMPLETE_ARGS") or os.environ.get("COMP_WORDS", "")
    return line.split()[1:]


if __name__ == "__main__":
    main()
