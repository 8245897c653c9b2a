"""``ifan``: gathers the commands and turns the user's mistakes into one line and exit code 1."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from ifan import __version__
from ifan.cli import one_line
from ifan.cli.bench import bench
from ifan.cli.demo import demo
from ifan.cli.evaluate import evaluate
from ifan.cli.export import export
from ifan.cli.info import info
from ifan.cli.pack import pack
from ifan.cli.predict import predict
from ifan.cli.serve import serve
from ifan.cli.train import train

app = typer.Typer(
    help="Face parsing, landmarks and emotion from one network.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (info, demo, predict, serve, train, evaluate, pack, export, bench):
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ifan {__version__}")
        raise typer.Exit


@app.callback()
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
        app(args=None if arguments is None else list(arguments), prog_name="ifan")
    except (ValueError, OSError, MemoryError) as error:
        if os.environ.get("IFAN_DEBUG", "0") not in ("", "0"):
            raise
        typer.echo(
            f"error: {one_line(error) or 'not enough memory; close other programs or take smaller inputs'}", err=True
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
