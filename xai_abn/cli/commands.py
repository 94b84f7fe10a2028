"""What all commands share, and how each is loaded when it is asked for. Importing this imports no command."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

#: The option of the program that may also follow a command.
VERBOSE = "--verbose"
#: Of each command the module in this folder and its line in the help. A test compares the lines with the commands.
COMMANDS = {
    "explain": ("explain", "Explain images: where did the classifier look?"),
    "list": (
        "listing",
        "List methods, metrics, models, kinds of data sets, networks to train, or a model's layers or labels.",
    ),
    "evaluate": ("evaluate", "Measure how often a model predicts the right class."),
    "distill": (
        "distill",
        "Turn a classifier into an Attention Branch Network on unlabeled images, and check its map.",
    ),
    "export": ("export", "Write a model as ONNX, with its maps."),
    "train": ("train", "Train an Attention Branch Network, or a plain classifier, on labeled images."),
    "convert": (
        "convert",
        "Convert a network saved by the ABN code of Fukui et al. No code in the file is executed.",
    ),
    "app": (
        "app",
        "Start a page in the browser: look at maps, paint on them, save corrections. Nothing leaves this computer.",
    ),
    "doctor": ("doctor", "Show versions, devices and extras, and make one map. Include the output in a bug report."),
    "benchmark": ("benchmark", "Score methods on annotated images, join runs, report and export them."),
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
    module = import_module(f"xai_abn.cli.{COMMANDS[name][0]}")
    alone = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="rich")
    if hasattr(module, "group"):
        alone.add_typer(module.group, name=name)
    else:
        alone.command(name, cls=Command)(module.command)
    return typer.main.get_group(alone).commands[name]


class Command(TyperCommand):
    """A command that takes ``--verbose`` as the program does, and refuses a single option that is given twice."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, or end with a usage error."""
        options = args[: args.index("--")] if "--" in args else args
        if VERBOSE in options and not any(parameter.name == "verbose" for parameter in self.params):
            args = [argument for argument in args if argument != VERBOSE]
            log_to_stderr()
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in given:
            single = not getattr(parameter, "multiple", True) and not getattr(parameter, "is_flag", False)
            if single and given.count(parameter) > 1:
                ctx.fail(f"{parameter.opts[0]} is given {given.count(parameter)} times; give it once")
        return super().parse_args(ctx, args)


def log_to_stderr() -> None:
    """Show on standard error what the package logs."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
    log = logging.getLogger("xai_abn")
    log.handlers = [handler]
    log.setLevel(logging.INFO)
