"""The folder of a training run: what its files are called, and when it may be used."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import xai_abn
from xai_abn.errors import CheckpointError, OutputError
from xai_abn.training.config import TrainConfig
from xai_abn.training.journal import LOG
from xai_abn.training.settings_file import SETTINGS_FILE, write_settings

STATE, BEST, FINAL, RESULT = "state.safetensors", "best.safetensors", "final.safetensors", "result.json"


def prepare_folder(folder: Path, config: TrainConfig, resume: bool, overwrite: bool, command: str) -> None:
    """Make the run's folder and write its settings; with a run to resume in it, leave it as it is.

    Raises:
        OutputError: another run is there, or the folder cannot be made.
        CheckpointError: there is nothing to resume.
    """
    if resume and not (folder / SETTINGS_FILE).exists():
        raise CheckpointError(f"{folder}: no run to resume from; train without resume")
    if resume and (folder / STATE).exists():
        return
    if (folder / SETTINGS_FILE).exists() and not (resume or overwrite):
        raise OutputError(f"{folder} holds a run already; resume it, overwrite it, or choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (STATE, BEST, FINAL, RESULT, LOG):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror or error}") from error
    notes = {"commands": [command], "xai_abn_version": xai_abn.__version__}
    write_settings(folder / SETTINGS_FILE, asdict(config), notes)
