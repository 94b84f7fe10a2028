"""CIFAR-10 and CIFAR-100, read into memory from any of the forms they are handed around in."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from xai_abn.datasets.training_data import (
    INTERPOLATION,
    ReadOptions,
    TensorSplit,
    TrainingData,
    check_labels,
    training_data,
)
from xai_abn.errors import DatasetError, ImageLoadError
from xai_abn.images.loading import find_images, load_image
from xai_abn.images.preprocess import Preprocess

#: Of the training pictures, as the released code has them for both sets.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
#: Pictures are used whole.
LOOK = Preprocess(32, 1.0, INTERPOLATION, MEAN, STD)
_RECORD = 3 * 32 * 32
_PER_CLASS = re.compile(r"(?P<label>.+)-(?P<number>\d+)-(?P<part>train|test)\.bin")


def read_cifar(place: str, classes: int = 100) -> TrainingData:
    """Read CIFAR from a folder.

    Args:
        place: a folder, searched for, in this order: torchvision's layout (``cifar-100-python`` or
            ``cifar-10-batches-py``, whose checksums are verified before anything is unpickled); one file of raw
            3,072-byte records a class (``<class>-<number>-train.bin``, anywhere below); folders of pictures
            ``train/<class>/`` and ``test/<class>/``, 32x32.
        classes: 10 or 100.

    Returns:
        Training and test pictures; no validation split.

    Raises:
        DatasetError: nothing of the kind is there, a file is cut short, or a label is out of range.
    """
    root = Path(place)
    if not root.is_dir():
        raise DatasetError(f"{place}: no such folder")
    found = _torchvision(root, classes) or _records(root) or _folders(root)
    if found is None:
        raise DatasetError(
            f"{place}: no CIFAR-{classes} in it; expected torchvision's layout, <class>-<number>-train.bin files of "
            "raw records, or train/<class>/ and test/<class>/ folders of pictures"
        )
    labels, parts = found
    if len(labels) != classes:
        raise DatasetError(f"{place}: CIFAR-{classes} has {classes} classes, found {len(labels)}")
    splits = {}
    for part, (images, targets) in parts.items():
        check_labels(targets, classes, f"{place} ({part})")
        splits[part] = TensorSplit(images, targets, MEAN, STD)
    missing = {"train", "test"} - set(splits)
    if missing:
        raise DatasetError(f"{place}: the {' and '.join(sorted(missing))} pictures are missing")
    return TrainingData(f"cifar{classes}", labels, LOOK, splits["train"], test=splits["test"])


@training_data.register("cifar10")
def _cifar10(place: str, options: ReadOptions) -> TrainingData:
    return read_cifar(place, 10)


@training_data.register("cifar100")
def _cifar100(place: str, options: ReadOptions) -> TrainingData:
    return read_cifar(place, 100)


_Found = tuple[tuple[str, ...], dict[str, tuple[Tensor, Tensor]]] | None


def _torchvision(root: Path, classes: int) -> _Found:
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = CIFAR100 if classes == 100 else CIFAR10
    folder = root.parent if root.name == kind.base_folder else root
    if not (folder / kind.base_folder).is_dir():
        return None
    try:
        sets = {"train": kind(folder, train=True), "test": kind(folder, train=False)}
    except RuntimeError as error:
        raise DatasetError(f"{folder / kind.base_folder}: damaged or incomplete (checksums differ)") from error
    parts = {
        p: (torch.from_numpy(s.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(s.targets)) for p, s in sets.items()
    }
    return tuple(sets["train"].classes), parts


def _records(root: Path) -> _Found:
    files = sorted(f for f in root.rglob("*.bin") if _PER_CLASS.fullmatch(f.name))
    if not files:
        return None
    names: dict[int, str] = {}
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for file in files:
        match = _PER_CLASS.fullmatch(file.name)
        assert match is not None  # chosen by it
        number, label = int(match["number"]), match["label"]
        if names.setdefault(number, label) != label:
            raise DatasetError(f"{file}: class {number} is called {names[number]!r} in another file")
        content = np.fromfile(file, np.uint8)
        if not len(content) or len(content) % _RECORD:
            raise DatasetError(f"{file}: {len(content)} bytes are no whole number of {_RECORD}-byte records")
        images = torch.from_numpy(content).view(-1, 3, 32, 32)
        parts.setdefault(match["part"], []).append((images, torch.full((len(images),), number)))
    labels = tuple(names.get(i, "") for i in range(max(names) + 1))
    if "" in labels:
        raise DatasetError(f"{root}: no file of class {labels.index('')}, though there are later ones")
    return labels, {
        p: (torch.cat([i for i, _ in found]), torch.cat([t for _, t in found])) for p, found in parts.items()
    }


def _folders(root: Path) -> _Found:
    present = [p for p in ("train", "test") if (root / p).is_dir()]
    if not present:
        return None
    labels = tuple(sorted({d.name for part in present for d in (root / part).iterdir() if d.is_dir()}))
    try:
        return labels, {part: _read_folders(root / part, labels) for part in present}
    except ImageLoadError as error:
        raise DatasetError(str(error)) from error


def _read_folders(folder: Path, labels: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    images, targets = [], []
    for number, label in enumerate(labels):
        if not (folder / label).is_dir():
            raise DatasetError(f"{folder}: the folder of class {label!r} is missing")
        for path in find_images(folder / label):
            picture = np.array(load_image(path).image)
            if picture.shape != (32, 32, 3):
                raise DatasetError(f"{path}: CIFAR pictures are 32x32, this is {picture.shape[1]}x{picture.shape[0]}")
            images.append(torch.from_numpy(picture).permute(2, 0, 1))
            targets.append(number)
    if not images:
        raise DatasetError(f"{folder}: no class folders in it")
    return torch.stack(images), torch.tensor(targets)
