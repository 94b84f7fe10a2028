"""Command-line options made from a settings class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from xai_abn.errors import InvalidInputError
from xai_abn.training.run_folder import RunFolder
from xai_abn.training.settings import RunSettings, read_settings

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.", metavar="RUN")]
Config = Annotated[
    Path | None,
    typer.Option(
        help="YAML file with settings, such as the config.yaml of another run. Options on the command line win.",
        metavar="FILE",
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue the run in --output, with its settings, where it was saved last.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in --output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress bar.")]


def with_settings(
    settings: type[RunSettings], required: str, short: Mapping[str, str] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds an option for each setting to a command.

    The command receives the settings that were given as keywords.

    Args:
        settings: its fields give type, default and help of the options; those of the class itself come first.
        required: the setting that a run needs, from the command line or a file.
        short: short names of options, such as ``{"model": "-m"}``.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
        fields = settings.model_fields
        names = dict.fromkeys([required, *(n for n in inspect.get_annotations(settings) if n in fields), *fields])
        options = [_option(name, fields[name], name == required, (short or {}).get(name)) for name in names]

        def call(**values: Any) -> None:
            command(**{name: value for name, value in values.items() if name not in fields or value not in (None, [])})

        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in own] + options
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in parameters}
        call.__doc__ = command.__doc__
        return call

    return decorate


def _option(name: str, field: FieldInfo, required: bool, short: str | None) -> inspect.Parameter:
    kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if kind is not type(None)]
    kind = next((kind for kind in kinds if kind in (bool, int, float)), str)
    metavar = {bool: None, int: "INTEGER", float: "NUMBER", str: "TEXT"}[kind]
    many = next((get_args(part)[0] for part in kinds if get_origin(part) is tuple), None)
    if many is float:
        kind, metavar = str, "NUMBERS"
    literal = next((part for part in kinds if get_origin(part) is Literal), None)
    if literal is not None:
        metavar = "|".join(get_args(literal))
    flag = name.replace("_", "-")
    flags = [f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}", *([short] if short else [])]
    default = "" if field.is_required() or field.default in (None, ()) else str(field.default)
    note = (
        " \\[required, unless --config or --resume gives it]"
        if required
        else f" \\[default: {default}]"
        if default
        else ""
    )
    option = typer.Option(*flags, help=f"{field.description}{note}", metavar=metavar, show_default=False)
    annotation = list[str] if many is str else kind
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation | None, option]
    )


def settings_file(output: Path, config: Path | None, resume: bool, *others: Any) -> dict[str, Any]:
    """Return the settings that a command starts from: those of the run to resume, or of a file.

    Args:
        output: folder of the run.
        config: the file, or None.
        resume: whether the run is resumed.
        others: other sources of settings, which a resumed run does not take.

    Raises:
        RunError: there is no run to resume.
        InvalidInputError: a file cannot be read, or a run is resumed with another source of settings.
    """
    if resume and any(source is not None for source in (config, *others)):
        raise InvalidInputError("a resumed run keeps its settings; leave out --config and --preset")
    if resume:
        return RunFolder(output).read_settings()[0]
    return read_settings(config)[0] if config is not None else {}
