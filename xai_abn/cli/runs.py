"""``xai-abn merge``: join the files of a benchmark run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def merge(
    output: Annotated[Path, typer.Argument(help="The run to make.", metavar="RUN")],
    shards: Annotated[list[Path], typer.Argument(help="The files of its shards.", metavar="SHARD...")],
) -> None:
    """Join the shards of a benchmark run into one file."""
    from xai_abn.benchmark.exchange import merge_runs

    photos, values = merge_runs(output, shards)
    typer.echo(f"{output}: {photos} photos, {values} values from {len(shards)} files")
