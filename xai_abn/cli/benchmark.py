"""``xai-abn benchmark``: photos, methods and metrics in, one file of values out."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xai_abn.cli import options
from xai_abn.cli.progress import progress_bar
from xai_abn.errors import InvalidInputError

if TYPE_CHECKING:
    from xai_abn.benchmark.runner import Summary
    from xai_abn.datasets import Dataset


def command(
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            help="Images to measure, such as coco:DIR or images:DIR; see 'xai-abn list datasets'.",
            metavar="KIND:PLACE",
        ),
    ],
    methods: Annotated[
        str,
        typer.Option("--methods", "-M", help="Comma-separated: cam,rise:masks=500; see 'xai-abn list methods'."),
    ] = "abn,abn-class,grad-cam,center,random-14",
    metrics: Annotated[
        str,
        typer.Option("--metrics", help="Comma-separated NAME or NAME:PROTOCOL; see 'xai-abn list metrics'."),
    ] = "deletion,insertion",
    model: options.Model = "abn-lite0",
    weights: options.Weights = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The run's file; run the same command again to go on.", metavar="RUN")
    ] = Path("run.sqlite"),
    grid: Annotated[
        int | None, typer.Option(help="Set single-class photos into N x N grids first.", metavar="N", min=2)
    ] = None,
    crop: Annotated[
        str, typer.Option(help="squash: the network sees the whole photo; center: its usual crop.")
    ] = "squash",
    shard: Annotated[
        str | None,
        typer.Option(help="Only every N-th photo from the I-th; join the files with 'xai-abn merge'.", metavar="I/N"),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first photos.", min=1)] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Predict perturbed pictures in bfloat16: faster.")] = False,
    compile_: Annotated[bool, typer.Option("--compile", help="And through torch.compile: slow start.")] = False,
    batch_size: Annotated[int, typer.Option(help="Photos per step; a kill loses at most one step.", min=1)] = 8,
    device: options.Device = "cpu",
) -> None:
    """Score methods on annotated photos; what is measured once is never measured again."""
    from xai_abn.benchmark import Settings, benchmark
    from xai_abn.datasets import read_dataset
    from xai_abn.models.zoo import load_model

    part = _shard(shard)
    settings = Settings(batch_size=batch_size, bf16=bf16, compile=compile_, crop=crop, shard=part, limit=limit)
    photos = read_dataset(data)
    adapter = load_model(model, weights=weights, device=device)
    photos = _in_grids(photos, grid, adapter.preprocess.size)
    run = shard_file(output, part)
    with progress_bar("measuring") as progress:
        summary = benchmark(
            adapter, photos, [methods], _listed(metrics), run, settings, command=_command(), progress=progress
        )
    _report(summary)


def shard_file(output: Path, part: tuple[int, int]) -> Path:
    """Return the file of one shard: ``run.sqlite`` becomes ``run.2-of-8.sqlite``; of a whole run, the file itself."""
    index, number = part
    return output if number == 1 else output.with_name(f"{output.stem}.{index}-of-{number}{output.suffix}")


def _shard(text: str | None) -> tuple[int, int]:
    """Return (i, n) from I/N, else from torchrun's environment, else the whole."""
    if text is None:
        return int(os.environ.get("RANK", 0)) + 1, int(os.environ.get("WORLD_SIZE", 1))
    index, slash, number = text.partition("/")
    if not (slash and index.isdigit() and number.isdigit()):
        raise InvalidInputError(f"--shard takes I/N, such as 2/8, got {text!r}")
    return int(index), int(number)


def _in_grids(photos: Dataset, grid: int | None, size: int) -> Dataset:
    if grid is None:
        return photos
    from xai_abn.datasets.grids import make_grids

    return make_grids(photos, grid, size)


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _command() -> str:
    return shlex.join(["xai-abn", *sys.argv[1:]])


def _report(summary: Summary) -> None:
    """Say what was done and what failed; exit 1 if anything did."""
    typer.echo(
        f"{summary.output}: {summary.measured} photos measured in {summary.seconds:.0f} s, "
        f"{summary.known} were known, {len(summary.failed)} failed"
    )
    if summary.superseded:
        typer.echo(f"note: {summary.superseded} photos changed since; their old values no longer count", err=True)
    for source, reason in summary.failed:
        typer.echo(f"xai-abn: {reason if reason.startswith(source) else f'{source}: {reason}'}", err=True)
    if summary.failed:
        raise typer.Exit(1)
