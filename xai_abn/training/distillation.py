"""Distillation: a pretrained classifier becomes an Attention Branch Network on unlabeled images.

The classifier teaches a copy of itself. The teacher sees whole features; the student's perception branch sees features
weighted by the attention map, and an area penalty makes the map as small as it can be while the prediction stays. So
the map keeps what the prediction needs.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from xai_abn.datasets.batches import Batch, RandomCrops, ignore_signals, stack_readable
from xai_abn.datasets.splits import find_samples, hold_out
from xai_abn.errors import CheckpointError, ImageLoadError, InvalidInputError, UnsupportedModelError
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.metadata import imagenet_labels
from xai_abn.models.zoo import load_checkpoint
from xai_abn.networks.abn import AttentionBranchNetwork
from xai_abn.networks.build import abn_from
from xai_abn.networks.checkpoint import (
    CheckpointConfig,
    fingerprint,
    fingerprints_v1,
    read_checkpoint,
    save_checkpoint,
)
from xai_abn.networks.multi_task import MultiTaskABN
from xai_abn.networks.vit_abn import OnPatches
from xai_abn.networks.weights import load_weights
from xai_abn.seeding import mixed_seed, seeded
from xai_abn.training.log import read_log
from xai_abn.training.loop import Objective, Progress, TrainingLoop
from xai_abn.training.losses import distillation_losses
from xai_abn.training.map_check import check_map
from xai_abn.training.run_folder import RunFolder
from xai_abn.training.settings import DistillationSettings
from xai_abn.training.state import Position

MODEL = "model.safetensors"


@dataclass(frozen=True)
class DistillationSummary:
    """Results of a run.

    Attributes:
        checkpoint: file of the model.
        done: steps done.
        steps: all steps of the run.
        checks: every check in order: the fields of :class:`MapCheck` with ``step`` and ``warning``.
        unreadable: reasons for unreadable images, one for each image met since the run was started or resumed.
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


def distill(
    network: AttentionBranchNetwork,
    images: Dataset[Any],
    settings: DistillationSettings = DistillationSettings(),
    log: Callable[[dict[str, Any]], None] | None = None,
    teacher: nn.Module | None = None,
) -> AttentionBranchNetwork:
    """Train an ABN, in place, to predict as its own backbone does and to show where it looks.

    The loss is ``KL(teacher || attention branch) + KL(teacher || perception branch) +
    area_weight * mean(M) + sufficiency_weight * KL(teacher || teacher's prediction from g*M) +
    necessity_weight * overlap(teacher, teacher's prediction from g(1 - M))``.
    The feature extractor stays frozen, as do all BatchNorm statistics but the map's own.

    Args:
        network: fresh from :func:`xai_abn.abn_from`, or a distilled one with its ``teacher``.
        images: gives (3, H, W) crops, or an ImageLoadError for an unreadable image, such as
            :class:`xai_abn.datasets.batches.RandomCrops`.
        settings: see :class:`DistillationSettings`; those that name model, images or files are not used.
        log: called after each step with the step, learning rate, losses, mean of M and images per second.
        teacher: features (N, C, h, w) to logits (N, K), the backbone's own part behind the split; default: the
            perception branch as it is now, which is right for a fresh network only.

    Returns:
        The same network, in evaluation mode, with every parameter's ``requires_grad`` as it was.

    Raises:
        NonFiniteError: the loss or the weights are no longer finite; the message gives the step.
        InvalidInputError: there are fewer images than a batch holds, or several processes.
        ImageLoadError: no image of a batch can be read, or one cannot and ``on_unreadable`` is ``"stop"``.
        UnsupportedModelError: the network is made of a Vision Transformer, or has a map for each attribute.
    """
    objective = DistillationObjective(network, images, settings, teacher)
    TrainingLoop(objective, _accelerator(), on_step=log).run()
    return network


