"""``xai-abn merge`` and ``xai-abn export``: what to do with the files of benchmark runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def merge(
    output: Annotated[Path, typer.Argument(help="The run to make.", metavar="RUN")],
    shards: Annotated[list[Path], typer.Argument(help="The files of its shards.", metavar="SHARD...")],
) -> None:
    """Join the shards of a benchmark run into one file."""
    from xai_abn.evaluation.exchange import merge_runs

    photos, values = merge_runs(output, shards)
    typer.echo(f"{output}: {photos} photos, {values} values from {len(shards)} files")


def export(
    run: Annotated[Path, typer.Argument(help="A benchmark run.", metavar="RUN")],
    output: Annotated[Path, typer.Argument(help="The table to write: .csv or .parquet.", metavar="FILE")],
) -> None:
    """Write every value of a benchmark run as a table."""
    from xai_abn.evaluation.exchange import export_run

    rows = export_run(run, output)
    typer.echo(f"{output}: {rows} rows")
