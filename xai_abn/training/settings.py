"""Settings of a training run: defaults, a published recipe, a file and the command line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from xai_abn.errors import InvalidInputError, RunError, UnknownNameError
from xai_abn.files import replacing
from xai_abn.settings import Settings

#: File of a run's settings, in its folder.
SETTINGS_FILE = "config.yaml"
#: What a run notes in that file beside its settings.
_NOTES = frozenset(("commands", "xai_abn_version"))
#: ``mechanism`` of a network without an attention branch.
BASELINE = "none"


class RunSettings(Settings):
    """Settings that training and distillation share.

    A list may be given as one text, ``"3,4.5"`` for numbers. The notes in a run's settings file are ignored.
    """

    mechanism: str = Field(
        "residual",
        description="Way in which the map weights the features: 'residual', 'product', 'concatenation' or 'auxiliary' "
        "(the map is not used).",
    )
    smoothing: int = Field(
        0, ge=0, description="Number of times to average the map over 3x3 neighbors; 0 as in the paper."
    )
    weights: str | None = Field(None, description="Weights of a timm: or torchvision: classifier: a file, or 'random'.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of all random numbers of the run.")
    bf16: bool = Field(False, description="Run the network under bfloat16 autocast.")
    workers: int = Field(2, ge=0, description="Number of processes that read images; it does not change the result.")
    on_unreadable: Literal["skip", "stop"] = Field(
        "skip", description="'skip' leaves unreadable images out and counts them; 'stop' stops at the first."
    )

    @model_validator(mode="before")
    @classmethod
    def _prepare(cls, values: dict[str, Any]) -> dict[str, Any]:
        prepared = {name: value for name, value in values.items() if name not in _NOTES}
        for name, value in prepared.items():
            kind = str(cls.model_fields[name].annotation) if name in cls.model_fields else ""
            if "tuple[str" in kind and isinstance(value, str):
                prepared[name] = (value,)
            elif "tuple[float" in kind and isinstance(value, str):
                prepared[name] = tuple(value.split(","))
            elif "bool" in kind and not isinstance(value, bool | str):
                raise InvalidInputError(f"{name} must be true or false, got {value!r}")
            elif isinstance(value, bool) and kind and "bool" not in kind:
                raise InvalidInputError(f"{name} must not be true or false, got {value!r}")
        return prepared


class TrainingSettings(RunSettings):
    """Settings of a training run with labels."""

    data: str = Field(description="Data to train on as KIND:PLACE, such as cifar100:DIR or images:DIR.")
    arch: str = Field(
        "resnet20",
        description="Name of the network: one of 'xai-abn list architectures', timm:NAME or torchvision:NAME.",
    )
    mechanism: str = Field(
        "residual",
        description="Way in which the map weights the features: 'residual', 'product', 'concatenation', 'auxiliary' "
        "(the map is not used), or 'none' for the plain classifier.",
    )
    maps: str = Field(
        "shared",
        description="'shared' learns one map for all classes, as in the paper. For data with several labels per "
        "image, 'per-attribute' learns one map per label, and 'per-attribute-signed' with the mechanism 'product' is "
        "the published multi-task network.",
    )
    size: int | None = Field(
        None,
        ge=1,
        description="Height and width of the images; by default the size of the data, if it has one, or the size for "
        "which the network was designed.",
    )
    weights: str | None = Field(
        None, description="File with weights of the backbone to start from; by default it starts from random weights."
    )
    epochs: int = Field(300, ge=1, description="Number of epochs. The last incomplete batch of each epoch is dropped.")
    batch_size: int = Field(128, ge=1, description="Number of images per step, over all ranks together.")
    lr: float = Field(0.1, ge=0, allow_inf_nan=False, description="Peak learning rate of SGD.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of SGD.")
    nesterov: bool = Field(False, description="Use Nesterov momentum; the published recipes do not.")
    weight_decay: float = Field(
        1e-4, ge=0, allow_inf_nan=False, description="Weight decay, applied to all parameters as in the paper."
    )
    schedule: Literal["step", "cosine"] = Field(
        "step",
        description="'step' multiplies the learning rate by gamma after each of the milestones; 'cosine' lowers it to "
        "0.",
    )
    milestones: tuple[float, ...] | None = Field(
        None,
        description="Epochs of the 'step' schedule, such as 150,225; by default one half and three quarters of the "
        "epochs.",
    )
    gamma: float = Field(
        0.1, gt=0, le=1, description="Factor by which the 'step' schedule multiplies the learning rate."
    )
    warmup: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="Number of epochs over which the learning rate rises from 0."
    )
    attention_weight: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the attention branch's cross-entropy; 1 as in the paper.",
    )
    area_weight: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the area penalty, which is the mean of the map; 0 as in the paper.",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Label smoothing; 0 as in the paper.")
    ema: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Decay of an exponential moving average of the weights, which is then evaluated and saved; by "
        "default there is none.",
    )
    seed: int = Field(
        0, ge=0, lt=2**63, description="Seed of the initial weights, the order of the images, the crops and the flips."
    )
    validation: float = Field(
        0.1, ge=0, lt=1, description="Share of the training images held out to choose the best epoch."
    )
    workers: int = Field(2, ge=0, description="Number of processes that read images if these do not fit into memory.")
    log_every: int = Field(50, ge=1, description="Number of steps between two lines of the log.")
    maps_every: int = Field(
        10, ge=0, description="Number of epochs between two figures of the attention maps; 0 draws none."
    )
    save_minutes: float = Field(
        5.0,
        ge=0,
        allow_inf_nan=False,
        description="Minutes between two saved states within an epoch; the state is also saved after each epoch.",
    )
    tensorboard: bool = Field(False, description="Also write TensorBoard files.")

    @model_validator(mode="after")
    def _check(self) -> TrainingSettings:
        """Refuse settings that contradict each other."""
        if self.warmup > self.epochs or not all(0 <= drop < self.epochs for drop in self.drops):
            raise InvalidInputError(
                f"warmup and milestones must lie within the {self.epochs} epochs, got {self.warmup} and {self.drops}"
            )
        if self.nesterov and not self.momentum:
            raise InvalidInputError("nesterov needs momentum above 0")
        if self.area_weight and self.maps == "per-attribute-signed":
            raise InvalidInputError("area_weight is for maps in [0, 1]; per-attribute-signed maps have no area")
        for name in ("maps", "smoothing", "area_weight", "attention_weight"):
            if self.mechanism == BASELINE and getattr(self, name) != type(self).model_fields[name].default:
                raise InvalidInputError(f"{name} is for an attention branch; mechanism={BASELINE} trains without one")
        return self

    @property
    def drops(self) -> tuple[float, ...]:
        """Epochs after which the ``"step"`` schedule lowers the learning rate."""
        return self.milestones if self.milestones is not None else (self.epochs / 2, self.epochs * 3 / 4)

    def rate(self, epoch: float) -> float:
        """Return the learning rate at a time, in epochs since the start."""
        if epoch < self.warmup:
            return self.lr * epoch / self.warmup
        if self.schedule == "cosine":
            done = (epoch - self.warmup) / max(self.epochs - self.warmup, 1e-9)
            return self.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.lr * self.gamma ** sum(epoch >= drop for drop in self.drops)


def make_training_settings(*sources: Mapping[str, Any], preset: str | None = None) -> TrainingSettings:
    """Combine a recipe and other sources of settings; later sources override earlier ones.

    Args:
        sources: settings, such as those of a file and those of the command line.
        preset: ``"published"`` for the recipe published for the architecture, or None. If a source changes the epochs
            of an earlier source or of the recipe but not the milestones, the milestones move to the same share of the
            epochs.

    Raises:
        InvalidInputError: a setting has the wrong type or is out of range, or ``data`` is missing.
        UnknownNameError: unknown setting, unknown preset, or no recipe for this architecture.
    """
    given: dict[str, Any] = {}
    for source in sources:
        given = _override(given, source)
    if "data" not in given:
        raise InvalidInputError("data is required; give KIND:PLACE, such as cifar100:DIR or images:DIR")
    if preset is not None:
        arch = given.get("arch", TrainingSettings.model_fields["arch"].default)
        given = _override(published_recipe(arch, preset), given)
    return TrainingSettings(**given)


def _override(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of both, where later ones win; earlier milestones move along with changed epochs."""
    drops, epochs = earlier.get("milestones"), earlier.get("epochs")
    if drops and later.get("milestones") is None:
        try:
            share = int(later.get("epochs", epochs)) / int(epochs) if epochs else 1
            numbers = drops.split(",") if isinstance(drops, str) else drops
            later = {**later, "milestones": tuple(float(drop) * share for drop in numbers)}
        except (TypeError, ValueError) as error:
            raise InvalidInputError(
                f"epochs must be a whole number and milestones a list of numbers, got {epochs!r} and {drops!r}"
            ) from error
    return {**earlier, **later}