def run_distillation(
    output: str | Path,
    settings: DistillationSettings,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> DistillationSummary:
    """Distill a classifier into an ABN on unlabeled images, and check its map on held-out images.

    The model and the state are saved after each check: at the start, every ``check_every`` steps and at the end. A run
    that was killed loses the steps since its last check; on the CPU it then makes the same weights, bit for bit, as if
    it had not been killed.

    Args:
        output: folder for ``model.safetensors``, ``log.jsonl``, ``config.yaml`` and ``state.safetensors``.
        settings: see :class:`DistillationSettings`.
        resume: continue the run in ``output``, from its start if nothing was saved yet.
        overwrite: replace the run in ``output``, once images and model are checked.
        progress: called after each step.

    Raises:
        RunError: the folder already holds a run, or the one to resume is missing or was made with something else.
        ImageLoadError, InvalidInputError: there are no images, too few, or unreadable ones.
        UnknownNameError, WeightsError, CheckpointError: the model or the state cannot be loaded.
        UnsupportedModelError: the model cannot become an ABN, or its checkpoint could not be loaded again.
        NonFiniteError: the loss is no longer finite; the last saved model stays.
        OutputError: a file cannot be written; the last saved state stays.
    """
    accelerator = _accelerator()
    folder = RunFolder(output, results=(MODEL,))
    resuming = folder.check(settings, resume=resume, overwrite=overwrite)
    samples = find_samples(settings.images, settings.exclude)
    with seeded(settings.seed):  # for weights that do not come from the classifier
        classifier = settings.load(settings.device)
        student = make_student(classifier, settings)
    held = hold_out(samples, classifier.preprocess, settings.held_out)
    if held.unreadable and settings.on_unreadable == "stop":
        raise ImageLoadError(held.unreadable[0])
    images = RandomCrops(held.rest, classifier.preprocess, (settings.least_area, 1.0))
    objective = CheckedDistillation(student, images, settings, held.inputs, folder.path)
    loop = TrainingLoop(objective, accelerator, folder, progress)
    if resuming:
        loop.restore()
        folder.resume(settings)
    else:
        folder.start(settings)
    loop.run()
    unreadable = dict.fromkeys([*held.unreadable, *objective.unreadable])
    checks = read_log(folder.log, "check")
    return DistillationSummary(folder.path / MODEL, loop.step, settings.steps, checks, list(unreadable))


def _accelerator() -> Any:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    if accelerator.num_processes > 1:
        raise InvalidInputError("a distillation runs in one process; start it without torchrun or accelerate launch")
    return accelerator


@dataclass(frozen=True)
class Student:
    """A network to distill into.

    Attributes:
        network: the ABN.
        teacher: features (N, C, h, w) to logits (N, K), the classifier's own part behind the split.
        description: its checkpoint's description, except the training record.
        earlier: records of its earlier training, the oldest first.
    """

    network: AttentionBranchNetwork
    teacher: nn.Module
    description: Mapping[str, Any]
    earlier: list[dict[str, Any]]


def make_student(classifier: ModelAdapter, settings: DistillationSettings) -> Student:
    """Make an ABN of a classifier, with weights of ``settings.continue_from`` if given.

    Raises:
        UnsupportedModelError: the classifier is multi-label, cannot become an ABN, or cannot be named in a checkpoint.
        CheckpointError: ``settings.continue_from`` cannot be read, or was made of another classifier.
    """
    spec = settings.model
    if classifier.multi_label:
        raise UnsupportedModelError(
            f"{spec} is multi-label, and distillation compares softmax probabilities; train its ABN with labels"
        )
    if classifier.is_abn:
        raise UnsupportedModelError(
            f"{spec} is an Attention Branch Network already; to train it further, give the classifier it was made of "
            "as model, and it as continue_from"
        )
    if spec == "lite0" or spec.partition(":")[0] in ("timm", "torchvision"):
        backbone = spec
    elif Path(spec).exists():  # a checkpoint, or the folder of a run
        backbone = read_checkpoint(classifier.weights)[0].backbone
    else:
        raise UnsupportedModelError(
            f"{spec} is a plug-in's model, which a checkpoint cannot rebuild; use xai_abn.training.distill in Python"
        )
    network = abn_from(
        classifier.module,
        mechanism=settings.mechanism,
        layer=settings.layer,
        smoothing=settings.smoothing,
        input_size=classifier.preprocess.side,
    ).to(memory_format=torch.channels_last)
    teacher = copy.deepcopy(network.perception_branch)
    earlier = _continue_from(settings.continue_from, network, spec) if settings.continue_from else []
    labels = classifier.labels
    description = {
        "backbone": backbone,
        "classes": classifier.number_of_classes,
        "abn": network.description,
        "preprocess": classifier.preprocess,
        "labels": "imagenet" if labels == imagenet_labels() else labels and list(labels),
    }
    return Student(network, teacher, description, earlier)


def _continue_from(path: str, network: AttentionBranchNetwork, model: str) -> list[dict[str, Any]]:
    """Load the weights of a checkpoint; return the records of its training, the oldest first."""
    before, weights = read_checkpoint(path)
    extractor = copy.deepcopy(network.feature_extractor.state_dict())
    load_weights(network, weights, path)
    for name, value in network.feature_extractor.state_dict().items():
        if not torch.allclose(value.float(), extractor[name].float(), rtol=1e-3, atol=1e-4):  # it may be stored as fp16
            raise CheckpointError(f"{path}: was made of another classifier than {model} (its {name} differs)")
    last = {name: value for name, value in before.training.items() if name != "earlier"}
    return [*before.training.get("earlier", []), last]


class InfiniteCrops(Dataset[Any]):
    """An endless sequence of crops: all images in a random order, then all in another, and so on.

    Each crop depends on the seed and its number alone, so a resumed run sees the crops it would have seen, with any
    number of workers.

    Args:
        images: gives crops, drawn with torch's random numbers.
        seed: seed of the orders and the crops.
    """

    def __init__(self, images: Dataset[Any], seed: int) -> None:
        self.images, self.seed = images, seed
        self.size = len(images)  # type: ignore[arg-type]
        self._pass, self._order = -1, torch.empty(0)

    def __getitem__(self, number: int) -> Any:
        """Return crop ``number``, counted from 0; torch's random state stays."""
        through, position = divmod(number, self.size)
        if through != self._pass:
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, "order", through))
            self._pass, self._order = through, torch.randperm(self.size, generator=generator)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mixed_seed(self.seed, "crop", number))
            return self.images[int(self._order[position])]


