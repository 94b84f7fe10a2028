"""Options that several commands share."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from xai_abn.cli._console import status
from xai_abn.errors import InvalidInputError, UnknownNameError
from xai_abn.models.settings import ModelSettings, PredictionSettings
from xai_abn.settings import split_specs

if TYPE_CHECKING:
    from xai_abn.models.adapter import ModelAdapter

#: Headings of options in the help.
MODEL, OUTPUT, ENGINE = "Model", "Output", "Many machines"
#: The option of the program that may also follow a command.
VERBOSE = "--verbose"

Device = Annotated[str, typer.Option(help="Device to run the model on, such as cpu or cuda.", rich_help_panel=MODEL)]

Images = Annotated[
    Path | None,
    typer.Option(help="Folder of the images, if they are not where the annotations say.", metavar="DIR"),
]


class Engine(str, Enum):
    """What a command runs on."""

    LOCAL = "local"
    RAY = "ray"


EngineOption = Annotated[
    Engine,
    typer.Option(
        "--engine",
        help="'local' works in this process, 'ray' in processes of Ray, on this machine or on the cluster that Ray "
        "finds, such as that of RAY_ADDRESS.",
        rich_help_panel=ENGINE,
    ),
]
Processes = Annotated[
    int | None,
    typer.Option(
        help="Processes of Ray, each with the model and a core or a GPU. Default: as many as the cluster has room for.",
        min=1,
        metavar="N",
        rich_help_panel=ENGINE,
    ),
]


def refuse_given(context: typer.Context, names: Sequence[str], reason: str) -> None:
    """Refuse options that were given to a command, by the names of their parameters.

    Raises:
        InvalidInputError: one was given.
    """
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            raise InvalidInputError(f"{parameter.opts[0]} {reason}")


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


class ImageFormat(str, Enum):
    """File formats of overlays and sheets, by the ending of their names."""

    PNG = "png"
    JPG = "jpg"


class ClipFormat(str, Enum):
    """File formats of clips, by the ending of their names."""

    GIF = "gif"
    MP4 = "mp4"


class Crop(str, Enum):
    """What of an image the network sees."""

    SQUASH = "squash"
    CENTER = "center"


def chosen_model(values: Mapping[str, Any]) -> ModelSettings:
    """Return the settings of the model that a command works on, after checking what needs no torch.

    Raises:
        InvalidInputError: a value is wrong or a file is missing.
    """
    settings = ModelSettings(**values)
    for option, path in (("--labels", settings.labels), ("--weights", settings.weights)):
        if path is not None and path != "random" and not os.path.isfile(path):
            raise InvalidInputError(f"{option} {path}: no such file")
    return settings


def load_model(
    settings: ModelSettings, device: str = "cpu", prediction: Mapping[str, Any] | None = None
) -> ModelAdapter:
    """Return a command's model, with the backend that was asked for; a terminal shows that it is loading."""
    backend = PredictionSettings(**(prediction or {})).backend
    with status("loading the model"):
        model = settings.load(device)
    if backend is not None:
        from xai_abn.models.predictor import Predictor

        model = replace(model, backend=backend)
        Predictor(model)  # which refuses what cannot be used here
    return model


def end_with_failures(failures: Sequence[tuple[str, str]]) -> None:
    """Print each image that failed, with the reason, on one line, and exit with 1 if there are any."""
    for source, reason in failures:
        typer.echo(f"xai-abn: {reason if reason.startswith(source) else f'{source}: {reason}'}", err=True)
    if failures:
        raise typer.Exit(1)


def method_names() -> list[str]:
    """Return the names of the package's methods, read from its text, since importing torch takes seconds."""
    texts = [file.read_text() for file in (files("xai_abn") / "explainers").iterdir() if file.name.endswith(".py")]
    return [name for text in texts for name in re.findall(r'^@register\("([^"]+)"\)', text, re.MULTILINE)]


def check_methods(texts: Sequence[str]) -> None:
    """Refuse an unknown method before torch is imported and a model is loaded, unless a plug-in may have it.

    Raises:
        UnknownNameError: the message suggests the nearest names.
    """
    if "xai_abn.explainers" in sys.modules:
        return
    known = method_names()
    unknown = [name for text in texts for spec in split_specs(text) if (name := spec.partition(":")[0]) not in known]
    if unknown and not entry_points(group="xai_abn.explainers"):
        raise UnknownNameError("method", unknown[0], known, "See 'xai-abn list methods'.")
