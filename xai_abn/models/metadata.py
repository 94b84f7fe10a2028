"""Preprocessing and labels that a network, or an object of its library, carries."""

from __future__ import annotations

from collections.abc import Iterator, KeysView, Mapping, Set
from dataclasses import replace
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from xai_abn.errors import InvalidInputError, XaiAbnError, shown
from xai_abn.images.clips import ClipPreprocess
from xai_abn.images.preprocess import Preprocess

#: How timm's and open_clip's modes crop.
_MODES = {"center": "center", "shortest": "center", "squash": "squash-center"}
#: Side of the input of networks of ultralytics that do not say it.
YOLO_SIZE = 640
#: (width, height) of the image on which the reading of an image processor is tried.
_TRIAL = (400, 300)


@lru_cache(maxsize=1)
def imagenet_labels() -> tuple[str, ...]:
    """Return the 1,000 ImageNet-1k class names in index order, as torchvision spells them."""
    names = resources.files("xai_abn.models") / "imagenet_labels.txt"
    return tuple(names.read_text("utf-8").splitlines())


def as_preprocess(source: object) -> Preprocess:
    """Return the preprocessing that an object of another library describes.

    Args:
        source: a :class:`Preprocess`, returned as it is; the ``transforms()`` of torchvision's weights; a data
            configuration of timm or open_clip, a dictionary; or an image processor of Hugging Face.

    Raises:
        InvalidInputError: anything else, such as a ``Compose`` of transforms, or a value that is not supported.
    """
    if isinstance(source, Preprocess):
        return source
    try:
        if isinstance(source, Mapping) and {"mean", "std"} <= set(source):
            return _of_config(source)
        if all(hasattr(source, name) for name in ("resize_size", "mean", "std", "interpolation")):
            return _of_video(source) if type(source).__name__ == "VideoClassification" else _of_torchvision(source)
        if isinstance(config := getattr(source, "data_config", None), Mapping):  # a processor around a network of timm
            return _of_config(config)
        if hasattr(source, "image_mean") and hasattr(source, "image_std"):
            return _of_hugging_face(source)
    except XaiAbnError:
        raise
    except (LookupError, TypeError, ValueError) as error:  # a size is missing, or a value has another form
        raise InvalidInputError(
            f"preprocess is a {type(source).__name__} that cannot be read ({type(error).__name__}: "
            f"{shown(str(error))}); give xai_abn.Preprocess(size=..., mean=..., std=...)"
        ) from error
    raise InvalidInputError(
        f"preprocess must be an xai_abn.Preprocess, the transforms() of torchvision's weights, a data configuration of "
        f"timm or an image processor of Hugging Face, got {type(source).__name__}; give "
        "xai_abn.Preprocess(size=..., mean=..., std=...)"
    )


def _of_config(config: Mapping[str, Any]) -> Preprocess:
    """Return the preprocessing of a data configuration of timm, or of open_clip, which crops only the longer side."""
    height, width = _pair(config["input_size"][-2:] if "input_size" in config else config["size"])
    mode = config.get("crop_mode") or config.get("resize_mode") or "center"
    if mode not in _MODES:
        raise InvalidInputError(
            f"preprocess has the mode {mode!r}, which adds borders or is unknown; the modes {', '.join(_MODES)} are "
            "supported; prepare the images yourself and give tensors, or give xai_abn.Preprocess(...)"
        )
    share = min(1.0, config.get("crop_pct") or 1.0)
    return Preprocess(
        size=height,
        width=None if width == height else width,
        crop_pct=share,
        interpolation=config.get("interpolation") or "bicubic",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        crop=_MODES[mode] if mode != "squash" or share < 1 else "squash",
    )