def published_recipe(arch: str, preset: str = "published") -> dict[str, Any]:
    """Return the settings published for an architecture.

    Source: Fukui et al., CVPR 2019, the released code's commands and training logs (SGD, no Nesterov, no warm-up).

    Raises:
        UnknownNameError: unknown preset or architecture, or no recipe is published for the architecture.
    """
    if preset != "published":
        raise UnknownNameError("preset", preset, ["published"])
    from xai_abn.networks.architectures import architectures, find_architecture  # imports torch, which --help must not

    recipe = find_architecture(arch).recipe
    if not recipe:
        raise UnknownNameError("recipe for", arch, [name for name in architectures if architectures[name].recipe])
    return dict(recipe)


def read_run_settings(folder: str | Path) -> dict[str, Any]:
    """Read the settings and notes of the run in a folder.

    Raises:
        RunError: there is no run.
        InvalidInputError: the settings are unreadable.
    """
    path = Path(folder) / SETTINGS_FILE
    if not path.is_file():
        raise RunError(f"{folder}: no run to resume, as {SETTINGS_FILE} is missing; start one without resume")
    return read_settings(path)


def read_settings(path: str | Path) -> dict[str, Any]:
    """Read a YAML or JSON file of settings, such as a run's ``config.yaml``, including the notes of the run.

    Raises:
        InvalidInputError: the file is missing, is not YAML, or is not a table of settings.
    """
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInputError(f"{path}: not a readable YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(found, dict):
        raise InvalidInputError(f"{path}: expected lines such as 'steps: 1000', got {type(found).__name__}")
    return found


def write_settings(path: Path, settings: Settings, notes: Mapping[str, Any]) -> None:
    """Write settings and notes (the commands, the version) as YAML.

    Raises:
        OutputError: the file cannot be written.
    """
    with replacing(path, "settings ") as draft:
        draft.write_text(yaml.safe_dump({**notes, **settings.to_dict()}, sort_keys=False), encoding="utf-8")
