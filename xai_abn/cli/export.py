"""``xai-abn export``: a model as ONNX, with its maps as outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xai_abn.cli import options
from xai_abn.errors import InvalidInputError


def command(
    model: Annotated[
        str,
        typer.Argument(
            help="abn-lite0, lite0, timm:NAME, torchvision:NAME, a checkpoint or the folder of a run.", metavar="MODEL"
        ),
    ],
    output: Annotated[Path, typer.Argument(help="File to write, with the ending .onnx.", metavar="FILE.onnx")],
    weights: options.Weights = None,
    classes: options.Classes = None,
    labels: options.Labels = None,
    size: options.Size = None,
    mean: options.Mean = None,
    std: options.Std = None,
) -> None:
    """Write a model as ONNX. An Attention Branch Network also outputs its maps."""
    if output.suffix != ".onnx":
        raise InvalidInputError(
            f"{output}: the file must end in .onnx; a benchmark run is exported by 'xai-abn benchmark export'"
        )
    from xai_abn.models.onnx import export_onnx
    from xai_abn.models.zoo import load_model

    adapter = load_model(
        model,
        weights=weights,
        classes=classes,
        labels=labels,
        size=size,
        mean=options.numbers(mean, "--mean"),
        std=options.numbers(std, "--std"),
    )
    made = export_onnx(adapter, output)
    height, width = adapter.preprocess.height_and_width
    shape = "any size" if made.any_size else f"only {width}x{height} pixels"
    typer.echo(f"{output}: {', '.join(made.outputs)}; any batch, {shape}")
    typer.echo("largest difference from PyTorch: " + ", ".join(f"{k} {v:.1e}" for k, v in made.differences.items()))
    if made.fixed_because:
        typer.echo(f"note: {made.fixed_because}", err=True)