def _of_torchvision(preset: Any) -> Preprocess:
    """Return the preprocessing of a preset; the whole image is squashed if the preset crops nothing (segmentation)."""
    crops = hasattr(preset, "crop_size")
    height, width = _pair(preset.crop_size if crops else preset.resize_size)
    return Preprocess(
        size=height,
        width=None if width == height else width,
        crop="center" if crops else "squash",
        crop_pct=min(1.0, min(height, width) / min(_pair(preset.resize_size))),
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def _of_video(preset: Any) -> ClipPreprocess:
    """Return the preprocessing of a preset for video; it does not say how many frames: 16, unless replaced."""
    height, width = _pair(preset.crop_size)
    resized = tuple(preset.resize_size)
    return ClipPreprocess(
        size=height,
        width=None if width == height else width,
        crop="center" if len(resized) == 1 else "squash-center",
        crop_pct=min(1.0, min(height, width) / min(resized)),
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        resized=None if len(resized) == 1 else (resized[0], resized[1]),
    )


def _of_hugging_face(processor: Any) -> Preprocess:
    """Return the preprocessing of an image processor: of several readings, the one that gives what it gives.

    The names of its settings do not tell: some processors resize by ``crop_pct`` or a number of their own, some divide
    by the standard deviation twice.

    Raises:
        InvalidInputError: no reading gives what the processor gives.
    """
    size = dict(processor.size or {})
    crop = dict(getattr(processor, "crop_size", None) or {}) if getattr(processor, "do_center_crop", False) else {}
    shorter = size.get("shortest_edge")
    seen = crop or size
    height, width = seen.get("height") or shorter, seen.get("width") or shorter
    if height is None or width is None:
        raise InvalidInputError(
            f"{type(processor).__name__} has the size {size}, which does not say how large inputs are; give "
            "xai_abn.Preprocess(size=...)"
        )
    resample = getattr(processor, "resample", None)
    normalized = getattr(processor, "do_normalize", True)
    mean = tuple(processor.image_mean) if normalized else (0.0, 0.0, 0.0)
    std = tuple(processor.image_std) if normalized else (1.0, 1.0, 1.0)
    plain = Preprocess(
        size=height,
        width=None if width == height else width,
        interpolation=Image.Resampling(int(2 if resample is None else resample)).name.lower(),
        mean=mean,
        std=std,
    )
    resized = shorter or size.get("height") or height
    shares = (min(1.0, min(height, width) / resized), getattr(processor, "crop_pct", None) or 1.0, 224 / 256)
    ways = [("center", share) for share in shares] + [("squash", 1.0), ("squash-center", shares[0])]
    readings = [
        replace(plain, crop=way, crop_pct=share, std=scale)
        for scale in (std, tuple(value**2 for value in std))
        for way, share in ways
    ]
    image = _trial_image()
    given = _prepared_by(processor, image)
    # of processors that turn the channels round, some do it before they normalize
    turned = [*readings, *(replace(r, mean=r.mean[::-1], std=r.std[::-1]) for r in readings)]
    for pixels, ways_to_read in ((given, readings), (given[::-1], turned)):
        errors = [_error(reading, image, pixels) for reading in ways_to_read]
        best = ways_to_read[errors.index(min(errors))]
        if min(errors) > 0.005 + 0.5 / min(height, width):  # shares of white; half a pixel is a matter of rounding
            continue
        if pixels is given:
            return best
        raise InvalidInputError(
            f"{type(processor).__name__} gives the channels in the order blue, green, red; put the network into a "
            f"module whose forward returns network(x.flip(1)), and give preprocess=xai_abn.{best}"
        )
    raise InvalidInputError(
        f"{type(processor).__name__} prepares images in a way that xai-abn does not know, such as with borders or "
        "another scale; give xai_abn.Preprocess(...), and put a network that needs more into a module that does it"
    )


def _trial_image() -> Image.Image:
    across, down = np.meshgrid(*(np.linspace(0, 255, side) for side in _TRIAL))
    return Image.fromarray(np.stack([across, down, 127 + across / 2], axis=2).astype(np.uint8))


def _prepared_by(processor: Any, image: Image.Image) -> np.ndarray:
    """Return what a processor makes of an image, (C, h, w)."""
    try:
        return np.asarray(processor(image, return_tensors="pt")["pixel_values"][0], dtype=np.float64)
    except Exception as error:  # each processor raises errors of its own
        raise InvalidInputError(
            f"{type(processor).__name__} prepares no plain RGB image ({type(error).__name__}: {shown(str(error))}); "
            "give xai_abn.Preprocess(...)"
        ) from error


def _error(reading: Preprocess, image: Image.Image, given: np.ndarray) -> float:
    """Return by how much a reading differs from what is given for an image, as a share of white."""
    made = reading.normalize(reading.pixels(image)).numpy()
    if made.shape != given.shape:
        return np.inf
    return round(float((np.abs(made - given) * np.reshape(reading.std, (-1, 1, 1))).mean()), 6)


def image_processor(name: str, *, local: bool = False) -> Any:
    """Return the image processor that Hugging Face saved with a model, or None if there is none.

    Args:
        name: of the model on the hub, or its folder.
        local: look in the folder or the download cache alone.
    """
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(name, local_files_only=local)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, ImportError):
        return None


def own_transform(module: nn.Module) -> Any:
    """Return the part of torchvision's detectors that normalizes and resizes images, or None."""
    part = getattr(module, "transform", None)
    return part if all(hasattr(part, name) for name in ("image_mean", "image_std", "min_size")) else None


