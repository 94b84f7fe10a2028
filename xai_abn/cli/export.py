"""``xai-abn export``: a model as ONNX, with its maps as outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from xai_abn.cli import options
from xai_abn.cli.settings import with_settings
from xai_abn.errors import InvalidInputError
from xai_abn.models.settings import ModelSettings


@with_settings({"settings": ModelSettings}, panels={options.MODEL: tuple(ModelSettings.model_fields)})
def command(
    model: Annotated[
        str,
        typer.Argument(help=ModelSettings.model_fields["model"].description, metavar="MODEL"),
    ],
    output: Annotated[Path, typer.Argument(help="File to write, with the ending .onnx.", metavar="FILE.onnx")],
    settings: dict[str, Any],
    half: Annotated[
        bool,
        typer.Option("--half", help="Compute in float16, in a file of half the size; input and outputs stay float32."),
    ] = False,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="Method whose maps of all classes the file outputs: cam, recipro-cam (also with a layer, as "
            "recipro-cam:layer=layer3) or none. Without it those of cam where it applies; an Attention Branch Network "
            "outputs its own maps.",
        ),
    ] = None,
) -> None:
    """Write a model as ONNX, with its maps."""
    if output.suffix != ".onnx":
        raise InvalidInputError(
            f"{output}: the file must end in .onnx; a benchmark run is exported by 'xai-abn benchmark export'"
        )
    chosen = options.chosen_model({"model": model, **settings})
    from xai_abn.integrations.onnx import export_onnx

    adapter = options.load_model(chosen)
    made = export_onnx(adapter, output, half, method)
    height, width = adapter.preprocess.height_and_width
    shape = "any size" if made.any_size else f"only {width}x{height} pixels"
    maps = "".join(f"; {place} are those of {name} at {layer}" for name, (place, layer) in made.maps.items())
    typer.echo(f"{output}: {', '.join(made.outputs)}{maps}; any batch, {shape}")
    typer.echo("largest difference from PyTorch: " + ", ".join(f"{k} {v:.1e}" for k, v in made.differences.items()))
    if made.fixed_because:
        typer.echo(f"note: {made.fixed_because}", err=True)
    if made.no_maps_because:
        typer.echo(f"note: no maps, as {made.no_maps_because}; --method recipro-cam works with any head", err=True)
