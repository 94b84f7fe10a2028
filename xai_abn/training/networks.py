"""The pictures and the network that a configuration asks for, and its description in a checkpoint."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from xai_abn.datasets import ReadOptions, TrainingData, read_training_data
from xai_abn.errors import CheckpointError, InvalidInputError, XaiAbnWarning
from xai_abn.networks.abn import AttentionBranchNetwork
from xai_abn.networks.architectures import abn_arguments, create_model, find_architecture
from xai_abn.networks.build import abn_from
from xai_abn.networks.checkpoint import CheckpointConfig, load_weights, read_weights
from xai_abn.networks.tracing import find_classifier
from xai_abn.training.settings import BASELINE, TrainingSettings


class LeftOutWarning(XaiAbnWarning):
    """Given when not all of a file of weights, or of the training pictures, is used."""


def read_pictures(config: TrainingSettings) -> TrainingData:
    """Read the data, at the size that the configuration or else the architecture asks for.

    Raises:
        UnknownNameError: no such kind of data or architecture.
        DatasetError: missing, damaged, or labels that do not fit.
        InvalidInputError: the data has one size, and another is asked for.
    """
    size = config.size or find_architecture(config.arch).size
    names = ("workers", "on_unreadable", "validation")
    data = read_training_data(config.data, ReadOptions(size=size, **{name: getattr(config, name) for name in names}))
    own = data.preprocess.size
    if config.size not in (None, own):
        raise InvalidInputError(f"size must be {own}, which {data.name} has, or left out; got {config.size}")
    return data


def build_network(config: TrainingSettings, data: TrainingData) -> nn.Module:
    """Build the network, with weights drawn from torch's random state or, of the backbone, read from a file.

    A seed gives the backbone the same weights for every mechanism.

    Raises:
        UnknownNameError: no such architecture or mechanism.
        CheckpointError: ``config.weights`` cannot be read or do not fit.
        InvalidInputError: a map for each attribute is wanted, and the data has classes; or a setting is for classes,
            and the data has attributes.
    """
    if data.multi_label and config.label_smoothing:
        raise InvalidInputError(f"label_smoothing is for classes, and {data.name} has attributes; leave it out")
    if config.maps != "shared" and not data.multi_label:
        raise InvalidInputError(
            f"maps={config.maps} needs attributes that may hold at once, and {data.name} has one class a picture; "
            "train with maps=shared"
        )
    network = create_model(config.arch, len(data.labels), mechanism=None)
    if config.weights is not None:
        load_backbone(network, config.weights)
    if config.mechanism != BASELINE:
        network = abn_from(network, **abn_settings(config, data))
        if not network.uses_map:
            for part in network.attention_branch.map_layers:
                part.requires_grad_(False)
    return network.train()


def abn_settings(config: TrainingSettings, data: TrainingData) -> dict[str, Any]:
    """Return the arguments of :func:`xai_abn.abn_from`."""
    start = "random" if config.weights is None else "classifier"
    more = {"mechanism": config.mechanism, "smoothing": config.smoothing, "start": start}
    return abn_arguments(config.arch, **more, input_size=data.preprocess.size, maps=config.maps)


def load_backbone(network: nn.Module, path: str) -> None:
    """Load weights into a classifier; a last layer of another number of classes is left out, with a warning.

    Raises:
        CheckpointError: anything else is missing or of another shape.
    """
    own, given = network.state_dict(), read_weights(path)
    other = [name for name in given if name in own and own[name].shape != given[name].shape]
    if other:
        classifier = find_classifier(network)
        last = next(name for name, module in network.named_modules() if module is classifier)
        more = sorted({name.rpartition(".")[0] for name in other} - {last})
        if more:
            raise CheckpointError(f"{path}: more than the last layer has another shape: {', '.join(more[:4])}")
        warnings.warn(
            LeftOutWarning(f"{path}: the last layer, {last}, has {len(given[other[0]])} classes and is left out"),
            stacklevel=2,
        )
    load_weights(network, {**given, **{name: own[name] for name in other}}, path)


def describe(
    config: TrainingSettings, data: TrainingData, network: nn.Module, command: str, reached: dict[str, float]
) -> CheckpointConfig:
    """Return everything about a trained network but its weights."""
    settings = {k: v for k, v in config.to_dict().items() if k not in ("data", "weights")}
    return CheckpointConfig(
        backbone=config.arch,
        classes=len(data.labels),
        abn=network.description if isinstance(network, AttentionBranchNetwork) else None,
        preprocess=data.preprocess,
        labels=list(data.labels),
        training={"data": data.name, "settings": settings, "command": command, "reached": reached},
        multi_label=data.multi_label,
    )
