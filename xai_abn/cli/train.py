"""``xai-abn train``: train an ABN, or the classifier it is compared with."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from xai_abn.cli.progress import progress_bar
from xai_abn.cli.settings import with_settings
from xai_abn.errors import CheckpointError, InvalidInputError
from xai_abn.training.config import TrainConfig, make_config
from xai_abn.training.settings_file import SETTINGS_FILE, read_settings


@with_settings(TrainConfig)
def command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")],
    config: Annotated[Path | None, typer.Option(help="YAML or JSON file of settings; flags go before it.")] = None,
    preset: Annotated[str | None, typer.Option(help="'published': the recipe published for --arch.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --output.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --output.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
    **settings: Any,
) -> None:
    """Train an Attention Branch Network or a plain classifier; on many devices with torchrun."""
    if resume and not (output / SETTINGS_FILE).is_file():
        raise CheckpointError(f"{output}: no run to resume (no {SETTINGS_FILE})")
    if resume and (config is not None or preset is not None):
        raise InvalidInputError("resume takes the run's own settings; leave out --config and --preset")
    file = output / SETTINGS_FILE if resume else config
    chosen = make_config(read_settings(file) if file is not None else {}, settings, preset=preset)
    from xai_abn.training.trainer import train

    leads = int(os.environ.get("RANK", "0")) == 0
    with progress_bar("training", hidden=quiet or not leads, unit="steps") as update:
        result = train(chosen, output, resume=resume, overwrite=overwrite, progress=update, command=_command(chosen))
    if leads:
        typer.echo("\n".join(_summary(result, output)))


def _command(config: TrainConfig) -> str:
    """Return the command for the record, without the places that are somebody's own."""
    shown = sys.argv[1:] if Path(sys.argv[0]).name in ("xai-abn", "__main__.py") else ["train"]
    places = {"--output", "-o", "--config", "--weights"}
    words, hidden = [], False
    for word in shown:
        name, equals, _ = word.partition("=")
        if hidden:
            word = Path(word).name
        elif equals and name in places:
            word = f"{name}={Path(word).name}"
        hidden = word in places
        words.append(word.replace(config.data, f"{config.data.partition(':')[0]}:DIR"))
    return shlex.join(["xai-abn", *words])


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
