"""Options that several commands share."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from importlib.resources import files
from typing import Annotated

import typer

from xai_abn.errors import InvalidInputError, UnknownNameError

Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="abn-lite0, lite0, timm:NAME, torchvision:NAME, a checkpoint or the folder of a run."
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(help="For timm: and torchvision: models: weights file, or 'random'.", metavar="FILE|random"),
]
Classes = Annotated[
    int | None, typer.Option(help="Number of classes. Default: as many as the weights have.", metavar="N", min=1)
]
Labels = Annotated[
    str | None,
    typer.Option(help="Text file with the name of one class in each line, in the model's order.", metavar="FILE"),
]
Size = Annotated[
    int | None, typer.Option(help="Height and width of the model's input in pixels. Default: its own.", min=1)
]
Mean = Annotated[
    str | None,
    typer.Option(
        help="Mean by which the model's inputs are normalized, such as 0.5,0.5,0.5. Default: its own.",
        metavar="NUMBERS",
    ),
]
Std = Annotated[
    str | None,
    typer.Option(
        help="Standard deviation by which the model's inputs are normalized, such as 0.5,0.5,0.5. Default: its own.",
        metavar="NUMBERS",
    ),
]
Device = Annotated[str, typer.Option(help="Device to run the model on, such as cpu or cuda.")]


def numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """Return the numbers of an option such as ``0.5,0.5,0.5``, or None.

    Raises:
        InvalidInputError: a part is not a number.
    """
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidInputError(f"{option} takes numbers such as 0.5,0.5,0.5, got {text!r}") from error


def method_names() -> list[str]:
    """Return the names of the package's methods, read from its text, since importing torch takes seconds."""
    texts = [file.read_text() for file in (files("xai_abn") / "explainers").iterdir() if file.name.endswith(".py")]
    return [name for text in texts for name in re.findall(r'^@register\("([^"]+)"\)', text, re.MULTILINE)]


def check_methods(texts: Sequence[str]) -> None:
    """Refuse an unknown method before torch is imported and a model is loaded, unless a plug-in may have it.

    Raises:
        UnknownNameError: the message suggests the nearest names.
    """
    if "xai_abn.explainers" in sys.modules or entry_points(group="xai_abn.explainers"):
        return
    known = method_names()
    for piece in filter(None, (piece.strip() for text in texts for piece in text.split(","))):
        name = piece.partition(":")[0]
        if "=" not in name and name not in known:
            raise UnknownNameError("method", name, known, "See 'xai-abn list methods'.")
