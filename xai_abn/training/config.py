"""What a training run is told, from defaults, a published recipe, a file and flags."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xai_abn.errors import InvalidInputError, UnknownNameError
from xai_abn.training.settings_file import typed_settings

#: ``mechanism`` of a network without an attention branch.
BASELINE = "none"
_NOT_NEGATIVE = (
    *("lr", "weight_decay", "warmup", "attention_weight", "area_weight"),
    *("smoothing", "workers", "maps_every", "save_minutes"),
)


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        data: ``KIND:PLACE``, such as ``cifar100:DIR`` or ``images:DIR``.
        arch: name of the network, as ``xai-abn list architectures`` has it, ``timm:NAME`` or ``torchvision:NAME``.
        mechanism: ``"residual"``, ``"product"``, ``"concatenation"``, ``"auxiliary"`` (the map is not used), or
            ``"none"`` for the plain classifier.
        maps: ``"shared"``, one map for all classes, as published; for attributes (data with several labels a picture)
            also ``"per-attribute"``, or ``"per-attribute-signed"``, which with the mechanism ``"product"`` is the
            published multi-task network.
        smoothing: how many times to average the map over 3x3 neighbours; 0 as published.
        size: height and width of the pictures; None for what the architecture was designed for, or, where the data has
            one size, that.
        weights: file with weights of the backbone to start from, or None to start from random ones.
        epochs: passes over the training pictures, but for those, others each time, that fill no batch.
        batch_size: pictures a step, of all ranks together.
        lr: peak learning rate of SGD.
        momentum: of SGD, in [0, 1).
        nesterov: Nesterov's momentum; the published recipes use the plain one.
        weight_decay: of all parameters, as published.
        schedule: ``"step"`` multiplies the rate by ``gamma`` after each of ``milestones``; ``"cosine"`` lowers it to 0.
        milestones: epochs; default: after a half and three quarters of the epochs.
        gamma: in (0, 1].
        warmup: epochs over which the rate rises from 0.
        attention_weight: weight of the attention branch's cross-entropy; 1 as published.
        area_weight: weight of the area penalty, the mean of M; 0 as published.
        label_smoothing: in [0, 1); 0 as published.
        ema: decay of an exponential moving average of the weights, which is then what is measured and saved; None for
            none.
        seed: of the weights, the order of the pictures, crops and flips.
        validation: share of the training pictures held out to choose by.
        bf16: run the network under bfloat16 autocast.
        workers: processes that read pictures, where they do not fit into memory.
        on_unreadable: ``"skip"`` leaves a picture that cannot be read out and counts it, ``"stop"`` stops.
        log_every: steps.
        maps_every: epochs between pictures of the attention maps; 0 for none.
        save_minutes: time between checkpoints within an epoch; one is written after each epoch anyway.
        tensorboard: write TensorBoard files, too.
    """

    data: str
    arch: str = "resnet20"
    mechanism: str = "residual"
    maps: str = "shared"
    smoothing: int = 0
    size: int | None = None
    weights: str | None = None
    epochs: int = 300
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    schedule: str = "step"
    milestones: tuple[float, ...] | None = None
    gamma: float = 0.1
    warmup: float = 0.0
    attention_weight: float = 1.0
    area_weight: float = 0.0
    label_smoothing: float = 0.0
    ema: float | None = None
    seed: int = 0
    validation: float = 0.1
    bf16: bool = False
    workers: int = 2
    on_unreadable: str = "skip"
    log_every: int = 50
    maps_every: int = 10
    save_minutes: float = 5.0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without data or network."""
        for name in ("epochs", "batch_size", "log_every", "size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InvalidInputError(f"{name} must be at least 1, got {getattr(self, name)}")
        choices = {"schedule": ("step", "cosine"), "on_unreadable": ("skip", "stop")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UnknownNameError(name, str(getattr(self, name)), known)
        shares = dict.fromkeys(("momentum", "label_smoothing", "validation", "ema"), 1)
        for name, below in {**shares, **dict.fromkeys(_NOT_NEGATIVE, math.inf)}.items():
            value = getattr(self, name)
            if value is not None and not 0 <= value < below:
                wanted = f"in [0, {below})" if name in shares else "a finite number, not negative"
                raise InvalidInputError(f"{name} must be {wanted}, got {value}")
        if not 0 <= self.seed < 2**63:
            raise InvalidInputError(f"seed must be a number from 0 to 2**63 - 1, got {self.seed}")
        if self.warmup > self.epochs or not all(0 <= drop < self.epochs for drop in self.drops):
            raise InvalidInputError(
                f"warmup and milestones must lie within the {self.epochs} epochs, got {self.warmup} and {self.drops}"
            )
        if not 0 < self.gamma <= 1:
            raise InvalidInputError(f"gamma must be in (0, 1], got {self.gamma}")
        self._check_pairs()

    def _check_pairs(self) -> None:
        """Refuse settings that mean nothing beside another."""
        if self.nesterov and not self.momentum:
            raise InvalidInputError("nesterov needs momentum above 0")
        if self.area_weight and self.maps == "per-attribute-signed":
            raise InvalidInputError("area_weight is for maps in [0, 1]; per-attribute-signed ones have no area")
        for name in ("maps", "smoothing", "area_weight", "attention_weight"):
            if self.mechanism == BASELINE and getattr(self, name) != getattr(type(self), name):
                raise InvalidInputError(f"{name} is for an attention branch, which mechanism={BASELINE} leaves out")

    @property
    def drops(self) -> tuple[float, ...]:
        """Epochs after which the ``"step"`` schedule lowers the rate."""
        return self.milestones if self.milestones is not None else (self.epochs / 2, self.epochs * 3 / 4)

    def rate(self, epoch: float) -> float:
        """Return the learning rate at a time, in epochs since the start."""
        if epoch < self.warmup:
            return self.lr * epoch / self.warmup
        if self.schedule == "cosine":
            done = (epoch - self.warmup) / max(self.epochs - self.warmup, 1e-9)
            return self.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.lr * self.gamma ** sum(epoch >= drop for drop in self.drops)


def make_config(*sources: Mapping[str, Any], preset: str | None = None) -> TrainConfig:
    """Return the configuration that a recipe and some sources give, later ones before earlier ones.

    Args:
        sources: settings, such as those of a file and those of the command line.
        preset: ``"published"`` for the recipe published for the architecture, or None. Where a source changes the
            epochs of an earlier one, or of the recipe, and not the milestones, these move to the same share of them.

    Raises:
        InvalidInputError: a setting is unknown, of a wrong type or out of range, or ``data`` is missing.
        UnknownNameError: unknown preset, or none for this architecture.
    """
    given: dict[str, Any] = {}
    for source in sources:
        given = _over(given, typed_settings(TrainConfig, source))
    if "data" not in given:
        raise InvalidInputError("no data to train on; give KIND:PLACE, such as cifar100:DIR or images:DIR")
    if preset is not None:
        given = _over(published_recipe(given.get("arch", TrainConfig.arch), preset), given)
    return TrainConfig(**given)


def _over(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with later ones before earlier ones, whose milestones move along with changed epochs."""
    drops, epochs = earlier.get("milestones"), earlier.get("epochs")
    if drops and later.get("milestones") is None:
        share = later.get("epochs", epochs) / epochs if epochs else 1
        later = {**later, "milestones": tuple(drop * share for drop in drops)}
    return {**earlier, **later}


