"""``xai-abn distill``: a classifier and photos in, an Attention Branch Network and its log out."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from xai_abn.cli.progress import progress_bar

if TYPE_CHECKING:
    from xai_abn.training.distillation_run import DistillationSummary

_RECIPE = "Recipe"
_Int: TypeAlias = int | None
_Float: TypeAlias = float | None
_Text: TypeAlias = str | None
_Flag: TypeAlias = bool | None


def _recipe(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=_RECIPE, show_default=False)


def _option(text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, show_default=False, **more)


def command(
    context: typer.Context,
    output: Annotated[Path, _option("Folder of the run.", "--output", "-o", metavar="RUN")],
    photos: Annotated[
        list[str] | None,
        _option("Folder of photos, searched recursively; repeatable.", "--photos", "-p", metavar="DIR"),
    ] = None,
    model: Annotated[
        _Text, _option("lite0 (default), timm:NAME, torchvision:NAME or a checkpoint.", "--model", "-m")
    ] = None,
    weights: Annotated[
        _Text, _option("For timm: and torchvision: models: weights file, or 'random'.", metavar="FILE|random")
    ] = None,
    device: Annotated[_Text, _option("Where to train, such as cpu (default) or cuda.")] = None,
    exclude: Annotated[
        list[str] | None, _option("Leave out photos whose file name contains this; repeatable.", metavar="TEXT")
    ] = None,
    config: Annotated[
        Path | None, _option("Settings as YAML, such as a run's config.yaml; options given here win.", metavar="FILE")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder, with its settings.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the folder.")] = False,
    check_every: Annotated[_Int, _option("Steps between two checks of the map, at which all is saved (100).")] = None,
    held_out: Annotated[_Int, _option("Photos kept for the checks; at most a fifth (64).")] = None,
    on_unreadable: Annotated[_Text, _option("Photos that cannot be read: skip (default) or stop.")] = None,
    stop_after: Annotated[_Int, _option("End after so many steps of the schedule; --resume goes on.")] = None,
    workers: Annotated[_Int, _option("Processes that read photos (1).")] = None,
    half: Annotated[_Flag, _option("Store the model as fp16.", "--half/--no-half")] = None,
    mechanism: Annotated[_Text, _recipe("residual (default), product or concatenation.")] = None,
    smoothing: Annotated[_Int, _recipe("Times the map is averaged over 3x3 neighbours (0).")] = None,
    layer: Annotated[_Text, _recipe("Layer to split behind; default: found.")] = None,
    steps: Annotated[_Int, _recipe("Steps of the schedule (1000).")] = None,
    batch_size: Annotated[_Int, _recipe("Photos a step (32).")] = None,
    mosaics: Annotated[_Int, _recipe("2x2 mosaics a step beside them (8).")] = None,
    lr: Annotated[_Float, _recipe("Peak learning rate of the attention branch (1e-4).")] = None,
    perception_lr: Annotated[_Float, _recipe("Of the perception branch (2e-5).")] = None,
    map_lr: Annotated[_Float, _recipe("Of the map head (5e-3).")] = None,
    area_weight: Annotated[_Float, _recipe("How much a large map costs (4).")] = None,
    sufficiency_weight: Annotated[_Float, _recipe("The map keeps what the answer needs (1).")] = None,
    necessity_weight: Annotated[_Float, _recipe("It hides nothing that the answer needs (1).")] = None,
    match_scale: Annotated[_Flag, _recipe("Keep the features' size (yes).", "--match-scale/--no-match-scale")] = None,
    train_stage: Annotated[
        _Flag, _recipe("Train the attention branch's last stage (no).", "--train-stage/--no-train-stage")
    ] = None,
    least_area: Annotated[_Float, _recipe("Least share of a photo that a crop covers (0.25).")] = None,
    warmup: Annotated[_Float, _recipe("Share of the steps over which the rates rise (0.05).")] = None,
    max_grad_norm: Annotated[_Float, _recipe("Gradients are clipped to this norm (5).")] = None,
    seed: Annotated[_Int, _recipe("Of the order of photos, the crops and the mosaics (0).")] = None,
    bf16: Annotated[_Flag, _recipe("Train under bfloat16 autocast (yes).", "--bf16/--no-bf16")] = None,
    continue_from: Annotated[
        _Text, _recipe("Start from this ABN checkpoint of the same classifier, with a new schedule.")
    ] = None,
    restore_head: Annotated[
        _Flag, _recipe("With the classifier's own perception branch.", "--restore-head/--no-restore-head")
    ] = None,
) -> None:
    """Turn a classifier into an Attention Branch Network on unlabelled photos, and check its map."""
    from xai_abn.training.distillation_run import run_distillation
    from xai_abn.training.distillation_settings import DistillationSettings, gather_settings

    known = DistillationSettings.__dataclass_fields__
    given = {n: v for n, v in context.params.items() if n in known and v not in (None, [], ())}
    settings = gather_settings(given, config, output if resume else None)
    with progress_bar("distilling") as progress:
        summary = run_distillation(
            output,
            settings,
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
