"""``xai-abn distill``: turn a classifier into an ABN."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from xai_abn.cli._console import progress_bar
from xai_abn.cli.settings import (
    Config,
    Output,
    Overwrite,
    Quiet,
    Resume,
    settings_file,
    telling_how_to_resume,
    with_settings,
)
from xai_abn.training.settings import DistillationSettings

if TYPE_CHECKING:
    from xai_abn.training.distillation import DistillationSummary


#: Settings by heading in the help.
PANELS = {
    "Images": ("images", "exclude", "held_out", "least_area", "on_unreadable", "workers"),
    "Classifier": ("model", "objective", "weights", "classes", "labels", "size", "mean", "std", "outputs", "device"),
    "Attention branch": ("layer", "mechanism", "smoothing", "continue_from", "train_stage"),
    "Training": (
        "steps", "batch_size", "mosaics", "lr", "perception_lr", "map_lr", "mask_lr", "warmup", "max_grad_norm", "seed",
        "bf16",
    ),
    "Loss": ("area_weight", "sufficiency_weight", "necessity_weight", "variation_weight", "tile_weight"),
    "Files": ("check_every", "half"),
}  # fmt: skip


#: Columns of the table of checks, by what a check finds: of the attention map, and of class masks.
_OF_MAP = {
    "agreement": "top-1 as teacher",
    "area": "map's mean",
    "kept": "teacher sees kept",
    "hidden": "hidden",
    "polarity": "polarity",
    "upright": "above 0",
    "verdict": "verdict",
}
_OF_MASKS = {
    "kept": "class where the mask is shown",
    "hidden": "hidden",
    "kept_by_class_map": "where the class map is shown",
    "hidden_by_class_map": "hidden",
    "verdict": "masks are",
}


@with_settings(
    {"settings": DistillationSettings}, required="images", short={"images": "-i", "model": "-m"}, panels=PANELS
)
def command(
    output: Output,
    settings: dict[str, Any],
    config: Config = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Turn a classifier into an Attention Branch Network on unlabeled images, and check its map.

    Example: xai-abn distill --model torchvision:resnet18 --images DIR --output run
    """
    chosen = DistillationSettings(**{**settings_file(output, config, resume), **settings})
    from xai_abn.training.distillation import run_distillation

    with telling_how_to_resume("distill", output), progress_bar("distilling", hidden=quiet, unit="steps") as update:
        summary = run_distillation(output, chosen, resume=resume, overwrite=overwrite, progress=update)
    _report(summary)


def _report(summary: DistillationSummary) -> None:
    """Print the results of each check, and what is wrong with the map or the images."""
    from xai_abn.cli._console import print_table

    columns = _OF_MASKS if "kept_by_class_map" in summary.checks[0] else _OF_MAP
    rows = [(str(check["step"]), *(_cell(check[name]) for name in columns)) for check in summary.checks]
    print_table(("step", *columns.values()), rows, right=("step", *list(columns.values())[:-1]))
    typer.echo(f"{summary.checkpoint}: {summary.done} of {summary.steps} steps")
    if summary.unreadable:
        typer.echo(
            f"note: {len(summary.unreadable)} unreadable images were skipped, such as {summary.unreadable[0]}", err=True
        )
    if summary.warning:
        typer.echo(f"warning: {summary.warning}", err=True)


def _cell(value: float | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.3f}"