def own_preprocess(module: nn.Module) -> Preprocess | None:
    """Return the preprocessing that a network, or the only one inside a module, carries.

    Networks of timm and open_clip hold it; torchvision's detectors normalize images themselves; those of ultralytics
    see the whole image between borders. That of a network of Hugging Face is in the folder it was loaded from.

    Raises:
        InvalidInputError: the preprocessing is not supported.
    """
    place = getattr(getattr(module, "config", None), "_name_or_path", "")
    if place and is_of_hugging_face(module):
        processor = image_processor(place, local=True)
        return None if processor is None else as_preprocess(processor)
    if (part := own_transform(module)) is not None:
        return Preprocess(size=min(part.min_size), crop="squash", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    if yolo_classes(module) is not None:
        arguments = getattr(module, "args", {})
        arguments = arguments if isinstance(arguments, Mapping) else vars(arguments)
        height, width = _pair(arguments.get("imgsz") or YOLO_SIZE)
        return Preprocess(
            size=height,
            width=None if width == height else width,
            interpolation="bilinear",
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            crop="letterbox",
        )
    configs = [(m, c) for m, c in _configs(module, "pretrained_cfg", "preprocess_cfg") if {"mean", "std"} <= set(c)]
    if len(configs) != 1:
        return None
    owner, config = configs[0]
    size = getattr(getattr(owner, "patch_embed", None), "img_size", None)  # may differ from that of the weights
    return _of_config({**config, **({"input_size": (3, *_pair(size))} if size else {})})


def yolo_classes(module: nn.Module) -> int | None:
    """Return how many classes a detector of ultralytics knows, or None for other networks."""
    parts = getattr(module, "model", None)
    head = parts[-1] if isinstance(parts, nn.Sequential) and len(parts) else None
    named = isinstance(getattr(module, "names", None), Mapping)
    classes = getattr(head, "nc", None)
    return classes if named and hasattr(head, "nl") and isinstance(classes, int) else None


def own_labels(module: nn.Module) -> tuple[str, ...] | None:
    """Return the labels that a network of timm, Hugging Face or ultralytics carries, except placeholders.

    A placeholder is such as ``LABEL_0``.
    """
    if yolo_classes(module) is not None:
        return as_labels(module.names)
    config = getattr(module, "config", None)
    named = getattr(config, "id2label", None)
    if isinstance(named, Mapping) and named and not all(str(v) == f"LABEL_{k}" for k, v in named.items()):
        return as_labels(named)
    if isinstance(own := getattr(module, "pretrained_cfg", None), Mapping):
        classes = getattr(module, "num_classes", None)
        if own.get("label_names") and len(own["label_names"]) == classes:
            return as_labels(own["label_names"])
        if classes == own.get("num_classes") == 1000:
            return imagenet_labels()
    return None


def is_of_hugging_face(module: nn.Module) -> bool:
    """Return whether the module is a network of Hugging Face, or contains one; its preprocessing is in a processor."""
    return any(hasattr(getattr(m, "config", None), "model_type") for m in module.modules())


def as_labels(labels: object) -> tuple[str, ...]:
    """Return labels as a tuple, without white space at their ends.

    Args:
        labels: a sequence of texts, such as the lines of a file, or a mapping from index to text, as ``id2label``.

    Raises:
        InvalidInputError: something else, or an index left out.
    """
    if isinstance(labels, Mapping):
        by_index = {int(k) if str(k).isdecimal() else k: v for k, v in labels.items()}
        if len(by_index) < len(labels):
            raise InvalidInputError("labels have an index twice, as a number and as text; give each class one label")
        if set(by_index) != set(range(len(by_index))):
            known = [k for k in by_index if isinstance(k, int)]
            gaps = [k for k in range(max(known, default=0)) if k not in by_index][:5]
            raise InvalidInputError(
                f"labels must have the indices of all classes from 0, got {shown(str(list(labels)[:5]), 60)}"
                + (f" without {', '.join(map(str, gaps))}" if gaps else "")
                + "; give labels=[...], one text for each class"
            )
        labels = [by_index[i] for i in range(len(by_index))]
    if (isinstance(labels, str | Set) and not isinstance(labels, KeysView)) or not hasattr(labels, "__iter__"):
        raise InvalidInputError(f"labels must be a list of texts, got {type(labels).__name__}")
    listed = list(labels)
    wrong = [label for label in listed if not isinstance(label, str)]
    if wrong:
        raise InvalidInputError(f"labels must be texts, got {shown(wrong[0])}")
    return tuple(" ".join(label.split()) for label in listed)


def _configs(module: nn.Module, *names: str) -> Iterator[tuple[nn.Module, Mapping[str, Any]]]:
    for member in module.modules():
        for name in names:
            found = getattr(member, name, None)
            if isinstance(found, Mapping):
                yield member, found


def _pair(size: Any) -> tuple[int, int]:
    values = (size,) if isinstance(size, int) else tuple(size)
    return int(values[0]), int(values[-1])
