"""The ``xai-abn`` command."""

from __future__ import annotations

import io
import signal
import sys
import warnings
from typing import Any

import typer

from xai_abn.cli.commands import VERBOSE, Program, log_to_stderr
from xai_abn.errors import XaiAbnError
from xai_abn.signals import Received

#: Exit codes after Ctrl-C and after the signal by which schedulers end a process, as in a shell.
INTERRUPTED, TERMINATED = 130, 143
_received = Received()

app = typer.Typer(
    name="xai-abn",
    cls=Program,
    help="Ask an image classifier where it looked.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

#: What to try first: command and what it does.
FIRST = (
    ("xai-abn explain example:cat", "a map by the included model"),
    ("xai-abn explain example:cat --method abn,grad-cam,center", "several methods side by side"),
    ("xai-abn list methods", "all methods, and what they cost"),
    ("xai-abn app", "look at maps and paint on them in the browser"),
    ("xai-abn doctor", "what is installed, and what is missing"),
)


@app.callback(invoke_without_command=True)
def first_contact(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", "-V", help="Print the version and exit.", is_eager=True),
    verbose: bool = typer.Option(
        False, VERBOSE, help="Print log messages to standard error. It may also follow a command."
    ),
) -> None:
    """Ask an image classifier where it looked."""
    if verbose:
        log_to_stderr()
    if version:
        from xai_abn import __version__

        typer.echo(f"xai-abn {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        width = max(len(line) for line, _ in FIRST)
        typer.echo("Ask an image classifier where it looked. Five things to try:\n")
        for line, meaning in FIRST:
            typer.echo(f"  {line:<{width}}  {meaning}")
        typer.echo("\nxai-abn --help lists all commands, xai-abn COMMAND --help the options of one.")


def main() -> None:
    """Run the command; a user's error is one line on stderr and exit code 1, or 2 if the command itself is wrong."""
    warnings.showwarning = _show_warning
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show does not end the command
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except XaiAbnError as error:
        typer.echo(f"xai-abn: {error.line}", err=True)
        sys.exit(error.exit_code)
    except (SystemExit, KeyboardInterrupt) as stop:
        if isinstance(stop, SystemExit) and stop.code != INTERRUPTED:
            raise
        for number in (signal.SIGINT, signal.SIGTERM):  # another one would end the exit with a traceback
            signal.signal(number, signal.SIG_IGN)
        advice = _advice(stop) or "the files written so far are complete"
        typer.echo(f"xai-abn: interrupted; {advice}", err=True)
        sys.exit(TERMINATED if _received.number == signal.SIGTERM else INTERRUPTED)


def _advice(stop: BaseException | None) -> str:
    """Return the text of the interruption that led to an exit: how to go on."""
    while stop is not None and not (isinstance(stop, KeyboardInterrupt) and str(stop)):
        stop = stop.__cause__ or stop.__context__
    return str(stop or "")


def _stop(number: int, _frame: object) -> None:
    """End with every file finished or left as it was; signals that come together are one."""
    if _received.counts(number):
        raise KeyboardInterrupt


_show_as_python_does = warnings.showwarning


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """Show our own warnings on one line; others as Python does."""
    if category.__module__.startswith("xai_abn."):
        typer.echo(f"warning: {' '.join(str(message).split())}", err=True)
    else:
        _show_as_python_does(message, category, *place, **more)
