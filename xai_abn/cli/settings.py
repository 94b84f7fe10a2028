"""Command-line options made from the fields of a configuration, so that what a setting means stands in one place."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Annotated, Any, get_args, get_type_hints

import typer


def with_settings(
    config: type, short: Mapping[str, str] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that gives a command an option for each field of a dataclass.

    The command takes them as keywords; those not given on the command line are left out. Help texts are the
    field's lines in the class's ``Attributes`` section.

    Args:
        config: a dataclass of numbers, texts, truth values, tuples of texts (their option is given once for each) and
            tuples of numbers (given as ``1,2``).
        short: short names of some options, such as ``{"model": "-m"}``.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        told = inspect.signature(command, eval_str=True).parameters.values()
        own = [p.replace(kind=p.KEYWORD_ONLY) for p in told if p.kind is not p.VAR_KEYWORD]
        made = [
            _option(name, kind, default, text, (short or {}).get(name))
            for name, kind, default, text in _settings(config)
        ]

        def call(**values: Any) -> None:
            given = {p.name: values.pop(p.name) for p in own}
            command(**given, **{name: value for name, value in values.items() if value not in (None, [])})

        call.__signature__ = inspect.Signature([*made, *own])  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in (*made, *own)}
        call.__doc__ = command.__doc__
        return call

    return decorate


def _option(name: str, kind: Any, default: str, text: str, short: str | None) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    flags = [f"{flag}/--no-{name.replace('_', '-')}"] if kind is bool else [flag]
    flags += [short] if short else []
    metavar = None if kind is bool else {int: "N", float: "X"}.get(kind, "TEXT")
    option = typer.Option(
        *flags, help=f"{text} \\[{default}]" if default else text, metavar=metavar, show_default=False
    )
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _settings(config: type) -> list[tuple[str, Any, str, str]]:
    """Return name, type on the command line, default as text and help of each field."""
    hints, texts = get_type_hints(config), _texts(config)
    found = []
    for field in fields(config):
        hint = hints[field.name]
        plain = [kind for kind in (hint, *get_args(hint)) if kind in (bool, int, float)]
        kind = list[str] if hint == tuple[str, ...] else plain[0] if plain else str
        default = "" if field.default in (MISSING, None, ()) else str(field.default)
        found.append((field.name, kind, default, texts[field.name]))
    return found


def _texts(config: type) -> dict[str, str]:
    """Return the lines of each field in the ``Attributes`` sections of a class and those it is derived from."""
    texts: dict[str, str] = {}
    for kind in reversed(config.__mro__[:-1]):
        section = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2]
        found = re.findall(r"^    (\w+): (.*?)(?=^    \w+: |^\S|\Z)", section, re.MULTILINE | re.DOTALL)
        texts |= {name: _plain(text) for name, text in found}
    return texts


def _plain(text: str) -> str:
    """Return a docstring's text as a person reads it."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"\1", " ".join(text.split()))
    return text.rstrip(".").replace("``", "").replace("[", "\\[")
