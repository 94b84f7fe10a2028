"""Settings of training and distillation, from Python, YAML files and the command line."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import Field, model_validator

from xai_abn.errors import InvalidInputError, RunError, UnknownNameError
from xai_abn.models.settings import ModelSettings
from xai_abn.settings import MAX_SIZE, Settings

#: ``mechanism`` of a classifier without an attention branch.
PLAIN = "none"
#: Settings are lists in a table, so nothing is nested deeper than this.
MOST_NESTED = 10
#: What a run's ``config.yaml`` holds beside the settings.
NOTES = ("commands", "xai_abn_version")
#: Names in files of version 1; and YAML reads the word on as true.
_RENAMED: dict[Any, str] = {"photos": "images", True: "on"}
#: Settings of version 1 that no longer exist, and their values that a run can be resumed with.
_REMOVED: dict[str, Any] = {"stop_after": None, "restore_head": False, "match_scale": True}

S = TypeVar("S", bound="RunSettings")


class RunSettings(Settings):
    """Settings that training and distillation share."""

    #: Name of the command.
    verb: ClassVar[str]
    #: Settings that may change when a run is resumed: they do not change what is done; see :meth:`check_resumed`.
    free: ClassVar[frozenset[str]]
    #: Settings that say where things are on one machine, and those that may name a file.
    local: ClassVar[frozenset[str]]
    files: ClassVar[frozenset[str]]

    batch_size: int = Field(128, ge=1, description="Images in a training step.")
    seed: int = Field(
        0, ge=0, lt=2**63, description="Seed of the initial weights, the order of the images, crops and flips."
    )
    workers: int = Field(
        2, ge=0, description="Processes that read images. With 0 the training process reads them itself."
    )
    bf16: bool = Field(
        False,
        description="Compute in bfloat16 where that is safe: faster on GPUs and CPUs with bfloat16 units, several "
        "times slower on others.",
    )
    on_unreadable: Literal["skip", "stop"] = Field(
        "skip", description="'skip' leaves unreadable images out and counts them. 'stop' ends the run at the first."
    )

    def check_resumed(self, saved: RunSettings, steps: int, steps_per_epoch: int) -> None:
        """Refuse to resume a run with these settings if they change the ``steps`` that are done.

        Raises:
            RunError: they do.
        """

    def portable(self) -> dict[str, Any]:
        """Return the settings as plain values without folders of this machine: files by name, no places of images."""

        def is_file(name: str, value: Any) -> bool:
            return name in self.files and bool(value) and (Path(value).is_absolute() or Path(value).exists())

        values = {name: value for name, value in self.to_dict().items() if name not in self.local}
        return {name: Path(value).name if is_file(name, value) else value for name, value in values.items()}

    @property
    def source(self) -> tuple[str, str]:
        """The option that names the images, with a placeholder for their place."""
        raise NotImplementedError

    def command(self, output: Path | None = None) -> str:
        """Return the command that makes this run into a folder; without one, with placeholders for all folders."""
        values = self.portable() if output is None else self.to_dict()
        words = ["xai-abn", self.verb, *(self.source if output is None else ())]
        for name in self.changed():
            option, value = name.replace("_", "-"), values.get(name)
            if isinstance(value, bool):
                words.append(f"--{option}" if value else f"--no-{option}")
            elif isinstance(value, list) and value and isinstance(value[0], float):
                words += [f"--{option}", ",".join(map(str, value))]
            elif value is not None:
                words += [
                    word
                    for item in (value if isinstance(value, list) else [value])
                    for word in (f"--{option}", str(item))
                ]
        return shlex.join([*words, "--output", "RUN" if output is None else str(output)])


class TrainingSettings(RunSettings):
    """Settings of :func:`xai_abn.training.train`."""

    verb = "train"
    free = frozenset(
        (
            "data", "corrections", "epochs", "log_every", "maps_every", "milestones", "save_minutes", "tensorboard",
            "workers",
        )
    )  # fmt: skip
    local = frozenset(("data", "corrections"))
    files = frozenset(("weights", "continue_from"))

    data: str = Field(description="Data set to train on, as KIND:PLACE, such as cifar100:DIR or images:DIR.")
    arch: str = Field(
        "resnet20", description="Network: a name of 'xai-abn list architectures', timm:NAME or torchvision:NAME."
    )
    mechanism: str = Field(
        "residual",
        description="How the attention map weighs the features: 'residual' (as published), 'product', 'concatenation', "
        "'auxiliary' (the map is not used), or 'none' for a classifier without an attention branch.",
    )
    maps: str = Field(
        "shared",
        description="'shared' gives one map for all classes, as published. Data with several labels for each image can "
        "have 'per-attribute' maps; 'per-attribute-signed' with the mechanism 'product' is the published multi-task "
        "network.",
    )
    smoothing: int = Field(
        0,
        ge=0,
        le=100,
        description="Number of times to average the map over 3x3 neighbors. The published network has 0.",
    )
    size: int | None = Field(
        None,
        ge=1,
        le=MAX_SIZE,
        description="Height and width of the images in pixels. Without it the data or the architecture decides.",
    )
    weights: str | None = Field(
        None, description="File with weights to start the backbone from. Without it the weights are drawn at random."
    )
    continue_from: str | None = Field(
        None,
        description="Checkpoint, or folder of a run, whose network is trained further. It determines the "
        "architecture, the mechanism, the classes and the preprocessing.",
    )
    epochs: int = Field(300, ge=1, description="Number of epochs. The last incomplete batch of each epoch is dropped.")
    batch_size: int = Field(128, ge=1, description="Images in a training step, over all GPUs or processes together.")
    lr: float = Field(0.1, ge=0, allow_inf_nan=False, description="Highest learning rate of SGD.")
    momentum: float = Field(
        0.9, ge=0, lt=1, description="Momentum of SGD: how much of the last update each update keeps."
    )
    nesterov: bool = Field(False, description="Use Nesterov momentum. The published recipes do not.")
    weight_decay: float = Field(
        1e-4, ge=0, allow_inf_nan=False, description="Weight decay of all parameters, as published."
    )
    schedule: Literal["step", "cosine"] = Field(
        "step",
        description="'step' multiplies the learning rate by --gamma at each milestone. 'cosine' lowers it to 0.",
    )
    milestones: tuple[float, ...] | None = Field(
        None,
        description="Epochs after which the 'step' schedule lowers the learning rate, such as 150,225. Without it: "
        "after half and three quarters of the epochs.",
    )
    gamma: float = Field(0.1, gt=0, le=1, description="Factor of the learning rate at each milestone.")
    warmup: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="Epochs during which the learning rate rises from 0."
    )
    attention_weight: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the attention branch's cross-entropy in the loss. Published: 1.",
    )
    area_weight: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Weight of a penalty on the mean of the attention map. Published: none.",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Label smoothing of the cross-entropy. Published: none."
    )
    ema: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Decay of a moving average of the weights, which is then evaluated and saved in their place, such "
        "as 0.999. Without it there is no average.",
    )
    validation: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of the training images to hold out as validation split, which chooses the best epoch.",
    )
    corrections: str | None = Field(
        None,
        description="Folder of corrections, as 'xai-abn app' saves them: images with marks of where to look and where "
        "not to. They are added to the training data.",
    )
    correction_loss: Literal["energy", "kl", "l1", "tolerant", "abn", "rrr", "counter-examples", "backgrounds"] = Field(
        "kl",
        description="Loss of the maps of corrected images: 'energy' (share of the map outside), 'kl' (divergence from "
        "the mask), 'l1' (distance from it), 'tolerant' (the same with soft borders), 'abn' (distance from the edited "
        "map, as published), 'rrr' (gradients by the pixels where not to look), 'counter-examples' (noise is pasted "
        "there), or 'backgrounds' (those of other marked images are). The last two read no map.",
    )
    on: Literal["class-map", "attention-map", "grad-cam"] = Field(
        "grad-cam",
        description="Map that the loss reads: that of the class in the attention branch (CAM for a classifier without "
        "one), the attention map, or Grad-CAM of the prediction. Marks that were painted on the other of the first two "
        "maps are left out; Grad-CAM takes all.",
    )
    correction_weight: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the loss of the maps. Without it, one that suits the loss; with 0 the corrected images "
        "are trained on as ordinary ones.",
    )
    correction_batch: int = Field(
        8, ge=1, description="Corrected images in a training step, in addition to --batch-size."
    )
    log_every: int = Field(50, ge=1, description="Steps between two lines in the log.")
    maps_every: int = Field(10, ge=0, description="Epochs between two figures of attention maps. 0 draws none.")
    save_minutes: float = Field(
        5.0,
        ge=0,
        allow_inf_nan=False,
        description="Minutes between two saves of the state within an epoch. The end of each epoch is saved anyway.",
    )
    tensorboard: bool = Field(False, description="Also write the log as TensorBoard files.")

    @model_validator(mode="after")
    def _check_combinations(self) -> TrainingSettings:
        if self.warmup > self.epochs or not all(0 <= drop < self.epochs for drop in self.drops):
            raise InvalidInputError(
                f"warmup and milestones must lie within the {self.epochs} epochs, got {self.warmup} and {self.drops}"
            )
        if self.nesterov and not self.momentum:
            raise InvalidInputError("nesterov needs momentum above 0")
        if self.area_weight and self.maps == "per-attribute-signed":
            raise InvalidInputError("area_weight needs maps in [0, 1], and maps=per-attribute-signed are unbounded")
        changed = self.changed()
        branch = ("maps", "smoothing", "area_weight", "attention_weight")
        unused = [name for name in branch if self.mechanism == PLAIN and name in changed]
        if unused:
            raise InvalidInputError(f"{unused[0]} is for an attention branch; mechanism={PLAIN} has none")
        fixed = [name for name in _OF_NETWORK if name in changed] if self.continue_from is not None else []
        if fixed:
            raise InvalidInputError(f"{fixed[0]} is that of the network in continue_from; leave it out")
        alone = [name for name in _OF_CORRECTIONS if name in changed] if self.corrections is None else []
        if alone:
            raise InvalidInputError(f"{alone[0]} is for corrections; give their folder, or leave it out")
        if "on" in changed and self.correction_loss in ("rrr", *_COPIES):
            raise InvalidInputError(f"correction_loss={self.correction_loss} reads no such map; leave on out")
        if self.correction_weight is not None and self.correction_loss in _COPIES:
            raise InvalidInputError(f"{self.correction_loss} have no weight of their own; leave correction_weight out")
        return self

    @property
    def source(self) -> tuple[str, str]:
        """The data set without its place."""
        return "--data", f"{self.data.partition(':')[0]}:DIR"

    @property
    def drops(self) -> tuple[float, ...]:
        """Epochs after which the ``"step"`` schedule lowers the learning rate."""
        return self.milestones if self.milestones is not None else (self.epochs / 2, self.epochs * 3 / 4)

    def check_resumed(self, saved: RunSettings, steps: int, steps_per_epoch: int) -> None:
        """Refuse other epochs or milestones if the steps that are done would have had another learning rate."""
        assert isinstance(saved, TrainingSettings)
        if self.epochs * steps_per_epoch < steps:
            raise RunError(f"the run has done {steps / steps_per_epoch:.4g} epochs; it cannot end after {self.epochs}")
        times = (step // steps_per_epoch + step % steps_per_epoch / steps_per_epoch for step in range(steps))
        if all(self.rate(time) == saved.rate(time) for time in times):
            return
        advice = (
            f"keep it with milestones {', '.join(f'{drop:g}' for drop in saved.drops)}"
            if self.schedule == "step"
            else "a cosine schedule cannot be extended, so start a new run"
        )
        raise RunError(
            f"with epochs {self.epochs} instead of {saved.epochs} the {steps} steps that are done would have had "
            f"another learning rate; {advice}"
        )

    def rate(self, epoch: float) -> float:
        """Return the learning rate at a time in epochs since the start."""
        if self.schedule == "cosine" or epoch < self.warmup:
            return self.lr * warm_up_and_cosine(epoch, self.epochs, self.warmup)
        return self.lr * self.gamma ** sum(epoch >= drop for drop in self.drops)


#: Settings that say which network is trained, and those of corrections.
_OF_NETWORK = ("arch", "mechanism", "maps", "smoothing", "size", "weights")
_COPIES = ("counter-examples", "backgrounds")
_OF_CORRECTIONS = ("correction_loss", "on", "correction_weight", "correction_batch")
#: Settings of one objective of a distillation alone.
_OF_MAP = frozenset(
    (
        "mechanism", "smoothing", "continue_from", "train_stage", "lr", "perception_lr", "map_lr", "area_weight",
        "sufficiency_weight", "necessity_weight",
    )
)  # fmt: skip
_OF_MASKS = frozenset(("mask_lr", "variation_weight", "tile_weight"))


class DistillationSettings(ModelSettings, RunSettings):
    """Settings of :func:`xai_abn.training.run_distillation`; :func:`xai_abn.training.distill` uses some of them."""

    verb = "distill"
    free = frozenset(("images", "device", "workers", "check_every"))
    local = frozenset(("images", "device", "workers"))
    files = frozenset(("model", "weights", "labels", "continue_from"))

    model: str = Field(
        "lite0", description="Classifier to distill: lite0, timm:NAME, torchvision:NAME or the path of a checkpoint."
    )
    device: str = Field("cpu", description="Device to train on, such as cpu or cuda.")
    objective: Literal["map", "masks"] = Field(
        "map",
        description="'map' trains the branches of an Attention Branch Network and its attention map. 'masks' trains a "
        "mask branch, which gives a fine map for any class, and leaves the prediction as it is.",
    )
    images: tuple[str, ...] = Field(
        (),
        description="Folder (searched recursively), file, glob or KIND:PLACE with images to train on; repeat the "
        "option for several. Labels are not used.",
    )
    exclude: tuple[str, ...] = Field(
        (),
        description="Skip images whose file name contains this text, such as _val_; repeat the option for several.",
    )
    least_area: float = Field(
        0.25, gt=0, le=1, description="Smallest share of an image's area that a random crop covers."
    )
    held_out: int = Field(
        64, ge=1, description="Images to hold out for checking the map. At most a fifth of all images is taken."
    )
    mechanism: str = Field(
        "residual",
        description="How the attention map weighs the features: 'residual' (as published), 'product' or "
        "'concatenation'.",
    )
    smoothing: int = Field(
        0,
        ge=0,
        le=100,
        description="Number of times to average the map over 3x3 neighbors. The published network has 0.",
    )
    layer: str | None = Field(
        None, description="Layer behind which the classifier is split. Without it a suitable layer is found."
    )
    continue_from: str | None = Field(
        None, description="Checkpoint of an ABN of the same classifier to start from, instead of a fresh one."
    )
    steps: int = Field(1000, ge=1, description="Number of training steps, each on one batch of images.")
    batch_size: int = Field(32, ge=1, description="Images in a training step.")
    mosaics: int = Field(
        8,
        ge=0,
        le=10_000,
        description="Extra inputs in each step, each a mosaic of several of its images. For objective=map these are "
        "four, and the target is the mean of the teacher's four predictions, so the map must find all four. For "
        "objective=masks they are four or nine, and the mask of one of their classes must lie in its place.",
    )
    lr: float = Field(
        1e-4,
        ge=0,
        allow_inf_nan=False,
        description="Highest learning rate of the attention branch. All learning rates fall to 0 along a cosine.",
    )
    perception_lr: float = Field(
        2e-5,
        ge=0,
        allow_inf_nan=False,
        description="Highest learning rate of the perception branch. A high one makes it forget classes that the "
        "images do not show.",
    )
    map_lr: float = Field(
        5e-3,
        ge=0,
        allow_inf_nan=False,
        description="Highest learning rate of the layers that make the map (att_conv3 and bn_att3).",
    )
    area_weight: float = Field(
        4.0, ge=0, allow_inf_nan=False, description="Weight of a penalty on the mean of the attention map."
    )
    mask_lr: float = Field(2e-3, gt=0, allow_inf_nan=False, description="Highest learning rate of the mask branch.")
    variation_weight: float = Field(
        0.12, ge=0, allow_inf_nan=False, description="Weight of a penalty on differences between neighbors in a mask."
    )
    tile_weight: float = Field(
        0.3,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the share of a mask inside the image of a mosaic whose class it is of.",
    )
    sufficiency_weight: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the sufficiency term: the teacher must predict the same from what the map keeps.",
    )
    necessity_weight: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the necessity term: the teacher must not predict the same from what the map hides.",
    )
    train_stage: bool = Field(
        False, description="Also train the attention branch's copy of the classifier's last stage."
    )
    warmup: float = Field(0.05, ge=0, le=1, description="Share of the steps during which learning rates rise from 0.")
    max_grad_norm: float = Field(
        5.0, gt=0, allow_inf_nan=False, description="Largest norm of the gradient; a longer one is shortened to it."
    )
    workers: int = Field(
        1, ge=0, description="Processes that read images. With 0 the training process reads them itself."
    )
    bf16: bool = Field(
        False,
        description="Compute in bfloat16 where that is safe: faster on GPUs and CPUs with bfloat16 units, several "
        "times slower on others.",
    )
    check_every: int = Field(
        100, ge=1, description="Steps between two checks of the map. At each the model and the state are saved."
    )
    half: bool = Field(False, description="Store the weights of the model file as 16-bit floating-point numbers.")

    @model_validator(mode="after")
    def _check_objective(self) -> DistillationSettings:
        other = _OF_MAP if self.objective == "masks" else _OF_MASKS
        unused = [name for name in self.changed() if name in other]
        if unused:
            raise InvalidInputError(f"{unused[0]} is not for objective={self.objective}; leave it out")
        if not (self.lr or self.perception_lr or self.map_lr):
            raise InvalidInputError("lr, perception_lr and map_lr are all 0, so nothing would be trained")
        return self

    @property
    def source(self) -> tuple[str, str]:
        """One option stands for all folders."""
        return "--images", "DIR..."

    def rate(self, step: int) -> float:
        """Return the share of the highest learning rates at a step counted from 0."""
        warmup = max(1, round(self.warmup * self.steps))
        return warm_up_and_cosine(step + 1 if step < warmup else step, self.steps, warmup)


def warm_up_and_cosine(time: float, total: float, warmup: float) -> float:
    """Return the share of the highest rate, which rises linearly until ``warmup`` and falls to 0 at ``total``."""
    if time < warmup:
        return time / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (time - warmup) / max(total - warmup, 1e-9))))


def make_training_settings(*sources: Mapping[str, Any], preset: str | None = None) -> TrainingSettings:
    """Return training settings from several sources; a later one wins.

    If a source changes the epochs of an earlier one and not the milestones, these move to the same share of the epochs.

    Args:
        sources: settings, such as those of a file and those of the command line.
        preset: ``"published"`` to start from the recipe published for the architecture.

    Raises:
        InvalidInputError: a setting is missing, of a wrong type or out of range.
        UnknownNameError: unknown setting or preset, or no recipe is published for the architecture.
    """
    values: dict[str, Any] = {}
    for source in sources:
        values = _merge(values, source)
    if preset is not None:
        values = _merge(published_recipe(str(values.get("arch", "resnet20")), preset), values)
    return TrainingSettings(**values)


def resumed_settings(saved: Mapping[str, Any], given: Mapping[str, Any]) -> TrainingSettings:
    """Return the settings of a run that is resumed with some of them changed.

    With another number of epochs, the milestones stay where they were; those behind the new end are left out.

    Raises:
        UnknownNameError, InvalidInputError: as for :func:`make_training_settings`.
    """
    run = TrainingSettings(**saved)
    epochs = given.get("epochs", run.epochs)
    stays = {"milestones": [drop for drop in run.drops if drop < epochs]} if epochs != run.epochs else {}
    return TrainingSettings(**{**saved, **(stays if run.schedule == "step" else {}), **given})


def _merge(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    drops, epochs, changed = earlier.get("milestones"), earlier.get("epochs"), later.get("epochs")
    if drops and later.get("milestones") is None:
        if isinstance(epochs, int) and isinstance(changed, int) and isinstance(drops, list | tuple):
            drops = tuple(float(drop) * changed / epochs for drop in drops)
        later = {**later, "milestones": drops}
    return {**earlier, **later}


def published_recipe(arch: str, preset: str = "published") -> dict[str, Any]:
    """Return the settings published for an architecture.

    Source: Fukui et al., CVPR 2019: commands and training logs of the released code (SGD, no Nesterov, no warm-up).

    Raises:
        UnknownNameError: unknown preset or architecture, or no recipe is published for it.
    """
    from xai_abn.networks.architectures import architectures, find_architecture

    if preset != "published":
        raise UnknownNameError("preset", preset, ["published"])
    recipe = find_architecture(arch).recipe
    if not recipe:
        raise UnknownNameError("recipe for", arch, [name for name in architectures if architectures[name].recipe])
    return dict(recipe)


def _check_plain(text: str) -> None:
    """Refuse YAML that takes long to read: aliases, which can stand for any number of values, and deep nesting.

    Raises:
        yaml.YAMLError: it has one of these.
    """
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > MOST_NESTED:
            raise yaml.YAMLError("it has an alias (*name) or lists inside lists; write the values out")


def read_settings(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a YAML or JSON file of settings, such as a run's ``config.yaml``; return settings and notes.

    Raises:
        InvalidInputError: the file is missing, is not YAML, or holds no table of settings.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        _check_plain(text)
        values = yaml.safe_load(text)
    except (OSError, ValueError, OverflowError, RecursionError, yaml.YAMLError) as error:
        raise InvalidInputError(f"{path} is not a readable YAML file ({' '.join(str(error).split())[:300]})") from error
    if not isinstance(values, dict):
        raise InvalidInputError(f"{path}: expected lines such as 'seed: 1', got {type(values).__name__}")
    settings, notes = {}, {}
    for name, value in values.items():
        if name in NOTES:
            notes[name] = value
        elif name not in _REMOVED:
            settings[_RENAMED.get(name, str(name))] = value
        elif value != _REMOVED[name] and name != "stop_after":
            raise InvalidInputError(f"{path}: this version has no setting {name} and cannot continue with {value!r}")
    return settings, notes
