"""``xai-abn distill``: a classifier and photos in, an Attention Branch Network and its log out."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xai_abn.cli.progress import progress_bar
from xai_abn.cli.settings import with_settings
from xai_abn.training.distillation.settings import DistillationSettings, gather_settings

if TYPE_CHECKING:
    from xai_abn.training.distillation.run import DistillationSummary


@with_settings(DistillationSettings, short={"photos": "-p", "model": "-m"})
def command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.", metavar="RUN")],
    config: Annotated[
        Path | None,
        typer.Option(help="Settings as YAML, such as a run's config.yaml; options go before it.", metavar="FILE"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder, with its settings.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the folder.")] = False,
    **settings: Any,
) -> None:
    """Turn a classifier into an Attention Branch Network on unlabelled photos, and check its map."""
    gathered = gather_settings(settings, config, output if resume else None)
    from xai_abn.training.distillation.run import run_distillation

    with progress_bar("distilling") as progress:
        summary = run_distillation(
            output,
            gathered,
            resume=resume,
            overwrite=overwrite,
            command=shlex.join(["xai-abn", *sys.argv[1:]]),
            progress=progress,
        )
    _report(summary)


def _report(summary: DistillationSummary) -> None:
    """Print what each check found, and what is wrong with the map or the photos."""
    from xai_abn.cli.table import print_table

    columns = {
        "agreement": "top-1 as teacher",
        "area": "map's mean",
        "kept": "teacher sees kept",
        "hidden": "hidden",
        "polarity": "polarity",
        "upright": "above 0",
        "verdict": "verdict",
    }
    rows = [(str(c["step"]), *(_cell(c[name]) for name in columns)) for c in summary.checks]
    print_table(("step", *columns.values()), rows, right=("step", *list(columns.values())[:-1]))
    typer.echo(f"{summary.checkpoint}: {summary.done} of {summary.steps} steps")
    for reason in summary.unreadable[:1]:
        typer.echo(
            f"note: {len(summary.unreadable)} photos cannot be read and were left out, such as {reason}", err=True
        )
    if summary.warning:
        typer.echo(f"warning: {summary.warning}", err=True)


def _cell(value: float | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.3f}"
