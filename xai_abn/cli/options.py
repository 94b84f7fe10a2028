"""Options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xai_abn.cli._console import status
from xai_abn.errors import InvalidInputError
from xai_abn.models.settings import ModelSettings, PredictionSettings

if TYPE_CHECKING:
    from xai_abn.models.adapter import ModelAdapter

#: Headings of options in the help.
MODEL, OUTPUT, ENGINE = "Model", "Output", "Many machines"

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
