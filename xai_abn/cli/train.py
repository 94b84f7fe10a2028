"""``xai-abn train``: train an ABN or a plain classifier."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

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
from xai_abn.training.settings import TrainingSettings, make_training_settings, resumed_settings

#: Settings by heading in the help.
PANELS = {
    "Data": ("data", "size", "validation", "on_unreadable", "workers"),
    "Network": ("arch", "mechanism", "maps", "smoothing", "weights", "continue_from"),
    "Training": (
        "epochs", "batch_size", "lr", "momentum", "nesterov", "weight_decay", "schedule", "milestones", "gamma",
        "warmup", "ema", "seed", "bf16",
    ),
    "Loss": ("attention_weight", "area_weight", "label_smoothing"),
    "Corrections": ("corrections", "correction_loss", "on", "correction_weight", "correction_batch"),
    "Log and files": ("log_every", "maps_every", "save_minutes", "tensorboard"),
}  # fmt: skip


@with_settings({"settings": TrainingSettings}, required="data", panels=PANELS)
def command(
    output: Output,
    settings: dict[str, Any],
    config: Config = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="'published' starts from the recipe published for --arch. Other settings win.", metavar="TEXT"
        ),
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train an Attention Branch Network, or a plain classifier, on labeled images.

    Example: xai-abn train --data images:DIR --arch resnet20 --epochs 30 --output run

    Start it with torchrun to train on several GPUs.
    """
    start = settings_file(output, config, resume, preset)
    chosen = resumed_settings(start, settings) if resume else make_training_settings(start, settings, preset=preset)
    from xai_abn.training.supervised import train

    first = int(os.environ.get("RANK", "0")) == 0
    if first and resume and chosen.schedule == "step" and chosen.epochs != start.get("epochs", chosen.epochs):
        kept, drops = "" if "milestones" in settings else "still ", ", ".join(f"{drop:g}" for drop in chosen.drops)
        falls = f"falls after epochs {drops}" if drops else "is constant"
        typer.echo(f"note: the run continues to {chosen.epochs} epochs; the learning rate {kept}{falls}", err=True)
    with (
        telling_how_to_resume("train", output),
        progress_bar("training", hidden=quiet or not first, unit="steps") as update,
    ):
        result = train(chosen, output, resume=resume, overwrite=overwrite, progress=update)
    if first:
        typer.echo("\n".join(_summary(result, output)))


def _summary(result: dict[str, Any], output: Path) -> list[str]:
    minutes = result["training_seconds"] / 60
    lines = [
        f"{output}: {result['arch']}, mechanism {result['mechanism']}, {result['parameters'] / 1e6:.2f} M parameters",
        f"  {result['epochs']} epochs in {minutes:.1f} min, {result['images_per_second']} images/s",
    ]
    best_epoch = int(result.get("best", {}).get("epoch", 0))
    for name, title in (("final", "last epoch"), ("best", f"best on validation (epoch {best_epoch})")):
        accuracies = [(k, v) for k, v in result.get(name, {}).items() if k.endswith("accuracy")]
        if accuracies:
            lines.append(f"  {title}: " + ", ".join(f"{k.replace('_', ' ')} {v:.2%}" for k, v in accuracies))
    return lines