class DistillationObjective(Objective):
    """The distillation losses on random crops; see :func:`distill`.

    Args:
        network: the student.
        images: gives (3, H, W) crops, or an ImageLoadError for an unreadable image.
        settings: see :class:`DistillationSettings`.
        teacher: see :func:`distill`.

    Attributes:
        unreadable: reasons for unreadable images so far, in order.

    Raises:
        InvalidInputError: there are fewer images than a batch holds.
        UnsupportedModelError: the network is made of a Vision Transformer, or has a map for each attribute.
    """

    kind, check_kind, advice = "distill", "check", "lower lr or map_lr"
    settings: DistillationSettings

    def __init__(
        self,
        network: AttentionBranchNetwork,
        images: Dataset[Any],
        settings: DistillationSettings,
        teacher: nn.Module | None = None,
    ) -> None:
        if isinstance(network, MultiTaskABN):
            raise UnsupportedModelError("distill teaches one map for all classes; train a multi-task ABN with labels")
        if isinstance(network.mechanism, OnPatches):
            raise UnsupportedModelError(
                "distill weighs whole feature maps, and in a Vision Transformer the class token would still tell what "
                "g*M hides; train its ABN with labels, as docs/guide.md shows"
            )
        self.network, self.settings = network, settings
        self.crops = InfiniteCrops(images, settings.seed)
        if self.crops.size < settings.batch_size:
            raise InvalidInputError(
                f"a batch of {settings.batch_size} needs as many images to train on, got {self.crops.size}; lower "
                "batch_size"
            )
        self.teacher = copy.deepcopy(network.perception_branch if teacher is None else teacher)
        self.teacher.eval().requires_grad_(False)
        self.device = next(network.parameters()).device
        self.epochs, self.steps_per_epoch, self.max_grad_norm = 1, settings.steps, settings.max_grad_norm
        self.unreadable: dict[str, None] = {}
        self.origin: Mapping[str, str] = {}
        self._peak_rates, groups = self._parameter_groups()
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)

    def _parameter_groups(self) -> tuple[list[float], list[dict[str, Any]]]:
        """Return learning rates and parameters of attention branch, perception branch and map layers."""
        network, settings, branch = self.network, self.settings, self.network.attention_branch
        trunk = [branch.bn_att, branch.att_conv, branch.bn_att2, branch.att_conv2]
        parts = [
            (settings.lr, [*trunk, branch.stage] if settings.train_stage else trunk),
            (settings.perception_lr, [network.perception_branch, network.mechanism]),
            (settings.map_lr, [branch.att_conv3, branch.bn_att3]),
        ]
        groups = [(rate, [p for m in modules for p in m.parameters()]) for rate, modules in parts if rate > 0]
        groups = [(rate, parameters) for rate, parameters in groups if parameters]
        return [rate for rate, _ in groups], [{"params": parameters, "lr": rate} for rate, parameters in groups]

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Freeze everything that is not trained; afterwards flags are as before, and the network in evaluation mode."""
        network = self.network
        flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
        network.eval().requires_grad_(False)
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.requires_grad_(True)
        network.attention_branch.bn_att3.train(self.settings.map_lr > 0)
        try:
            yield
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            network.eval()

    def batches(self, epoch: int, first: int, last: int | None = None) -> Iterator[Batch]:
        """Yield the batches of the steps; see :class:`Objective`.

        Raises:
            ImageLoadError: an image cannot be read and this stops the run, or no image of a batch can be read.
        """
        settings = self.settings
        steps = range(first, self.steps_per_epoch if last is None else last)
        loader = DataLoader(
            self.crops,
            batch_size=settings.batch_size,
            sampler=range(steps.start * settings.batch_size, steps.stop * settings.batch_size),
            num_workers=settings.workers,
            collate_fn=stack_readable,
            generator=torch.Generator().manual_seed(settings.seed),
            worker_init_fn=ignore_signals,
        )
        for images, unreadable in loader:
            self.unreadable |= dict.fromkeys(unreadable)
            if unreadable and settings.on_unreadable == "stop":
                raise ImageLoadError(unreadable[0])
            if not len(images):
                raise ImageLoadError(
                    f"none of the {len(unreadable)} images of a batch can be read; the first: {unreadable[0]}"
                )
            images = images.to(self.device, memory_format=torch.channels_last)
            yield Batch(images, torch.empty(0), len(unreadable))

    def rates(self, epoch: int, step: int) -> list[float]:
        """Return the learning rate of each parameter group."""
        return [rate * self.settings.rate(step) for rate in self._peak_rates]

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return loss and terms of a batch; the mosaics depend on seed and step alone."""
        generator = torch.Generator().manual_seed(mixed_seed(self.settings.seed, "mosaics", step))
        return distillation_losses(self.network, self.teacher, batch.images, self.settings, generator)

    def check(self, position: Position, means: Mapping[str, float]) -> dict[str, Any]:
        """Return nothing to log."""
        return {}

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Return the weights and statistics behind the feature extractor, which is frozen."""
        weights = self.network.state_dict().items()
        return {"network": {name: t for name, t in weights if not name.startswith("feature_extractor.")}}

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Load what :meth:`tensors` returned."""
        if tensors["network"].keys() != self.tensors()["network"].keys():
            raise ValueError("its layers have other names")
        self.network.load_state_dict({**self.network.state_dict(), **tensors["network"]})


