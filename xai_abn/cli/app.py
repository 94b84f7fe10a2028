"""``xai-abn app``: the page in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xai_abn.cli import options
from xai_abn.cli._console import status
from xai_abn.cli.settings import with_settings
from xai_abn.models.settings import ModelSettings

if TYPE_CHECKING:
    from xai_abn.app.service import OfferedModel

#: Models that ship with the package, offered beside the one that is named.
SHIPPED = ("abn-lite0", "abn-lite0-masks", "lite0", "abn-cifar100")


@with_settings(
    {"model": ModelSettings}, short={"model": "-m"}, panels={options.MODEL: tuple(ModelSettings.model_fields)}
)
def command(
    model: dict[str, Any],
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Image files, folders or globs; the page sorts them by suspicion.", metavar="[IMAGE...]"),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Annotated images to choose from: KIND:PLACE, such as coco:DIR or images:DIR. The page then knows "
            "which predictions are wrong, and how much of a map lies outside the objects.",
            metavar="KIND:PLACE",
        ),
    ] = None,
    other: Annotated[
        list[str] | None,
        typer.Option(
            "--other",
            help="Another model to compare with: a name, a checkpoint or the folder of a run. May be repeated.",
            metavar="MODEL",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    corrections: Annotated[
        Path, typer.Option(help="Folder to which corrections are saved and from which they are loaded.", metavar="DIR")
    ] = Path("corrections"),
    host: Annotated[
        str, typer.Option(help="Address to serve on. '0.0.0.0' lets everyone in your network use the page.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to serve on; 0 for any that is free.", min=0, max=65535)] = 8017,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
    device: options.Device = "cpu",
) -> None:
    """Start a page in the browser: look at maps, paint on them, save corrections. Nothing leaves this computer.

    Example: xai-abn app --model abn-lite0
    """
    chosen = options.chosen_model(model)
    offered = [chosen, *(options.chosen_model({"model": name}) for name in other or [])]
    named = {settings.model for settings in offered}
    offered += [ModelSettings(model=name) for name in SHIPPED if name not in named]
    from xai_abn.app.server import serve
    from xai_abn.app.service import Service
    from xai_abn.datasets import Sample, read_dataset
    from xai_abn.images.loading import find_images

    found = [Sample(path) for argument in images or [] for path in find_images(argument)]
    if data is not None:
        found += read_dataset(data).samples
    with status("loading the model"):
        service = Service([_offer(settings, device) for settings in offered], corrections, found)

    for _, reason in service.problems:
        typer.echo(f"note: {reason}", err=True)

    def started(address: str) -> None:
        typer.echo(f"{address}  (Ctrl-C ends it)")
        if host not in ("127.0.0.1", "localhost", "::1"):
            typer.echo("note: everyone who can reach this address can see the images and save corrections", err=True)
        if browser:
            import webbrowser

            webbrowser.open(address)

    serve(service, host, port, started)


def _offer(settings: ModelSettings, device: str) -> OfferedModel:
    from xai_abn.app.service import OfferedModel

    arguments = {name: value for name, value in settings.changed().items() if name != "model"}
    return OfferedModel(settings.model, lambda: settings.load(device), arguments)
