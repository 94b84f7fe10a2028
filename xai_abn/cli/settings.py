"""Command-line options made from the fields of a settings class."""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from xai_abn.settings import Settings


def with_settings(
    kind: type[Settings], short: Mapping[str, str] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that gives a command an option for each field of a settings class.

    The command receives the options as keyword arguments; options that are not given on the command line are left
    out, so that a file of settings can fill them. The help of an option is the description of its field.

    Args:
        kind: fields of numbers, texts, truth values, tuples of texts (the option is given once for each text) and
            tuples of numbers (given as ``1,2``).
        short: short names of some options, such as ``{"model": "-m"}``.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = inspect.signature(command, eval_str=True).parameters.values()
        own = [p.replace(kind=p.KEYWORD_ONLY) for p in parameters if p.kind is not p.VAR_KEYWORD]
        required = [name for name, field in kind.model_fields.items() if field.is_required()]
        names = [*required, *(name for name in kind.model_fields if name not in required)]
        options = [_option(name, kind, (short or {}).get(name)) for name in names]

        def call(**values: Any) -> None:
            given = {p.name: values.pop(p.name) for p in own}
            command(**given, **{name: value for name, value in values.items() if value not in (None, [])})

        call.__signature__ = inspect.Signature([*options, *own])  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in (*options, *own)}
        call.__doc__ = command.__doc__
        return call

    return decorate


def _option(name: str, kind: type[Settings], short: str | None) -> inspect.Parameter:
    """Return the option of a field, whose default of None means that it was not given."""
    field = kind.model_fields[name]
    plain = [t for t in (field.annotation, *get_args(field.annotation)) if t in (bool, int, float)]
    typed = list[str] if field.annotation == tuple[str, ...] else plain[0] if plain else str
    flag = name.replace("_", "-")
    flags = [f"--{flag}/--no-{flag}" if typed is bool else f"--{flag}", *([short] if short else [])]
    default = "required" if field.is_required() else "" if field.default in (None, ()) else str(field.default)
    text = (field.description or "").replace("[", "\\[") + (f" \\[{default}]" if default else "")
    metavar = None if typed is bool else {int: "N", float: "X"}.get(typed, "TEXT")
    option = typer.Option(*flags, help=text, metavar=metavar, show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[typed | None, option]
    )


def recorded_command(name: str) -> str:
    """Return the command line for the record of a run, with file names instead of paths.

    Args:
        name: of the command, for a process that was not started as ``xai-abn``.
    """
    words = sys.argv[1:] if Path(sys.argv[0]).name in ("xai-abn", "__main__.py") else [name]
    recorded = []
    for word in words:
        option, equals, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
        recorded.append(option + equals + (value if ":" in value else Path(value).name))
    return shlex.join(["xai-abn", *recorded])
