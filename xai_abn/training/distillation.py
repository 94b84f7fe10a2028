"""Distillation: a pretrained classifier becomes an Attention Branch Network on unlabeled images.

The classifier teaches a copy of itself. The teacher sees whole features; the student's perception branch sees features
weighted by the attention map, and an area penalty makes the map as small as it can be while the prediction stays. So
the map keeps what the prediction needs.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from xai_abn.datasets.batches import Batch, RandomCrops
from xai_abn.datasets.splits import find_samples, hold_out
from xai_abn.errors import CheckpointError, ImageLoadError, InvalidInputError, UnsupportedModelError
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.metadata import imagenet_labels
from xai_abn.models.zoo import backbone_of
from xai_abn.networks.abn import AttentionBranchNetwork
from xai_abn.networks.build import abn_from, add_mask_branch
from xai_abn.networks.checkpoint import fingerprints_v1, read_checkpoint
from xai_abn.networks.multi_task import MultiTaskABN
from xai_abn.networks.vit_abn import OnPatches
from xai_abn.networks.weights import load_weights
from xai_abn.seeding import mixed_seed, seeded
from xai_abn.training.crops import MODEL, CropsObjective, Student
from xai_abn.training.log import read_log
from xai_abn.training.loop import Progress, TrainingLoop
from xai_abn.training.losses import distillation_losses
from xai_abn.training.map_check import check_map
from xai_abn.training.masks import MaskObjective
from xai_abn.training.run_folder import RunFolder
from xai_abn.training.settings import DistillationSettings


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
    objective = _objective(student, images, settings)
    names = [Path(sample.source).name for sample in images.samples]
    objective.keep(student, names, held.inputs, folder.path)
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


def _objective(student: Student, images: RandomCrops, settings: DistillationSettings) -> CropsObjective:
    """Return what the settings ask to train."""
    if settings.objective == "masks":
        return MaskObjective(student.network, images, settings)
    return DistillationObjective(student.network, images, settings, student.teacher)


def _accelerator() -> Any:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    if accelerator.num_processes > 1:
        raise InvalidInputError("a distillation runs in one process; start it without torchrun or accelerate launch")
    return accelerator


def make_student(classifier: ModelAdapter, settings: DistillationSettings) -> Student:
    """Make an ABN of a classifier, with weights of ``settings.continue_from`` if given.

    Raises:
        UnsupportedModelError: the classifier is multi-label, cannot become an ABN, or cannot be named in a checkpoint.
        CheckpointError: ``settings.continue_from`` cannot be read, or was made of another classifier.
    """
    spec, masks = settings.model, settings.objective == "masks"
    if classifier.multi_label:
        raise UnsupportedModelError(
            f"{spec} is multi-label, and distillation compares softmax probabilities; train its ABN with labels"
        )
    if classifier.black_box:
        raise UnsupportedModelError(
            f"{spec} is a black box, of which no ABN can be made; give the network from which it was exported"
        )
    if classifier.is_abn and not masks:
        raise UnsupportedModelError(
            f"{spec} is an Attention Branch Network already; to train it further, give the classifier it was made of "
            "as model, and it as continue_from"
        )
    backbone, size = backbone_of(spec, classifier), classifier.preprocess.side
    if isinstance(classifier.module, AttentionBranchNetwork):
        network = classifier.module
    else:
        # with masks alone, the prediction stays that of the classifier
        mechanism = "auxiliary" if masks else settings.mechanism
        network = abn_from(
            classifier.module,
            mechanism=mechanism,
            layer=settings.layer,
            smoothing=settings.smoothing,
            input_size=size,
        )
    if masks and network.mask_branch is None:
        add_mask_branch(network, torch.zeros(1, *classifier.preprocess.shape).to(next(network.parameters())))
    network = network.to(memory_format=torch.channels_last)
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


class DistillationObjective(CropsObjective):
    """The distillation losses on random crops; see :func:`distill`.

    Args:
        network: the student.
        images: gives (3, H, W) crops, or an ImageLoadError for an unreadable image.
        settings: see :class:`DistillationSettings`.
        teacher: see :func:`distill`.

    Raises:
        InvalidInputError: there are fewer images than a batch holds.
        UnsupportedModelError: the network is made of a Vision Transformer, or has a map for each attribute.
    """

    what, advice = "self-distillation", "lower lr or map_lr"

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
                "g*M hides; train its ABN with labels, as docs/how-to/vit-abn.md shows"
            )
        branch = network.attention_branch
        trunk = [branch.bn_att, branch.att_conv, branch.bn_att2, branch.att_conv2]
        parts = [
            (settings.lr, [*trunk, branch.stage] if settings.train_stage else trunk),
            (settings.perception_lr, [network.perception_branch, network.mechanism]),
            (settings.map_lr, [branch.att_conv3, branch.bn_att3]),
        ]
        super().__init__(network, images, settings, parts)
        self.teacher = copy.deepcopy(network.perception_branch if teacher is None else teacher)
        self.teacher.eval().requires_grad_(False)

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Also let the statistics of the map's own BatchNorm follow."""
        with super().training():
            self.network.attention_branch.bn_att3.train(self.settings.map_lr > 0)
            yield

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return loss and terms of a batch; the mosaics depend on seed and step alone."""
        generator = torch.Generator().manual_seed(mixed_seed(self.settings.seed, "mosaics", step))
        return distillation_losses(self.network, self.teacher, batch.images, self.settings, generator)

    def trained(self) -> Mapping[str, Tensor]:
        """Return the weights and statistics behind the feature extractor, which is frozen."""
        weights = self.network.state_dict().items()
        return {name: t for name, t in weights if not name.startswith("feature_extractor.")}

    def measure(self, held_out: Tensor) -> dict[str, Any]:
        """Check the map."""
        return check_map(self.network, self.teacher, held_out).to_dict()

    def frozen(self) -> nn.Module:
        """Return the classifier."""
        return nn.ModuleList([self.network.feature_extractor, self.teacher])

    def origin_v1(self) -> Mapping[str, set[str]]:
        """Return the classifier's fingerprints of version 1."""
        return {"classifier": fingerprints_v1(self.frozen())}
