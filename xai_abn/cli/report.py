"""``xai-abn report``: runs in, one page of tables, tests and pictures out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    runs: Annotated[list[Path], typer.Argument(help="Files made by 'xai-abn benchmark'.", metavar="RUN...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for report.html, .json and .md.")] = Path(
        "report"
    ),
    reference: Annotated[
        str | None,
        typer.Option("--reference", "-r", help="Method that others are tested against. Default: abn, or the first."),
    ] = None,
    gallery: Annotated[int, typer.Option(min=0, help="Number of photos to show.")] = 12,
) -> None:
    """Report what runs found: means with intervals, paired tests, curves and pictures."""
    from xai_abn.benchmark.report.build import make_report

    report = make_report(runs, reference, gallery)
    paths = report.save(output)
    for section in report.sections:
        _print_summary(section)
    for path in paths:
        typer.echo(str(path))


def _print_summary(section: dict[str, Any]) -> None:
    from rich.markup import escape

    from xai_abn.benchmark.report.text import DIRECTIONS, cell_text, overview, title
    from xai_abn.cli.table import print_table

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