class CheckedDistillation(DistillationObjective):
    """A distillation whose map is checked on held-out images whenever its model is saved.

    Args:
        student: see :class:`Student`.
        images: see :class:`DistillationObjective`.
        settings: see :class:`DistillationSettings`.
        held_out: (N, 3, H, W) inputs that are never trained on.
        folder: where the model is saved.
    """

    def __init__(
        self, student: Student, images: RandomCrops, settings: DistillationSettings, held_out: Tensor, folder: Path
    ) -> None:
        super().__init__(student.network, images, settings, student.teacher)
        self.student, self.held_out, self.path = student, held_out, folder / MODEL
        self.check_start, self.check_every = True, settings.check_every
        names = "\n".join(Path(sample.source).name for sample in images.samples)
        self.origin = {
            "images": hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()[:32],
            "classifier": fingerprint(nn.ModuleList([self.network.feature_extractor, self.teacher])),
        }

    def origin_v1(self) -> Mapping[str, set[str]]:
        """Return the classifier's fingerprints of version 1."""
        return {"classifier": fingerprints_v1(nn.ModuleList([self.network.feature_extractor, self.teacher]))}

    def check(self, position: Position, means: Mapping[str, float]) -> dict[str, Any]:
        """Check the map, and save the model."""
        settings = self.settings
        found = check_map(self.network, self.teacher, self.held_out).to_dict()
        record = {
            "method": "self-distillation (xai_abn.training.run_distillation)",
            "teacher": settings.portable()["model"],
            "images": self.crops.size,
            "held_out": len(self.held_out),
            "settings": settings.portable(),
            "command": settings.command(),
            "earlier": self.student.earlier,
            "steps_done": position.step,
            "map_check": found,
        }
        description = CheckpointConfig(**self.student.description, training=record)
        save_checkpoint(self.path, self.network, description, half=settings.half)
        if position.step == 0:
            load_checkpoint(self.path)  # fails now rather than after hours
        return {**found, "skipped": int(means["skipped"]), "seconds": position.seconds}
