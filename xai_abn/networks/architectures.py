"""Untrained networks by name, each with the arguments of :func:`abn_from` that make its ABN.

Split points are those of the released code (Fukui et al., CVPR 2019); for other networks they are found automatically.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from xai_abn.errors import InvalidInputError, UnknownNameError
from xai_abn.networks.build import abn_from
from xai_abn.networks.efficientnet_lite import EfficientNetLite0
from xai_abn.registry import Registry


@dataclass(frozen=True)
class Architecture:
    """A network that can be built by name.

    Attributes:
        build: number of classes K to an untrained classifier (N, 3, H, W) -> (N, K).
        size: height and width it was designed for.
        description: one line.
        abn: arguments of :func:`xai_abn.abn_from` that give the published split.
        recipe: published training settings, as xai_abn.training.TrainingSettings takes them; empty if there are none.
    """

    build: Callable[[int], nn.Module]
    size: int
    description: str
    abn: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)


architectures: Registry[Architecture] = Registry("architecture")

_RESNET = {"layer": "layer2", "stage": "layer3", "dilate": False}
_DENSENET = {"layer": "trans2", "stage": "dense3", "dilate": False}
_WRN = {"layer": "block2", "stage": "block3", "dilate": False}
_IMAGENET_RESNET = {"layer": "layer3", "stage": "layer4", "dilate": False}
# Recipes of the released code's commands and training logs.
_CIFAR = {"epochs": 300, "batch_size": 128, "lr": 0.1, "weight_decay": 1e-4, "milestones": (150, 225), "gamma": 0.1}
_DENSENET_CIFAR = {**_CIFAR, "batch_size": 64}
_WRN_CIFAR = {**_CIFAR, "weight_decay": 5e-4, "gamma": 0.2}
_RESNEXT_CIFAR = {**_CIFAR, "weight_decay": 5e-4}
_IMAGENET = {"epochs": 90, "batch_size": 256, "lr": 0.1, "weight_decay": 1e-4, "milestones": (31, 61), "gamma": 0.1}


def _cifar(kind: str, *numbers: int, **more: Any) -> nn.Module:
    """Build a network of :mod:`xai_abn.networks.cifar`, which imports torchvision."""
    from xai_abn.networks import cifar

    network: nn.Module = getattr(cifar, kind)(*numbers, **more)
    return network


def _from_library(spec: str, classes: int) -> nn.Module:
    library, _, name = spec.partition(":")
    if library == "timm":
        import timm

        return timm.create_model(name, num_classes=classes)
    from torchvision import models as tv

    alone = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    result: nn.Module = tv.get_model(name, weights=None, num_classes=classes, **alone)
    return result


@dataclass(frozen=True)
class Family:
    """Published networks for CIFAR of one kind and any size, named by their numbers.

    Attributes:
        form: how their names are formed, with ``{}`` for each number; the depth comes first.
        build: the numbers and the number of classes to an untrained classifier.
        description: one line, with ``{}`` for each number and ``{layers}`` for the layers of three times as many
            convolutions.
        limits: largest value of each number.
        abn: see :class:`Architecture`.
        recipe: see :class:`Architecture`.
    """

    form: str
    build: Callable[..., nn.Module]
    description: str
    limits: tuple[int, ...]
    abn: Mapping[str, Any]
    recipe: Mapping[str, Any]

    def find(self, name: str) -> Architecture | None:
        """Return the architecture of this name, or None if it is no name of this family.

        Raises:
            InvalidInputError: a number is beyond its limit.
        """
        match = re.fullmatch(re.escape(self.form).replace(r"\{\}", r"(\d{1,9})"), name)
        if match is None:
            return None
        numbers = [int(text) for text in match.groups()]
        if not all(1 <= number <= limit for number, limit in zip(numbers, self.limits, strict=True)):
            raise InvalidInputError(f"the largest network of its kind is {self.form.format(*self.limits)}, got {name}")
        layers = (numbers[0] - 2) // 6 * 9 + 2
        description = self.description.format(*numbers, layers=layers)
        return Architecture(partial(self.build, *numbers), 32, description, self.abn, self.recipe)


#: Families of networks, whose members need no name of their own here.
FAMILIES = (
    Family("resnet{}", partial(_cifar, "resnet"), "ResNet-{} for CIFAR", (2000,), _RESNET, _CIFAR),
    Family(
        "resnet{}-bottleneck",
        partial(_cifar, "bottleneck_resnet"),
        '"ResNet-{}" of the released code: {layers} layers of bottlenecks',
        (2000,),
        _RESNET,
        _CIFAR,
    ),
    Family("seresnet{}", partial(_cifar, "se_resnet"), "SE-ResNet-{} for CIFAR", (2000,), _RESNET, _CIFAR),
    Family(
        "densenet-bc-{}-{}",
        partial(_cifar, "CifarDenseNet"),
        "DenseNet-BC-{}-{} for CIFAR",
        (250, 48),
        _DENSENET,
        _DENSENET_CIFAR,
    ),
    Family(
        "wrn-{}-{}",
        partial(_cifar, "WideResNet", dropout=0.3),
        "WRN-{}-{}, dropout 0.3, for CIFAR",
        (200, 32),
        _WRN,
        _WRN_CIFAR,
    ),
    Family(
        "resnext{}-{}x64d",
        partial(_cifar, "resnext"),
        "ResNeXt-{}, {}x64d, for CIFAR",
        (200, 64),
        _RESNET,
        _RESNEXT_CIFAR,
    ),
)


def _of_family(name: str) -> Architecture | None:
    return next((found for family in FAMILIES if (found := family.find(name)) is not None), None)


def _add(name: str, architecture: Architecture | None = None) -> None:
    architecture = architecture or _of_family(name)
    assert architecture is not None  # one of the two is given
    architectures.register(name)(architecture)


for _depth in (20, 32, 44, 56, 110):
    _add(f"resnet{_depth}")
_text = "ResNet-20 with 25, 50, 100 channels: multiply-adds of the ABN of ResNet-20"
_add("resnet20-wide", Architecture(partial(_cifar, "resnet", 20, planes=25), 32, _text, _RESNET, _CIFAR))
for _name in ("resnet44-bottleneck", "resnet56-bottleneck", "resnet110-bottleneck", "seresnet20", "seresnet110"):
    _add(_name)
for _name in ("densenet-bc-100-12", "wrn-28-10", "resnext29-8x64d"):
    _add(_name)
for _spec, _text in (
    *((f"torchvision:resnet{_depth}", f"torchvision's ResNet-{_depth}") for _depth in (18, 34, 50, 101, 152)),
    ("timm:seresnet50", "timm's SE-ResNet-50"),
):
    _build = partial(_from_library, _spec)
    _add(_spec.partition(":")[2], Architecture(_build, 224, _text, _IMAGENET_RESNET, _IMAGENET))
_build = partial(_from_library, "torchvision:vgg16_bn")
_add("vgg16-bn", Architecture(_build, 224, "torchvision's VGG-16 with BatchNorm"))


def find_architecture(spec: str) -> Architecture:
    """Return the architecture that ``spec`` names.

    Args:
        spec: one of ``architectures.names()``, a member of one of ``FAMILIES``, such as ``"wrn-16-4"``, ``"lite0"``,
            ``"timm:NAME"`` or ``"torchvision:NAME"``.

    Raises:
        UnknownNameError: no such network; the message suggests the nearest names.
        InvalidInputError: a member of a family beyond its limits.
    """
    library, _, name = spec.partition(":")
    if library in _KNOWN and name:
        check_library_name(library, name)
        return Architecture(partial(_from_library, spec), 224, f"{library}'s {name}")
    if spec == "lite0":
        return Architecture(EfficientNetLite0, 224, "EfficientNet-Lite0")
    found = architectures[spec] if spec in architectures else _of_family(spec)
    if found is None:
        raise UnknownNameError("architecture", spec, architectures.names(), "Or give timm:NAME or torchvision:NAME.")
    return found


def create_model(spec: str, classes: int, *, mechanism: str | None = "residual", **more: Any) -> nn.Module:
    """Build an untrained network by name.

    Args:
        spec: see :func:`find_architecture`.
        classes: K.
        mechanism: of the ABN (see :func:`xai_abn.abn_from`), or None for the plain classifier.
        more: further arguments of :func:`xai_abn.abn_from`, instead of the architecture's own.

    Returns:
        A classifier (N, 3, H, W) -> (N, K), or an :class:`AttentionBranchNetwork`; on the CPU, in training mode.

    Raises:
        UnknownNameError: no such architecture or mechanism.
        InvalidInputError: ``classes`` is not positive, or no network of the family has this depth.
        UnsupportedModelError: no ABN can be made of the network.

    Examples:
        >>> import torch
        >>> network = create_model("resnet20", 100)
        >>> network(torch.zeros(2, 3, 32, 32)).attention_map.shape
        torch.Size([2, 1, 16, 16])
    """
    architecture = find_architecture(spec)
    if classes < 1:
        raise InvalidInputError(f"a classifier needs at least one class, got {classes}")
    network = architecture.build(classes)
    if mechanism is not None:
        network = abn_from(network, mechanism=mechanism, **abn_arguments(spec, **more))
    return network.train()


def abn_arguments(spec: str, **more: Any) -> dict[str, Any]:
    """Return the arguments of :func:`xai_abn.abn_from` for an untrained network of this name."""
    architecture = find_architecture(spec)
    return {"input_size": architecture.size, "start": "random", **architecture.abn, **more}


def check_library_name(library: str, name: str, also: Sequence[str] = ()) -> None:
    """Refuse a name that timm or torchvision does not know.

    Args:
        library: ``"timm"`` or ``"torchvision"``.
        name: of a classifier; of timm with or without the tag of its weights, as in ``resnet18.a1_in1k``.
        also: further names that are taken.

    Raises:
        UnknownNameError: it is not known; the message suggests the nearest.
    """
    known = [*_KNOWN[library](), *also]
    if name not in known and not (library == "timm" and name in _tagged_names()):
        raise UnknownNameError(f"{library} model", name, known)


def timm_names() -> list[str]:
    """Return the names timm knows."""
    import timm

    return timm.list_models()


def _tagged_names() -> list[str]:
    import timm

    return timm.list_pretrained()


def torchvision_names(task: str | None = None) -> list[str]:
    """Return the names of torchvision's image classifiers, or of its networks for ``segmentation`` or ``detection``."""
    from torchvision import models as tv

    result: list[str] = tv.list_models(module=tv if task is None else getattr(tv, task))
    return result


_KNOWN: dict[str, Callable[[], list[str]]] = {"timm": timm_names, "torchvision": torchvision_names}
