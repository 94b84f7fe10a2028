"""The ``xai-abn`` command."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import typer

from xai_abn.cli import benchmark, convert, distill, explain, export, listing, train
from xai_abn.errors import XaiAbnError

#: Exit code after Ctrl-C, as in a shell.
INTERRUPTED = 130

app = typer.Typer(
    name="xai-abn",
    help="Ask an image classifier where it looked.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("explain")(explain.command)
app.command("list")(listing.command)
app.add_typer(benchmark.group, name="benchmark")
app.command("distill")(distill.command)
app.command("export")(export.command)
app.command("train")(train.command)
app.command("convert")(convert.command)


@app.callback(invoke_without_command=True)
def version_option(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    """Ask an image classifier where it looked."""
    if version:
        from xai_abn import __version__

        typer.echo(f"xai-abn {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command; a mistake of the user's is one line on stderr and exit code 1."""
    warnings.showwarning = _show_warning
    try:
        app()
    except XaiAbnError as error:
        typer.echo(f"xai-abn: {error.line}", err=True)
        sys.exit(1)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            typer.echo("xai-abn: interrupted; the files written so far are complete", err=True)
        raise


_show_as_python_does = warnings.showwarning


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """Show our own warnings on one line; others as Python does."""
    if category.__module__.startswith("xai_abn."):
        typer.echo(f"warning: {' '.join(str(message).split())}", err=True)
    else:
        _show_as_python_does(message, category, *place, **more)
