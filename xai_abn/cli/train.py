"""``xai-abn train``: train an ABN, or the classifier it is compared with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from xai_abn.cli._console import progress_bar
from xai_abn.cli.settings import recorded_command, with_settings
from xai_abn.errors import InvalidInputError
from xai_abn.training.settings import TrainingSettings, make_training_settings, read_run_settings, read_settings


@with_settings(TrainingSettings)
def command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.", metavar="RUN")],
    config: Annotated[
        Path | None, typer.Option(help="YAML or JSON file of settings; options override it.", metavar="FILE")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="'published' uses the recipe published for --arch.", metavar="TEXT")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --output with its settings.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --output by a new one.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress bar.")] = False,
    **settings: Any,
) -> None:
    """Train an Attention Branch Network or a plain classifier; on many devices with torchrun."""
    if resume and (config is not None or preset is not None):
        raise InvalidInputError("--resume uses the settings of the run; leave out --config and --preset")
    earlier = read_run_settings(output) if resume else {} if config is None else read_settings(config)
    chosen = make_training_settings(earlier, settings, preset=preset)
    from xai_abn.training.trainer import train

    command = recorded_command("train").replace(chosen.data, f"{chosen.data.partition(':')[0]}:DIR")
    is_main = int(os.environ.get("RANK", "0")) == 0
    with progress_bar("training", hidden=quiet or not is_main, unit="steps") as update:
        result = train(chosen, output, resume=resume, overwrite=overwrite, progress=update, command=command)
    if is_main:
        typer.echo("\n".join(_summary(result, output)))


def _summary(result: dict[str, Any], output: Path) -> list[str]:
    took = f"{result['training_seconds'] / 60:.1f} min, {result['images_per_second']} images/s"
    what = f"{result['arch']}, mechanism {result['mechanism']}, {result['parameters'] / 1e6:.2f} M parameters"
    lines = [
        f"{output}: {what}",
        f"  {result['epochs']} epochs in {took}",
    ]
    for name, title in (("final", "last epoch"), ("best", f"best on validation (epoch {_epoch(result)})")):
        reached = result.get(name)
        if reached:
            accuracies = [(k, v) for k, v in reached.items() if k.endswith("accuracy")]
            lines.append(f"  {title}: " + ", ".join(f"{k.replace('_', ' ')} {v:.2%}" for k, v in accuracies))
    return lines


def _epoch(result: dict[str, Any]) -> int:
    return int(result.get("best", {}).get("epoch", 0))
