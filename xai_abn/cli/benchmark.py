"""``xai-abn benchmark``: score methods on annotated images, join runs, report and export them."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xai_abn.benchmark.settings import BenchmarkSettings
from xai_abn.cli import options
from xai_abn.cli._console import command_line, print_table, progress_bar
from xai_abn.cli.commands import Command
from xai_abn.cli.methods import check_methods
from xai_abn.cli.settings import with_settings
from xai_abn.models.settings import ModelSettings
from xai_abn.settings import split_specs

if TYPE_CHECKING:
    from xai_abn.benchmark.runner import Summary
    from xai_abn.datasets import Dataset
    from xai_abn.models.adapter import ModelAdapter

DEFAULT_METHODS, DEFAULT_METRICS = "abn,abn-class,grad-cam,center,random-14", "deletion,insertion"

group = typer.Typer(help="Score methods on annotated images, join runs, report and export them.", no_args_is_help=True)


@group.command("run", cls=Command)
@with_settings(
    {"model": ModelSettings, "protocol": BenchmarkSettings},
    short={"model": "-m"},
    panels={options.MODEL: tuple(ModelSettings.model_fields), "Protocol": tuple(BenchmarkSettings.model_fields)},
)
def run(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            help="Annotated images, such as coco:DIR or images:DIR. 'xai-abn list datasets' shows all kinds.",
            metavar="KIND:PLACE",
        ),
    ],
    model: dict[str, Any],
    protocol: dict[str, Any],
    images: options.Images = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-M",
            help="Methods to score, comma-separated or repeated: cam,rise:masks=500; see 'xai-abn list methods'. "
            f"\\[default: {DEFAULT_METHODS}]",
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            help="Metrics to compute, comma-separated or repeated: NAME or NAME:PROTOCOL; see 'xai-abn list metrics'. "
            f"\\[default: {DEFAULT_METRICS}]",
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="File of the run. The same command continues an interrupted run.", metavar="RUN"
        ),
    ] = Path("run.sqlite"),
    grid: Annotated[
        int | None, typer.Option(help="Arrange images of one class each in N x N grids first.", metavar="N", min=2)
    ] = None,
    device: options.Device = "cpu",
    engine: options.EngineOption = options.Engine.LOCAL,
    processes: options.Processes = None,
) -> None:
    """Score methods on annotated images. Values that the run already holds are not computed again."""
    methods, metrics = method or [DEFAULT_METHODS], split_specs(",".join(metric or [DEFAULT_METRICS]))
    check_methods(methods)
    settings, chosen = BenchmarkSettings(**{"shard": _share(), **protocol}), options.chosen_model(model)
    from xai_abn.datasets import read_dataset

    dataset = read_dataset(data, images)
    if engine is options.Engine.RAY:
        from xai_abn.benchmark.shards import benchmark_on_ray, shards_of

        file, read = shards_of(output), partial(_read, data, images, grid)
        load = partial(options.load_model, chosen)
        measure = partial(benchmark_on_ray, load, read, output=output, processes=processes, device=device)
    else:
        options.refuse_given(context, ("processes",), "is an option of --engine ray; give that, too, or leave it out")
        from xai_abn.benchmark import benchmark

        adapter, file = options.load_model(chosen, device), shard_file(output, settings.shard)
        measure = partial(benchmark, adapter, _in_grids(dataset, grid, adapter.preprocess.side), output=file)
    with progress_bar("measuring") as progress:
        try:
            summary = measure(
                methods=methods, metrics=metrics, settings=settings, command=command_line(), progress=progress
            )
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(
                f"the images measured so far are in {file}; run the same command to continue"
            ) from stop
    _report(summary)


@group.command("merge", cls=Command)
def merge(
    output: Annotated[Path, typer.Argument(help="File of the merged run; must not exist.", metavar="RUN")],
    shards: Annotated[list[Path], typer.Argument(help="Files of the shards.", metavar="SHARD...")],
) -> None:
    """Join the shards of a run into one file."""
    from xai_abn.benchmark.exchange import merge_runs

    images, values = merge_runs(output, shards)
    typer.echo(f"{output}: {images} images, {values} values from {len(shards)} files")


@group.command("report", cls=Command)
def report(
    runs: Annotated[list[Path], typer.Argument(help="Files of runs.", metavar="RUN...")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for report.html, report.json and report.md.")
    ] = Path("report"),
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference", "-r", help="Method that the others are tested against. Default: abn, or the first method."
        ),
    ] = None,
    gallery: Annotated[int, typer.Option(min=0, help="Number of images to show.")] = 12,
) -> None:
    """Report runs on one page: means with intervals, paired tests, curves and images."""
    from xai_abn.benchmark.report.build import make_report

    made = make_report(runs, reference, gallery)
    paths = made.save(output)
    for section in made.sections:
        _print_summary(section)
    for path in paths:
        typer.echo(str(path))


@group.command("export", cls=Command)
def export(
    run: Annotated[Path, typer.Argument(help="File of a run.", metavar="RUN")],
    output: Annotated[Path, typer.Argument(help="Table to write: a .csv or .parquet file.", metavar="FILE")],
) -> None:
    """Write every value of a run as a table."""
    from xai_abn.benchmark.exchange import export_run

    rows = export_run(run, output)
    typer.echo(f"{output}: {rows} rows")


def shard_file(output: Path, part: tuple[int, int]) -> Path:
    """Return the file of one shard: ``run.sqlite`` becomes ``run.2-of-8.sqlite``; of a whole run, the file itself."""
    index, number = part
    return output if number == 1 else output.with_name(f"{output.stem}.{index}-of-{number}{output.suffix}")


def _share() -> tuple[int, int]:
    """Return the share of this process under torchrun, else the whole."""
    return int(os.environ.get("RANK", 0)) + 1, int(os.environ.get("WORLD_SIZE", 1))


def _read(data: str, images: Path | None, grid: int | None, model: ModelAdapter) -> Dataset:
    """Return the data that the options describe, in a process of Ray."""
    from xai_abn.datasets import read_dataset

    return _in_grids(read_dataset(data, images), grid, model.preprocess.side)


def _in_grids(dataset: Dataset, grid: int | None, size: int) -> Dataset:
    if grid is None:
        return dataset
    from xai_abn.datasets.grids import make_grids

    return make_grids(dataset, grid, size)


def _print_summary(section: dict[str, Any]) -> None:
    from rich.markup import escape

    from xai_abn.benchmark.report.text import DIRECTIONS, cell_text, overview, title

    typer.echo(f"{title(section)}: {overview(section)[0]}")
    arrows = [f"{m['full_name']} {DIRECTIONS[m['higher_is_better']][1]}".strip() for m in section["metrics"]]
    cells = {(c["method"], c["metric"]): c for c in section["summary"]}
    rows = [
        (
            escape(f"{method['name']} (baseline)" if method["baseline"] else method["name"]),
            *(escape(cell_text(cells.get((method["name"], m["full_name"])))) for m in section["metrics"]),
        )
        for method in section["methods"]
    ]
    print_table(("method", *arrows), rows)
    typer.echo()


def _report(summary: Summary) -> None:
    """Print what was measured and what failed; exit with 1 if anything failed."""
    typer.echo(
        f"{summary.output}: {summary.measured} images measured in {summary.seconds:.0f} s, {summary.known} were "
        f"measured before, {len(summary.failed)} failed"
    )
    if summary.predictions:
        typer.echo(f"predictions: {summary.predictions}")
    for note in summary.notes:
        typer.echo(f"note: {note}", err=True)
    if summary.copies:
        typer.echo(f"note: {summary.copies} images are copies of others and were measured once", err=True)
    unknown = [name for name in summary.unknown_classes if name not in summary.shared_labels]
    if unknown:
        names, more = ", ".join(unknown[:5]), f" and {len(unknown) - 5} others" if len(unknown) > 5 else ""
        typer.echo(f"note: the model does not know the classes {names}{more}; their objects are left out", err=True)
    for name, classes in summary.shared_labels.items():
        typer.echo(
            f"note: the model's classes {', '.join(map(str, classes))} are all called {name!r}; its objects are left "
            "out; give the model other --labels, or name the classes of the data by WordNet ids",
            err=True,
        )
    if summary.superseded:
        typer.echo(
            f"note: {summary.superseded} images changed since they were measured; their old values no longer count",
            err=True,
        )
    options.end_with_failures(summary.failed)
