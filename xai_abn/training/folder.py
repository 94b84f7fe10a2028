"""The folder of a training run: what its files are called, and when it may be used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xai_abn import __version__
from xai_abn.errors import InvalidInputError, OutputError, RunError
from xai_abn.training.journal import LOG
from xai_abn.training.settings import SETTINGS_FILE, TrainingSettings, read_run_settings, write_settings

STATE, BEST, FINAL, RESULT = "state.safetensors", "best.safetensors", "final.safetensors", "result.json"
CURVES, MAPS, BOARD = "curves.png", "maps", "tensorboard"
_FILES = (SETTINGS_FILE, STATE, BEST, FINAL, RESULT, LOG)
_PICTURES = (CURVES, f"{MAPS}/epoch_*.png", f"{BOARD}/events.*")
#: Settings that may differ when a run is resumed: they change what is written, not the weights. The data may have
#: moved; its fingerprint says whether it is the same.
FREE = ("data", "log_every", "maps_every", "save_minutes", "tensorboard", "workers")


def check_folder(folder: Path, config: TrainingSettings, resume: bool, overwrite: bool) -> bool:
    """Return whether there is a saved state to go on from; nothing is changed.

    Raises:
        InvalidInputError: both flags were given.
        OutputError: the path is a file.
        RunError: another run is there, or there is none to resume, its state was taken away, or it has other settings.
    """
    if resume and overwrite:
        raise InvalidInputError("resume goes on with a run, overwrite replaces it: give one of them")
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"cannot write to {folder}: it is a file")
    there = [name for name in _FILES if (folder / name).exists()]
    if not resume:
        if there and not overwrite:
            raise RunError(
                f"{folder} holds a run already ({there[0]}); resume it, overwrite it, or choose another folder"
            )
        return False
    before = read_run_settings(folder)
    if STATE in there:
        return True
    made = [name for name in (BEST, FINAL, RESULT) if name in there]
    if made:
        raise RunError(
            f"{folder}: {STATE} is gone, without which the run cannot go on; overwrite the run, or start another "
            f"folder (what it made, such as {made[0]}, is as it was)"
        )
    refuse_other_settings(before, config, folder)
    return False


def refuse_other_settings(before: Mapping[str, Any], config: TrainingSettings, folder: Path) -> None:
    """Refuse to go on with settings that would make other weights.

    Args:
        before: the run's; one that its program did not have yet counts as its default.
        config: those it is resumed with.
        folder: the run's.

    Raises:
        RunError: one is not what it was.
    """
    then, now = TrainingSettings(**{"data": "", **before}).to_dict(), config.to_dict()
    changed = [name for name in now if name not in FREE and then.get(name) != now[name]]
    if changed:
        told = ", ".join(f"{name} was {then.get(name)!r} and is {now[name]!r}" for name in changed)
        raise RunError(f"{folder}: the run has other settings ({told}); resume it with its own")


def begin(folder: Path, config: TrainingSettings, command: str) -> None:
    """Make the folder, remove what an earlier run made in it, and write the settings.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for pattern in (*_FILES, *_PICTURES):
            for file in folder.glob(pattern):
                file.unlink()
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror or error}") from error
    _write(folder, config, [command])


def go_on(folder: Path, config: TrainingSettings, command: str) -> None:
    """Note in the settings that the run was resumed, and with which of the settings that may differ.

    Raises:
        OutputError: they cannot be written.
    """
    earlier = read_run_settings(folder).get("commands", [])
    _write(folder, config, [*earlier, command])


def _write(folder: Path, config: TrainingSettings, commands: list[str]) -> None:
    notes = {"commands": commands, "xai_abn_version": __version__}
    write_settings(folder / SETTINGS_FILE, config, notes)
