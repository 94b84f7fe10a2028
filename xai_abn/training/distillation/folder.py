"""The files of a distillation run: what was asked, what happened, the model, and where to go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xai_abn.errors import InvalidInputError, OutputError, RunError
from xai_abn.files import replacing
from xai_abn.networks.checkpoint import read_tensors, refuse_newer, write_tensors
from xai_abn.training.distillation.loop import Distillation
from xai_abn.training.distillation.settings import FREE, DistillationSettings
from xai_abn.training.settings import SETTINGS_FILE, read_run_settings

#: Format of the state. Version 1, in which the version is part of the name, hashed the classifier in another way.
_STATE_FORMAT, _STATE_VERSION = "xai-abn-distillation", 2
_STATE_V1 = "xai-abn-distillation-state-1"
_OTHER = {
    "photos": "other photos: their names or their number differ",
    "classifier": "another classifier: its weights differ",
}


class RunFolder:
    """A run's folder.

    Attributes:
        checkpoint: ``model.safetensors``, loadable by :func:`xai_abn.load_model`.
        settings: ``config.yaml``.
        log: ``log.jsonl``, one record a step and one a check.
        state: ``state.safetensors``, there until the run is finished: where to go on.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoint = self.path / "model.safetensors"
        self.settings = self.path / SETTINGS_FILE
        self.log = self.path / "log.jsonl"
        self.state = self.path / "state.safetensors"

    @property
    def _files(self) -> list[Path]:
        return [f for f in (self.state, self.checkpoint, self.settings, self.log) if f.exists()]

    def check(self, settings: DistillationSettings, *, resume: bool, overwrite: bool) -> bool:
        """Return whether there is a run to go on with; nothing is changed.

        Raises:
            InvalidInputError: both flags were given.
            RunError: there is a run, and neither flag was given; or there is none to resume, or it was made with
                other settings.
            OutputError: the path is not a folder.
        """
        if resume and overwrite:
            raise InvalidInputError("resume goes on with a run, overwrite replaces it: give one of them")
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"cannot write to output folder {self.path}: it is a file")
        before = read_run_settings(self.path) if resume else {}
        if not self._files or overwrite:
            return False
        if not resume:
            raise RunError(
                f"{self.path} holds a run already ({self._files[0].name}); --resume goes on with it, "
                "--overwrite replaces it"
            )
        old, new = DistillationSettings(**before).to_dict(), settings.to_dict()
        other = [
            f"{name} {old[name]!r}, not {new[name]!r}" for name in old if name not in FREE and old[name] != new[name]
        ]
        if other:
            raise RunError(f"{self.path} was made with {'; '.join(other)}: give it another folder, or --overwrite")
        return True

    def commands(self) -> list[str]:
        """Return how the run was called so far."""
        return list(read_run_settings(self.path).get("commands", []))

    def clear(self) -> None:
        """Make the folder, without files of an earlier run.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for file in self._files:
                file.unlink()
        except OSError as error:
            raise OutputError(f"cannot write to output folder {self.path}: {error.strerror or error}") from error

    def save_state(self, distillation: Distillation, origin: Mapping[str, str]) -> None:
        """Save where to go on, and what it was made of: ``"photos"`` and ``"classifier"``, a hash of each.

        Raises:
            OutputError: the file cannot be written; an older one stays.
        """
        header = {"format": _STATE_FORMAT, "format_version": str(_STATE_VERSION), **origin}
        write_tensors(self.state, distillation.state(), header)

    def restore(self, distillation: Distillation, origin: Mapping[str, str], classifier_v1: str) -> None:
        """Go back to the saved state, and cut the log there.

        Args:
            distillation: to restore.
            origin: what the run was made of now, as for :meth:`save_state`.
            classifier_v1: the hash of the classifier that states of version 1 hold.

        Raises:
            CheckpointError: the state is damaged or does not fit.
            RunError: it was made of other photos or another classifier.
        """
        header, state = read_tensors(self.state)
        if header.get("format") == _STATE_V1:
            origin = {**origin, "classifier": classifier_v1}
        elif header.get("format") == _STATE_FORMAT:
            refuse_newer(self.state, header, _STATE_VERSION)
        else:
            raise RunError(f"{self.state} is not the state of a distillation; give the folder of a distillation run")
        for what, value in origin.items():
            if header.get(what) != value:
                raise RunError(f"{self.path} was made with {_OTHER[what]}")
        distillation.restore(state)
        kept = [record for record in self.records() if record["step"] <= distillation.done]
        with replacing(self.log) as draft:
            draft.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")

    def records(self) -> list[dict[str, Any]]:
        """Return the log; a last line cut short by a kill is left out."""
        lines = self.log.read_text(encoding="utf-8").splitlines(keepends=True) if self.log.exists() else []
        try:
            return [json.loads(line) for line in lines if line.endswith("\n")]
        except ValueError as error:
            raise RunError(f"{self.log} is damaged ({error})") from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record to the log.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {self.log}: {error.strerror or error}") from error
