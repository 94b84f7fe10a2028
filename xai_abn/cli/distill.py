"""``xai-abn distill``: turn a classifier into an Attention Branch Network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xai_abn.cli._console import progress_bar
from xai_abn.cli.settings import recorded_command, with_settings
from xai_abn.training.distillation.settings import DistillationSettings, gather_settings

if TYPE_CHECKING:
    from xai_abn.training.distillation.run import DistillationSummary


@with_settings(DistillationSettings, short={"photos": "-p", "model": "-m"})
def command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.", metavar="RUN")],
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML or JSON file of settings, such as a run's config.yaml; options override it.", metavar="FILE"
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --output with its settings.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --output by a new one.")] = False,
    **settings: Any,
) -> None:
    """Turn a classifier into an Attention Branch Network on unlabeled images, and check its map."""
    gathered = gather_settings(settings, config, output if resume else None)
    from xai_abn.training.distillation.run import run_distillation

    with progress_bar("distilling") as progress:
        summary = run_distillation(
            output,
            gathered,
            resume=resume,
            overwrite=overwrite,
            command=recorded_command("distill"),
            progress=progress,
        )
    _report(summary)


def _report(summary: DistillationSummary) -> None:
    """Print the result of each check, and warnings about the map or unreadable images."""
    from xai_abn.cli._console import print_table

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
            f"note: {len(summary.unreadable)} images are unreadable and were left out, such as {reason}", err=True
        )
    if summary.warning:
        typer.echo(f"warning: {summary.warning}", err=True)


def _cell(value: float | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.3f}"
