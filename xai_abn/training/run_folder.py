"""Folders of training and distillation runs: which files they hold, and when they may be used."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from xai_abn import __version__
from xai_abn.errors import InvalidInputError, OutputError, RunError
from xai_abn.files import replacing
from xai_abn.training.settings import RunSettings, read_settings

SETTINGS, STATE, LOG = "config.yaml", "state.safetensors", "log.jsonl"


class RunFolder:
    """The folder of a run.

    Args:
        path: the folder.
        results: names of the files that the run makes besides settings, state and log.
        figures: globs of its figures.
    """

    def __init__(self, path: str | Path, results: Sequence[str] = (), figures: Sequence[str] = ()) -> None:
        self.path = Path(path)
        self.settings, self.state, self.log = (self.path / name for name in (SETTINGS, STATE, LOG))
        self.results, self.figures = tuple(results), tuple(figures)

    def check(self, settings: RunSettings, *, resume: bool, overwrite: bool) -> bool:
        """Return whether there is a state to resume from; nothing is changed.

        Raises:
            InvalidInputError: both flags were given.
            OutputError: the path is a file.
            RunError: the folder holds a run and neither flag was given; or there is no run to resume, it has other
                settings, or its state is missing.
        """
        if resume and overwrite:
            raise InvalidInputError("resume continues a run and overwrite replaces it: give one of them")
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"cannot write to {self.path}: it is a file")
        found = [name for name in (SETTINGS, STATE, *self.results, LOG) if (self.path / name).exists()]
        if not resume:
            if found and not overwrite:
                raise RunError(
                    f"{self.path} already holds a run ({found[0]}); resume it (--resume), replace it (--overwrite), or "
                    "choose another folder"
                )
            return False
        self.refuse_changes(self.read_settings()[0], settings)
        made = [name for name in self.results if name in found]
        if made and STATE not in found:
            raise RunError(
                f"{self.path}: {STATE} is missing, so the run cannot be resumed; replace it (--overwrite), or start "
                f"another folder (its results, such as {made[0]}, are unchanged)"
            )
        return STATE in found

    def read_settings(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the settings of the run and its notes: commands and version.

        Raises:
            RunError: there is no run.
            InvalidInputError: they cannot be read.
        """
        if not self.settings.is_file():
            raise RunError(f"{self.path}: no run to resume (no {SETTINGS})")
        return read_settings(self.settings)

    def refuse_changes(self, saved: Mapping[str, Any], settings: RunSettings) -> None:
        """Refuse settings that would give other weights than the saved ones.

        Raises:
            RunError: a setting differs that must not.
        """
        then, now = type(settings)(**saved).to_dict(), settings.to_dict()
        changed = [name for name in now if name not in settings.free and then[name] != now[name]]
        if changed:
            listed = ", ".join(f"{name} was {then[name]!r} and is {now[name]!r}" for name in changed)
            raise RunError(f"{self.path}: the run has other settings ({listed}); resume it with its own")

    def start(self, settings: RunSettings) -> None:
        """Make the folder, remove the files of an earlier run, and write the settings.

        Raises:
            OutputError: the folder cannot be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for pattern in (SETTINGS, STATE, LOG, *self.results, *self.figures):
                for file in self.path.glob(pattern):
                    file.unlink()
        except OSError as error:
            raise OutputError(f"cannot write to {self.path}: {error.strerror or error}") from error
        self._write(settings, [settings.command(self.path)])

    def resume(self, settings: RunSettings) -> None:
        """Write the settings that the run is resumed with, and note that it was.

        Raises:
            OutputError: the file cannot be written.
        """
        saved, notes = self.read_settings()
        epochs = getattr(settings, "epochs", None)
        more = ["--epochs", str(epochs)] if epochs != saved.get("epochs", epochs) else []
        self._write(settings, [*notes.get("commands", []), self.resume_command(settings.verb, *more)])

    def resume_command(self, verb: str, *options: str) -> str:
        """Return the command that resumes the run of ``train`` or ``distill``."""
        return shlex.join(["xai-abn", verb, "--resume", *options, "--output", str(self.path)])

    def _write(self, settings: RunSettings, commands: list[str]) -> None:
        notes = {"commands": commands, "xai_abn_version": __version__}
        with replacing(self.settings, "settings ") as draft:
            draft.write_text(yaml.safe_dump({**notes, **settings.to_dict()}, sort_keys=False), encoding="utf-8")
