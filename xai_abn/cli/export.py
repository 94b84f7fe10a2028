"""``xai-abn export``: a benchmark run as a table, a model as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xai_abn.cli import options
from xai_abn.errors import InvalidInputError


def command(
    source: Annotated[
        str, typer.Argument(help="A benchmark run; for .onnx: abn-lite0, timm:NAME, a checkpoint.", metavar="RUN|MODEL")
    ],
    output: Annotated[Path, typer.Argument(help="A table, .csv or .parquet, or a network, .onnx.", metavar="FILE")],
    weights: options.Weights = None,
) -> None:
    """Write every value of a benchmark run as a table, or a model as ONNX; the file's ending decides."""
    if output.suffix == ".onnx":
        _export_model(source, weights, output)
    elif weights is not None:
        raise InvalidInputError(f"--weights is for models, which are written as .onnx, not {output.name}")
    else:
        from xai_abn.benchmark.exchange import export_run

        rows = export_run(source, output)
        typer.echo(f"{output}: {rows} rows")


def _export_model(spec: str, weights: str | None, output: Path) -> None:
    from xai_abn.models.onnx import export_onnx
    from xai_abn.models.zoo import load_model

    model = load_model(spec, weights=weights)
    made = export_onnx(model, output)
    side = model.preprocess.size
    shape = "any size" if made.any_size else f"{side}x{side} pixels alone"
    typer.echo(f"{output}: {', '.join(made.outputs)}; any batch, {shape}")
    typer.echo("largest difference from PyTorch: " + ", ".join(f"{k} {v:.1e}" for k, v in made.differences.items()))
    if made.fixed_because:
        typer.echo(f"note: {made.fixed_because}", err=True)
