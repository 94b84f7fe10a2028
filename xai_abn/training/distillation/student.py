"""From a classifier to the network that is to be trained, its teacher, and what a checkpoint must say of both."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xai_abn.errors import CheckpointError, UnsupportedModelError
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.zoo import imagenet_labels
from xai_abn.networks.abn import AttentionBranchNetwork
from xai_abn.networks.build import abn_from
from xai_abn.networks.checkpoint import load_weights, read_checkpoint
from xai_abn.training.distillation.settings import DistillationSettings


@dataclass(frozen=True)
class Student:
    """The network to train, and what belongs to it.

    Attributes:
        network: the student.
        teacher: features (N, C, h, w) to logits (N, K), the classifier's own part behind the split.
        description: all that its checkpoint says but how it was trained.
        earlier: how it was trained before, the oldest first.
    """

    network: AttentionBranchNetwork
    teacher: nn.Module
    description: dict[str, Any]
    earlier: list[dict[str, Any]]

    @classmethod
    def of(cls, classifier: ModelAdapter, settings: DistillationSettings) -> Student:
        """Make one of a classifier.

        Raises:
            UnsupportedModelError: it is multi-label, cannot become an ABN, or its checkpoint could not be loaded again.
            CheckpointError: what to continue from cannot be read, or does not fit.
        """
        if classifier.multi_label:
            raise UnsupportedModelError(
                f"{settings.model} is multi-label, and distilling compares softmax answers; train its ABN with labels"
            )
        backbone = _backbone(classifier, settings.model)
        look = classifier.preprocess
        recipe: dict[str, Any] = {
            "mechanism": settings.mechanism,
            "smoothing": settings.smoothing,
            "input_size": look.size,
        }
        if settings.layer is not None:
            recipe["layer"] = settings.layer
        network = abn_from(classifier.module, **recipe).to(memory_format=torch.channels_last)
        teacher = copy.deepcopy(network.perception_branch)
        earlier = _continue(network, teacher, settings)
        labels = classifier.labels
        description = {
            "backbone": backbone,
            "classes": classifier.number_of_classes,
            "abn": network.description,
            "preprocess": look,
            "labels": "imagenet" if labels == imagenet_labels() else labels and list(labels),
        }
        return cls(network, teacher, description, earlier)


def _backbone(classifier: ModelAdapter, spec: str) -> str:
    """Return the name under which a checkpoint's reader finds the architecture."""
    if classifier.is_abn:
        raise UnsupportedModelError(
            f"{spec} is an Attention Branch Network already; to train it further, name the classifier it was made of "
            "as model, and it as continue_from"
        )
    if spec == "lite0" or spec.partition(":")[0] in ("timm", "torchvision"):
        return spec
    if Path(spec).is_file():
        return read_checkpoint(spec)[0].backbone
    raise UnsupportedModelError(
        f"{spec} is a plug-in's model, which a checkpoint cannot rebuild; use xai_abn.training.distill in Python"
    )


def _continue(
    network: AttentionBranchNetwork, teacher: nn.Module, settings: DistillationSettings
) -> list[dict[str, Any]]:
    """Load the checkpoint to go on from, if any; return the records of its training, the oldest first."""
    if settings.continue_from is None:
        return []
    before, state = read_checkpoint(settings.continue_from)
    extractor = copy.deepcopy(network.feature_extractor.state_dict())
    load_weights(network, state, settings.continue_from)
    for name, value in network.feature_extractor.state_dict().items():
        if not torch.allclose(value.float(), extractor[name].float(), rtol=1e-3, atol=1e-4):  # it may be kept in fp16
            raise CheckpointError(
                f"{settings.continue_from}: was made of another classifier than {settings.model} (its {name} differs)"
            )
    if settings.restore_head:
        network.perception_branch.load_state_dict(teacher.state_dict())
    last = {name: value for name, value in before.training.items() if name != "earlier"}
    return [*before.training.get("earlier", []), last]
