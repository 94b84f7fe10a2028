"""Options that several commands share."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from importlib.resources import files
from typing import Annotated

import typer

from xai_abn.errors import UnknownNameError
from xai_abn.settings import split_specs

Device = Annotated[str, typer.Option(help="Device to run the model on, such as cpu or cuda.")]


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
    for name in (spec.partition(":")[0] for text in texts for spec in split_specs(text)):
        if name not in known:
            raise UnknownNameError("method", name, known, "See 'xai-abn list methods'.")
