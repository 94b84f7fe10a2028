"""Command-line options made from a settings class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from xai_abn.errors import InvalidInputError
from xai_abn.settings import Settings

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.", metavar="RUN")]
Config = Annotated[
    Path | None,
    typer.Option(
        help="YAML file with settings, such as the config.yaml of another run. Options on the command line win.",
        metavar="FILE",
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue the run in --output with its settings, from the last saved state.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in --output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress bar.")]


def with_settings(
    groups: Mapping[str, type[Settings]],
    required: str | None = None,
    short: Mapping[str, str] | None = None,
    panels: Mapping[str, Sequence[str]] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds an option for each setting to a command.

    A setting that has the name of one of the command's own parameters gets no option.

    Args:
        groups: by the command's parameter that receives the settings that were given, as a dictionary: the class whose
            fields give type, default and help of the options; those of the class itself come first.
        required: the setting that a run needs, from the command line or a file.
        short: short names of options, such as ``{"model": "-m"}``.
        panels: the settings under each heading of the help, in order; others are with the command's own options.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = inspect.signature(command, eval_str=True).parameters
        own = {n: p.replace(kind=p.KEYWORD_ONLY) for n, p in parameters.items() if n not in groups}
        fields = {group: [n for n in _ordered(kind, required) if n not in own] for group, kind in groups.items()}
        panel_of = {name: panel for panel, names in (panels or {}).items() for name in names}
        kinds = {name: groups[group] for group, names in fields.items() for name in names}
        options = [
            _option(kinds[name], name, panel_of.get(name), name == required, (short or {}).get(name))
            for name in dict.fromkeys([*panel_of, *kinds])
            if name in kinds
        ]

        def call(**values: Any) -> None:
            given = {
                group: {name: value for name in names if (value := values.pop(name)) not in (None, [])}
                for group, names in fields.items()
            }
            command(**values, **given)

        shown = [*own.values(), *options]
        call.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in shown}
        call.__doc__ = command.__doc__
        return call

    return decorate


def _ordered(kind: type[Settings], required: str | None) -> list[str]:
    fields = kind.model_fields
    first = [required, *inspect.get_annotations(kind)]
    return list(dict.fromkeys([*(name for name in first if name in fields), *fields]))


def _option(
    settings: type[Settings], name: str, panel: str | None, required: bool, short: str | None
) -> inspect.Parameter:
    annotation = settings.model_fields[name].annotation
    kinds = [kind for kind in (annotation, *get_args(annotation)) if kind is not type(None)]
    item = next((get_args(part)[0] for part in kinds if get_origin(part) is tuple), None)
    kind = next((kind for kind in kinds if kind in (bool, int, float)), str) if item is None else str
    metavar = {bool: None, int: "INTEGER", float: "NUMBER", str: "TEXT"}[kind]
    if item is float:
        metavar = "NUMBERS"
    literal = next((part for part in kinds if get_origin(part) is Literal), None)
    if literal is not None:
        metavar = "|".join(get_args(literal))
    flag = name.replace("_", "-")
    flags = [f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}", *([short] if short else [])]
    default, description = next((default, text) for other, default, text in settings.describe() if other == name)
    note = (
        " \\[required, unless --config or --resume gives it]"
        if required
        else f" \\[default: {default}]"
        if default
        else ""
    )
    option = typer.Option(
        *flags, help=f"{description}{note}", metavar=metavar, show_default=False, rich_help_panel=panel
    )
    value = list[str] if item is str else kind
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[value | None, option]
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
    from xai_abn.training.run_folder import RunFolder
    from xai_abn.training.settings import read_settings

    if resume:
        return RunFolder(output).read_settings()[0]
    return read_settings(config)[0] if config is not None else {}


@contextmanager
def telling_how_to_resume(verb: str, output: Path) -> Iterator[None]:
    """Let an interruption of the block say how the run in a folder goes on, unless it says so itself."""
    try:
        yield
    except KeyboardInterrupt as stop:
        from xai_abn.training.run_folder import RunFolder

        folder = RunFolder(output)
        saved = f"the last saved state is kept; continue with {folder.resume_command(verb)}"
        raise KeyboardInterrupt(str(stop) or (saved if folder.settings.is_file() else "")) from stop
