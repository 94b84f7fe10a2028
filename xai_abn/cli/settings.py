"""Command-line options made from the fields of a configuration, so that what a setting means stands in one place."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Annotated, Any, get_type_hints

import typer


def with_settings(config: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that gives a command an option for each field of a dataclass.

    The command takes them as keywords; those not given on the command line are left out. Help texts are the
    field's lines in the class's ``Attributes`` section.

    Args:
        config: a dataclass of numbers, texts, truth values and tuples of numbers, which are given as ``1,2``.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        told = inspect.signature(command, eval_str=True).parameters.values()
        own = [p.replace(kind=p.KEYWORD_ONLY) for p in told if p.kind is not p.VAR_KEYWORD]
        made = [_option(name, kind, default, text) for name, kind, default, text in _settings(config)]

        def call(**values: Any) -> None:
            given = {p.name: values.pop(p.name) for p in own}
            command(**given, **{name: value for name, value in values.items() if value is not None})

        call.__signature__ = inspect.Signature([*made, *own])  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in (*made, *own)}
        call.__doc__ = command.__doc__
        return call

    return decorate


def _option(name: str, kind: type, default: str, text: str) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    flags = [f"{flag}/--no-{name.replace('_', '-')}"] if kind is bool else [flag]
    metavar = None if kind is bool else {int: "N", float: "X"}.get(kind, "TEXT")
    option = typer.Option(
        *flags, help=f"{text} \\[{default}]" if default else text, metavar=metavar, show_default=False
    )
    annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _settings(config: type) -> list[tuple[str, type, str, str]]:
    """Return name, type on the command line, default as text and help of each field."""
    hints, texts = get_type_hints(config), _texts(config)
    found = []
    for field in fields(config):
        options = [
            t for t in (hints[field.name], *getattr(hints[field.name], "__args__", ())) if t in (bool, int, float)
        ]
        kind = options[0] if options and "tuple" not in str(hints[field.name]) else str
        default = "" if field.default in (MISSING, None) else str(field.default)
        found.append((field.name, kind, default, texts[field.name]))
    return found


def _texts(config: type) -> dict[str, str]:
    section = inspect.getdoc(config).partition("Attributes:\n")[2]  # type: ignore[union-attr]
    found = re.findall(r"^    (\w+): (.*?)(?=^    \w+: |^\S|\Z)", section, re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()).rstrip(".").replace("``", "") for name, text in found}
