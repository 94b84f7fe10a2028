"""A whole distillation: a classifier and folders of photos in, a checked Attention Branch Network in a folder out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from xai_abn import __version__
from xai_abn.datasets.batches import RandomCrops
from xai_abn.datasets.splits import HeldOut, find_samples, hold_out
from xai_abn.errors import ImageLoadError, NonFiniteError, RunError
from xai_abn.models.zoo import load_checkpoint, load_model
from xai_abn.networks.checkpoint import CheckpointConfig, fingerprint, fingerprint_v1, read_checkpoint, save_checkpoint
from xai_abn.seeding import seeded
from xai_abn.training.distillation.folder import RunFolder
from xai_abn.training.distillation.loop import Distillation
from xai_abn.training.distillation.map_check import check_map
from xai_abn.training.distillation.settings import DistillationSettings
from xai_abn.training.distillation.student import Student
from xai_abn.training.settings import write_settings


@dataclass(frozen=True)
class DistillationSummary:
    """What a run came to.

    Attributes:
        checkpoint: the model's file.
        done: steps taken of the schedule.
        steps: steps of the schedule.
        checks: every check in order, the fields of :class:`MapCheck` with ``step`` and ``warning``.
        unreadable: why photos could not be read, one entry a photo met since the run was started or resumed.
    """

    checkpoint: Path
    done: int
    steps: int
    checks: list[dict[str, Any]]
    unreadable: list[str] = field(default_factory=list)

    @property
    def warning(self) -> str | None:
        """What the last check found wrong with the map, if anything."""
        return self.checks[-1]["warning"] if self.checks else None


def run_distillation(
    output: str | Path,
    settings: DistillationSettings,
    *,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> DistillationSummary:
    """Distil a classifier into an ABN on unlabelled photos, and check its map on photos held out.

    ``output`` receives ``model.safetensors``, ``log.jsonl`` (a record a step; ``"check"`` records at the start, every
    ``check_every`` steps and at the end), ``config.yaml`` and, until the run is finished, ``state.safetensors``. A
    run that was killed loses the steps since its last check; on the CPU it then makes the same weights, bit by bit,
    as if it had not been.

    Args:
        output: the run's folder.
        settings: see :class:`DistillationSettings`.
        resume: go on with the run in the folder, from its start if nothing was saved yet.
        overwrite: replace the run in the folder, once photos and model are found good.
        command: how the run was called, for ``config.yaml``.
        progress: called after each step with photos done and to do.

    Raises:
        RunError: the folder holds a run that was not to be touched, none to resume, or one made with something else.
        ImageLoadError, InvalidInputError: no photos, too few, or unreadable ones.
        UnknownNameError, WeightsError, CheckpointError: the model cannot be had.
        UnsupportedModelError: the model cannot become an ABN, or its checkpoint could not be loaded again.
        NonFiniteError: the loss is no longer finite; the last good checkpoint stays.
        OutputError: a file cannot be written; what was there stays.
    """
    folder = RunFolder(output)
    going_on = folder.check(settings, resume=resume, overwrite=overwrite)
    going_on = going_on and folder.state.exists()
    if not going_on and not overwrite and _steps_done(folder) == settings.steps:
        return _summary(folder, settings.steps, settings.steps)
    samples = find_samples(settings.photos, settings.exclude)
    with seeded(settings.seed):  # what does not come from the classifier is drawn
        classifier = load_model(settings.model, weights=settings.weights, device=settings.device)
        student = Student.of(classifier, settings)
    held = hold_out(samples, classifier.preprocess, settings.held_out)
    settings.check_number(len(held.rest))
    if held.unreadable and settings.on_unreadable == "stop":
        raise ImageLoadError(held.unreadable[0])
    run = _Run(folder, settings, student, held, progress)
    commands = folder.commands() if going_on else []
    if not going_on:
        folder.clear()
    notes = {"commands": [*commands, command], "xai_abn_version": __version__}
    write_settings(folder.settings, settings, notes)
    if going_on:
        folder.restore(run.distillation, run.origin, run.classifier_v1)
    else:
        run.check_and_save()
        load_checkpoint(folder.checkpoint)  # found out now, not after hours: can it be loaded again?
    run.train(RandomCrops(held.rest, classifier.preprocess, (settings.least_area, 1.0)))
    unreadable = dict.fromkeys([*held.unreadable, *run.distillation.unreadable])
    return _summary(folder, run.distillation.done, settings.steps, list(unreadable))


def _steps_done(folder: RunFolder) -> int:
    """Return how far a run without a saved state got: to its end, or not beyond its start.

    Raises:
        RunError: it got further, so the state was taken away.
    """
    if not folder.checkpoint.exists():
        return 0
    training = read_checkpoint(folder.checkpoint)[0].training
    done, steps = training.get("steps_done", 0), training.get("settings", {}).get("steps", 0)
    if 0 < done < steps:
        raise RunError(
            f"{folder.state} is gone, without which the run cannot go on after step {done}; start from "
            f"{folder.checkpoint} in another folder with continue_from"
        )
    result: int = done
    return result


def _summary(folder: RunFolder, done: int, steps: int, unreadable: Sequence[str] = ()) -> DistillationSummary:
    checks = [{"step": r["step"], **r["check"]} for r in folder.records() if "check" in r]
    return DistillationSummary(folder.checkpoint, done, steps, checks, list(unreadable))


class _Run:
    """A run under way: its distillation, checked and saved as it goes."""

    def __init__(
        self,
        folder: RunFolder,
        settings: DistillationSettings,
        student: Student,
        held: HeldOut,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.student = student
        self.held = held.inputs
        names = "\n".join(Path(s.source).name for s in held.rest)
        self.origin = {
            "photos": hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()[:32],
            "classifier": fingerprint(nn.ModuleList([student.network.feature_extractor, student.teacher])),
        }
        self.classifier_v1 = fingerprint_v1(nn.ModuleList([student.network.feature_extractor, student.teacher]))
        self.progress = progress
        self.distillation = Distillation(student.network, settings, student.teacher)
        self.last = min(settings.stop_after or settings.steps, settings.steps)
        self.saved = 0
        self.training = {
            "method": "self-distillation (xai_abn.training.run_distillation)",
            "teacher": settings.portable()["model"],
            "photos": len(held.rest),
            "held_out": len(held.inputs),
            "settings": settings.portable(),
            "command": settings.command(),
            "earlier": student.earlier,
        }

    def train(self, photos: RandomCrops) -> None:
        """Take the steps that remain."""
        self.saved = self.distillation.done
        try:
            self.distillation.run(photos, self._after_step, until=self.last)
        except NonFiniteError as error:
            raise NonFiniteError(f"{error}; {self.folder.checkpoint} holds step {self.saved}") from error
        if self.distillation.done == self.settings.steps:
            self.folder.state.unlink(missing_ok=True)

    def _after_step(self, values: dict[str, float]) -> None:
        self.folder.append({name: round(value, 5) for name, value in values.items()})
        if self.progress is not None:
            self.progress(self.distillation.done * self.settings.batch_size, self.last * self.settings.batch_size)
        if self.distillation.done % self.settings.check_every == 0 or self.distillation.done == self.last:
            self.check_and_save()

    def check_and_save(self) -> None:
        """Check the map, log what was found, and save the model with it and where to go on."""
        done = self.distillation.done
        check = check_map(self.student.network, self.student.teacher, self.held).to_dict()
        self.folder.append({"step": done, "check": check})
        training = {**self.training, "steps_done": done, "map_check": check}
        description = CheckpointConfig(**self.student.description, training=training)
        save_checkpoint(self.folder.checkpoint, self.student.network, description, half=self.settings.half)
        if done < self.settings.steps:
            self.folder.save_state(self.distillation, self.origin)
        self.saved = done
