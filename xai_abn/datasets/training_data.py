"""Data sets as training sees them: labels, preprocessing, and a split each to train on, to choose by and to test on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from xai_abn.datasets.batches import (
    DataSplit,
    InMemorySplit,
    LazySplit,
    ReadOptions,
    UnreadableWarning,
    read_into_memory,
)
from xai_abn.datasets.sample import ArraySamples, Dataset, Sample, read_dataset
from xai_abn.datasets.splits import hold_out_groups, warn_of_copies
from xai_abn.errors import DatasetError, InvalidInputError
from xai_abn.files import digest
from xai_abn.images.preprocess import Preprocess

#: Interpolation in training, validation and, through the checkpoint, in explanations of the trained network.
INTERPOLATION = "bilinear"
#: ImageNet's mean and standard deviation.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Data sets with ``max_shift`` are kept in memory if their images take no more bytes than this.
MEMORY = 2**30


@dataclass(frozen=True)
class TrainingData:
    """The data that a network is trained and tested on.

    Attributes:
        name: for messages and for the record.
        labels: names of the classes or attributes.
        preprocess: prepares images for validation, test and later explanations.
        train: images to train on.
        validation: images to choose the best epoch by, or None.
        test: images that are used once, at the end, or None.
        multi_label: whether targets are attributes, of which an image may have several.
    """

    name: str
    labels: tuple[str, ...]
    preprocess: Preprocess
    train: DataSplit
    validation: DataSplit | None = None
    test: DataSplit | None = None
    multi_label: bool = False

    def fingerprint(self) -> str:
        """Return a hash of the labels and of the training and validation splits."""
        content = repr((self.labels, self.train.fingerprint(), self.validation and self.validation.fingerprint()))
        return digest(content.encode())

    def held_out(self, share: float, seed: int = 0) -> TrainingData:
        """Return the data with ``share`` of the training images, drawn with ``seed``, held out for validation.

        Data with a validation split keeps it. If all images of a class were drawn, the first of them stays.

        Raises:
            InvalidInputError: ``share`` is not in [0, 1), or leaves one side empty.
        """
        if not 0 <= share < 1:
            raise InvalidInputError(f"validation must be a share in [0, 1), got {share}")
        if self.validation is not None or share == 0:
            return self
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        count = round(share * len(order))
        if not 0 < count < len(order):
            raise InvalidInputError(f"a share of {share} of {len(order)} training images leaves one side empty")
        drawn, rest = order[:count], order[count:]
        kept = torch.cat([rest, _last_of_class(self.train.targets, drawn, rest)])
        validation = drawn[~torch.isin(drawn, kept)].sort().values
        if not len(validation):
            raise InvalidInputError(f"a share of {share} leaves no validation images, as each class keeps one image")
        train = kept.sort().values
        held = replace(self, train=self.train.subset(train), validation=self.train.subset(validation))
        if isinstance(held.train, LazySplit) and isinstance(held.validation, LazySplit):
            warn_of_copies({"train": held.train.samples, "validation": held.validation.samples}, self.name)
        return held


def _last_of_class(targets: Tensor, drawn: Tensor, rest: Tensor) -> Tensor:
    """Return the first drawn image of each class that has no image in the rest."""
    if targets.dim() != 1:
        return drawn[:0]
    left = set(targets[rest].tolist())
    first: dict[int, int] = {}
    for index, label in zip(drawn.tolist(), targets[drawn].tolist(), strict=True):
        first.setdefault(label, index)
    return torch.tensor([index for label, index in first.items() if label not in left], dtype=drawn.dtype)


def read_training_data(
    spec: str, options: ReadOptions = ReadOptions(), preprocess: Preprocess | None = None
) -> TrainingData:
    """Read a data set to train on.

    Args:
        spec: ``KIND:PLACE``, such as ``"cifar100:DIR"``; see :func:`read_dataset`.
        options: see :class:`ReadOptions`.
        preprocess: that of a network that is trained further, for data without one of its own.

    Raises:
        UnknownNameError: unknown kind.
        DatasetError: the data is missing or damaged, or cannot be trained on.
    """
    kind, _, place = spec.partition(":")
    data = read_dataset(spec)
    data = replace(data, preprocess=data.preprocess or preprocess)
    return training_data(data, options, f"{kind}:{Path(place).resolve().name}")


def training_data(data: Dataset, options: ReadOptions = ReadOptions(), name: str = "") -> TrainingData:
    """Prepare a data set for training.

    Args:
        data: samples have labels or attributes.
        options: see :class:`ReadOptions`.
        name: for messages and for the record; default: the kind.

    Raises:
        DatasetError: there are no training images, images without a class, fewer than two classes, a class without
            training images, or a group in two splits; or an image cannot be used, and this stops the run.
    """
    name = name or data.kind
    if not len(data.splits.get("train", ())):
        raise DatasetError(f"{name}: no training images")
    if data.problems:
        source, reason = data.problems[0]
        text = f"{name}: {len(data.problems)} images cannot be used{{}}, such as {source} ({reason})"
        if options.on_unreadable == "stop":
            raise DatasetError(text.format(""))
        warnings.warn(UnreadableWarning(text.format(" and are left out")), stacklevel=2)
    warn_of_copies(data.splits, name)
    splits = {part: s for part, s in hold_out_groups(data.splits, options.validation, name).items() if len(s)}
    multi_label = splits["train"][0].attributes is not None
    targets = {part: _targets(samples, data.class_names, f"{name} ({part})") for part, samples in splits.items()}
    if not multi_label:
        _check_classes(targets, data.class_names, name)
    crop_pct, area = (0.875, (0.08, 1.0)) if data.max_shift is None else (1.0, (0.7, 1.0))
    preprocess = data.preprocess or Preprocess(options.size, crop_pct, INTERPOLATION, MEAN, STD)
    fits = 3 * preprocess.side**2 * sum(map(len, splits.values())) <= MEMORY
    padding = max(1, int((data.max_shift or 0) * preprocess.side))
    parts: dict[str, DataSplit] = {}
    told: set[str] = set()
    for part, samples in splits.items():
        if isinstance(samples, ArraySamples):
            images = torch.from_numpy(samples.pixels).permute(0, 3, 1, 2).contiguous()
            parts[part] = InMemorySplit(images, targets[part], preprocess.mean, preprocess.std, padding)
            continue
        lazy = LazySplit(samples, targets[part], preprocess, options, area, told)
        parts[part] = read_into_memory(lazy, padding) if data.max_shift is not None and fits else lazy
    validation, test = parts.get("validation"), parts.get("test")
    return TrainingData(name, data.class_names, preprocess, parts["train"], validation, test, multi_label)


def _targets(samples: Sequence[Sample], names: tuple[str, ...], source: str) -> Tensor:
    """Return class indices (N,), or attributes (N, T) as float32 of 0 and 1."""
    number = {name: i for i, name in enumerate(names)}
    if samples[0].attributes is not None:
        targets = torch.zeros(len(samples), len(names))
        for row, sample in enumerate(samples):
            targets[row, [number[attribute] for attribute in sample.attributes or ()]] = 1
        return targets
    labels = [sample.label for sample in samples]
    missing = [i for i, label in enumerate(labels) if label not in number]
    if missing:
        raise DatasetError(
            f"{source}: {len(missing)} images have none of the classes, such as {samples[missing[0]].source}; "
            "training needs a class for each image"
        )
    return torch.tensor([number[label] for label in labels if label is not None])


def _check_classes(targets: dict[str, Tensor], names: tuple[str, ...], source: str) -> None:
    """Refuse a single class, and classes without training images."""
    if len(names) < 2:
        raise DatasetError(f"{source}: one class, {names[0]!r}; training needs at least two")
    untrained = sorted(set(range(len(names))) - set(targets["train"].tolist()))
    if not untrained:
        return
    part = next((part for part, values in targets.items() if bool((values == untrained[0]).any())), None)
    has = "has no" if part is None else f"has {part} images but no"
    more = f", and {len(untrained) - 1} more classes have none" if untrained[1:] else ""
    raise DatasetError(f"{source}: class {names[untrained[0]]!r} {has} training images{more}")
