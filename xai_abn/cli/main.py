"""The ``xai-abn`` command."""

from __future__ import annotations

import copy
import io
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from xai_abn.cli.commands import VERBOSE, Command, log_to_stderr
from xai_abn.errors import XaiAbnError
from xai_abn.signals import Received

#: Exit codes after Ctrl-C and after the signal by which schedulers end a process, as in a shell.
INTERRUPTED, TERMINATED = 130, 143
_HELP = ["-h", "--help"]
_received = Received()

#: Of each command its module, which is imported when it is asked for, and its line in the help.
COMMANDS = {
    "explain": ("xai_abn.cli.explain", "Explain images: where did the classifier look?"),
    "list": (
        "xai_abn.cli.listing",
        "List methods, metrics, models, kinds of data sets, networks to train, or a model's layers or labels.",
    ),
    "evaluate": ("xai_abn.cli.evaluate", "Measure how often a model predicts the right class."),
    "distill": (
        "xai_abn.cli.distill",
        "Turn a classifier into an Attention Branch Network on unlabeled images, and check its map.",
    ),
    "export": ("xai_abn.cli.export", "Write a model as ONNX, with its maps."),
    "train": ("xai_abn.cli.train", "Train an Attention Branch Network, or a plain classifier, on labeled images."),
    "convert": (
        "xai_abn.cli.convert",
        "Convert a network saved by the ABN code of Fukui et al. No code in the file is executed.",
    ),
    "app": (
        "xai_abn.cli.app",
        "Start a page in the browser: look at maps, paint on them, save corrections. Nothing leaves this computer.",
    ),
    "doctor": (
        "xai_abn.cli.doctor",
        "Show versions, devices and extras, and make one map. Include the output in a bug report.",
    ),
    "benchmark": ("xai_abn.cli.benchmark", "Score methods on annotated images, join runs, report and export them."),
}


class Program(TyperGroup):
    """The group of all commands. Its help and a shell's list of its commands import none of them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Commands()  # type: ignore[assignment]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help, with the lines of :data:`COMMANDS`."""
        listed = copy.copy(self)
        listed.commands = {
            name: TyperCommand(name, short_help=line, rich_markup_mode=self.rich_markup_mode)
            for name, (_, line) in COMMANDS.items()
        }
        super(Program, listed).format_help(ctx, formatter)


class _Commands(Mapping[str, Any]):
    """The commands by name, each loaded when it is looked up."""

    def __getitem__(self, name: str) -> Any:
        return _loaded(name)

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


@cache
def _loaded(name: str) -> Any:
    module = import_module(COMMANDS[name][0])
    alone = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="rich")
    if hasattr(module, "group"):
        alone.add_typer(module.group, name=name)
    else:
        alone.command(name, cls=Command)(module.command)
    found = typer.main.get_group(alone).commands[name]
    for command in (found, *getattr(found, "commands", {}).values()):  # also where a test or tool takes it alone
        command.context_settings.setdefault("help_option_names", _HELP)
    return found


app = typer.Typer(
    name="xai-abn",
    cls=Program,
    help="Ask an image classifier where it looked.",
    context_settings={"help_option_names": _HELP},
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