_CIFAR = {"epochs": 300, "batch_size": 128, "lr": 0.1, "weight_decay": 1e-4, "milestones": (150, 225), "gamma": 0.1}
_IMAGENET = {"epochs": 90, "batch_size": 256, "lr": 0.1, "weight_decay": 1e-4, "milestones": (31, 61), "gamma": 0.1}
#: Recipes of the released code and its logs, by the longest fitting beginning of the architecture's name.
_PUBLISHED: dict[str, dict[str, Any]] = {
    "resnet": _CIFAR,
    "seresnet": _CIFAR,
    "densenet-bc": {**_CIFAR, "batch_size": 64},
    "wrn": {**_CIFAR, "weight_decay": 5e-4, "gamma": 0.2},
    "resnext29": {**_CIFAR, "weight_decay": 5e-4},
    **{f"resnet{depth}": _IMAGENET for depth in (18, 34, 50, 101, 152)},
    "seresnet50": _IMAGENET,
}


def published_recipe(arch: str, preset: str = "published") -> dict[str, Any]:
    """Return the settings published for an architecture.

    Source: Fukui et al., CVPR 2019, the released code's commands and training logs (SGD, no Nesterov, no warm-up).

    Raises:
        UnknownNameError: unknown preset, or no recipe is published for the architecture.
    """
    if preset != "published":
        raise UnknownNameError("preset", preset, ["published"])
    fitting = [name for name in _PUBLISHED if arch.startswith(name)]
    if not fitting:
        raise UnknownNameError("recipe for", arch, _PUBLISHED)
    return dict(_PUBLISHED[max(fitting, key=len)])
