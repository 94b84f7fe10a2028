"""Settings of a distillation."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from xai_abn.errors import InvalidInputError
from xai_abn.training.settings import RunSettings, read_run_settings, read_settings

#: Settings that may change when a run resumes: they do not change its result.
FREE = frozenset(("photos", "device", "workers", "check_every", "stop_after"))
#: Settings that may name a file; a checkpoint holds only the name of the file.
_PATHS = frozenset(("model", "weights", "continue_from"))


class DistillationSettings(RunSettings):
    """Settings of a distillation: how to distill, and from what."""

    model: str = Field(
        "lite0", description="Classifier to distill: 'lite0', 'timm:NAME', 'torchvision:NAME' or a checkpoint."
    )
    device: str = Field("cpu", description="Device to train on, such as 'cpu' or 'cuda'.")
    photos: tuple[str, ...] = Field(
        (),
        description="Folder (searched recursively), file or glob of images to train on; give the option once for each. "
        "An image given twice counts twice.",
    )
    exclude: tuple[str, ...] = Field(
        (), description="Text; images with this text in their file name are left out. It may be given several times."
    )
    least_area: float = Field(0.25, gt=0, le=1, description="Least share of an image's area that a crop covers.")
    held_out: int = Field(
        64,
        ge=1,
        description="Number of images held out to check the map; at most one fifth of all images is held out.",
    )
    layer: str | None = Field(
        None, description="Layer after which the classifier is split; by default it is found automatically."
    )
    steps: int = Field(1000, ge=1, description="Number of optimizer steps.")
    batch_size: int = Field(32, ge=1, description="Number of images per step.")
    mosaics: int = Field(
        8,
        ge=0,
        description="Number of extra inputs per step, each a 2x2 mosaic of four images of the step. The teacher's "
        "prediction for a mosaic is the mean of its predictions for the four, so the map must find all of them.",
    )
    lr: float = Field(
        1e-4,
        ge=0,
        allow_inf_nan=False,
        description="Peak learning rate of the attention branch; it falls to 0 along a cosine.",
    )
    perception_lr: float = Field(
        2e-5,
        ge=0,
        allow_inf_nan=False,
        description="Peak learning rate of the perception branch. Keep it small: the images show few of the classes "
        "that the perception branch knows, and it forgets the others.",
    )
    map_lr: float = Field(
        5e-3, ge=0, allow_inf_nan=False, description="Peak learning rate of the layers that compute the map."
    )
    area_weight: float = Field(
        4.0, ge=0, allow_inf_nan=False, description="Weight of the area penalty, which is the mean of the map."
    )
    sufficiency_weight: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the sufficiency term: how much the teacher's prediction changes when it sees only what "
        "the map keeps.",
    )
    necessity_weight: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the necessity term: how much of its prediction the teacher keeps when it sees only what "
        "the map hides.",
    )
    match_scale: bool = Field(
        True,
        description="With the residual mechanism, keep the weighted features at the scale that the perception branch "
        "knows, by a running mean.",
    )
    train_stage: bool = Field(False, description="Also train the attention branch's copy of the last stage.")
    warmup: float = Field(0.05, ge=0, le=1, description="Share of the steps over which the learning rates rise from 0.")
    max_grad_norm: float = Field(
        5.0, gt=0, allow_inf_nan=False, description="Largest norm of the gradient; larger gradients are scaled down."
    )
    continue_from: str | None = Field(
        None, description="ABN checkpoint of the same classifier to start from; by default a new ABN is trained."
    )
    restore_head: bool = Field(
        False, description="After --continue-from, reset the perception branch to that of the classifier."
    )
    check_every: int = Field(
        100, ge=1, description="Number of steps between two checks of the map, at which the run is also saved."
    )
    stop_after: int | None = Field(
        None, ge=1, description="Stop after this many steps of the schedule; by default the run goes to its end."
    )
    half: bool = Field(False, description="Store the weights of the checkpoint as float16.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the order of the images, the crops and the mosaics.")
    workers: int = Field(1, ge=0, description="Number of processes that read images; it does not change the result.")
    bf16: bool = Field(True, description="Run the networks under bfloat16 autocast.")

    @model_validator(mode="after")
    def _check(self) -> DistillationSettings:
        """Refuse learning rates that train nothing."""
        if not (self.lr or self.perception_lr or self.map_lr):
            raise InvalidInputError("lr, perception_lr and map_lr are all 0, so nothing would be trained")
        return self

    def check_number(self, photos: int) -> None:
        """Refuse fewer images than a batch holds.

        Raises:
            InvalidInputError: there are fewer.
        """
        if photos < self.batch_size:
            raise InvalidInputError(
                f"a batch of {self.batch_size} needs at least as many training images, got {photos}; lower batch_size"
            )

    def portable(self) -> dict[str, Any]:
        """Return the settings without the folders of this machine: no images, and file names instead of paths."""
        values = {name: v for name, v in self.to_dict().items() if name not in ("photos", "device", "workers")}
        return {name: Path(v).name if name in _PATHS and v and Path(v).exists() else v for name, v in values.items()}

    def command(self) -> str:
        """Return the command line that repeats this run, with ``DIR...`` instead of the folders."""
        words = ["xai-abn", "distill", "--photos", "DIR..."]
        defaults = DistillationSettings().portable()
        for name, value in self.portable().items():
            if value == defaults[name] and name != "model":
                continue
            option = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{option}" if value else f"--no-{option}")
            else:
                for item in value if isinstance(value, list) else [value]:
                    words += [f"--{option}", str(item)]
        return shlex.join([*words, "--output", "RUN"])


def gather_settings(
    given: Mapping[str, Any], file: str | Path | None = None, run: str | Path | None = None
) -> DistillationSettings:
    """Combine settings: the given ones override those of a file, and these override those of the run to resume.

    Raises:
        RunError: there is no run to resume.
        UnknownNameError, InvalidInputError: a file is unreadable, or a setting or its value is wrong.
    """
    values: dict[str, Any] = {}
    if run is not None:
        values |= read_run_settings(run)
        values.pop("stop_after", None)  # concerned only the earlier call
    if file is not None:
        values |= read_settings(file)
    return DistillationSettings(**{**values, **given})
