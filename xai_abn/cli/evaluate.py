"""``xai-abn evaluate``: how often a model is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xai_abn.cli import options
from xai_abn.cli._console import print_table, progress_bar
from xai_abn.cli.settings import with_settings
from xai_abn.files import replacing
from xai_abn.models.settings import ModelSettings, PredictionSettings

if TYPE_CHECKING:
    from xai_abn.benchmark.statistics import Estimate

#: Number of classes in the table of those that are recognized worst.
_WORST = 5


@with_settings(
    {"model": ModelSettings, "prediction": PredictionSettings},
    short={"model": "-m"},
    panels={options.MODEL: (*ModelSettings.model_fields, *PredictionSettings.model_fields)},
)
def command(
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            help="Images with their classes, such as images:DIR. 'xai-abn list datasets' shows all kinds.",
            metavar="KIND:PLACE",
        ),
    ],
    model: dict[str, Any],
    prediction: dict[str, Any],
    images: options.Images = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Part of the data set: train, validation or test. Without it the test split, else validation, else "
            "all images.",
            metavar="NAME",
        ),
    ] = None,
    crop: Annotated[
        options.Crop,
        typer.Option(help="'center' shows the network its usual crop of an image, 'squash' the whole image."),
    ] = options.Crop.CENTER,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 32,
    workers: Annotated[int, typer.Option(min=0, help="Number of threads that read images.")] = 2,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="JSON file for the result, with each class.", metavar="FILE"),
    ] = None,
    device: options.Device = "cpu",
) -> None:
    """Measure how often a model predicts the right class."""
    chosen = options.chosen_model(model)
    from xai_abn.benchmark.accuracy import accuracy
    from xai_abn.datasets import read_dataset

    dataset = read_dataset(data, images)
    adapter = options.load_model(chosen, device, prediction)
    with progress_bar("measuring") as progress:
        found = accuracy(
            adapter,
            dataset,
            split,
            crop=crop.value,
            batch_size=batch_size,
            workers=workers,
            progress=progress,
        )
    rows = [("top-1", found.top_1), ("top-5", found.top_5), ("top-1 of the attention branch", found.attention)]
    lines = [(name, *_cells(share)) for name, share in rows if share is not None]
    lines.append(("mean over classes of top-1", f"{found.balanced:.2%}", ""))
    typer.echo(f"{adapter.name}: {found.top_1.images} images of {len(found.by_class)} classes")
    print_table(("accuracy", "share", "95 % interval"), lines, right=("share",))
    if len(found.by_class) > 1:
        worst = sorted(found.by_class.items(), key=lambda each: each[1][1] / each[1][0])[:_WORST]
        print_table(
            ("worst classes", "right", "images"),
            [(name, str(right), str(count)) for name, (count, right) in worst],
            right=("right", "images"),
        )
    if found.predictions:
        typer.echo(f"predictions: {found.predictions}")
    if output is not None:
        with replacing(output) as path:
            path.write_text(json.dumps(found.to_dict(), indent=1, ensure_ascii=False), encoding="utf-8")
        typer.echo(str(output))
    if found.left_out:
        names = ", ".join(found.unknown_classes[:5]) + (", ..." if len(found.unknown_classes) > 5 else "")
        noun = "image" if found.left_out == 1 else "images"
        typer.echo(f"note: left out {found.left_out} {noun} of classes that the model lacks: {names}", err=True)
    options.end_with_failures(found.failed)


def _cells(share: Estimate) -> tuple[str, str]:
    """Return a share and its interval as text."""
    interval = "" if share.low is None else f"{share.low:.2%} to {share.high:.2%}"
    return f"{share.value:.2%}", interval
