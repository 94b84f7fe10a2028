"""CIFAR-10 and CIFAR-100, read into memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from xai_abn.datasets.readers.image_folder import read_image_folder
from xai_abn.datasets.sample import READERS, ArraySamples, Dataset
from xai_abn.datasets.splits import split_for
from xai_abn.datasets.training_data import INTERPOLATION
from xai_abn.errors import DatasetError
from xai_abn.images.preprocess import Preprocess

#: Mean and standard deviation of the training images, as in the released code for both data sets.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
#: Training shifts an image by up to 4 of its 32 pixels.
MAX_SHIFT = 1 / 8


def read_cifar(place: str, classes: int) -> Dataset:
    """Read CIFAR from a folder.

    Args:
        place: a folder with torchvision's layout (``cifar-100-python`` or ``cifar-10-batches-py``, whose checksums are
            verified before anything is unpickled), or with ``train/<class>/`` and ``test/<class>/`` of images.
        classes: 10 or 100.

    Returns:
        Training and test images; there is no validation split.

    Raises:
        DatasetError: nothing of the kind is there, a file is damaged, or there are not that many classes.
    """
    root = Path(place)
    if not root.is_dir():
        raise DatasetError(f"{place}: no such folder")
    data = _read_torchvision(root, classes)
    if data is None and any(split_for(path.name) for path in root.iterdir() if path.is_dir()):
        data = read_image_folder(place)
    if data is None:
        raise DatasetError(
            f"{place}: no CIFAR-{classes} in it; expected torchvision's layout, or train/<class>/ and test/<class>/"
        )
    if len(data.class_names) != classes:
        raise DatasetError(f"{place}: CIFAR-{classes} has {classes} classes, found {len(data.class_names)}")
    if missing := {"train", "test"} - set(data.splits):
        raise DatasetError(f"{place}: the {' and '.join(sorted(missing))} images are missing")
    preprocess = Preprocess(32, 1.0, INTERPOLATION, MEAN, STD)
    return replace(data, kind=f"cifar{classes}", preprocess=preprocess, max_shift=MAX_SHIFT)


@READERS.register("cifar10")
def read_cifar10(place: str) -> Dataset:
    """Read CIFAR-10, in torchvision's layout or from class folders."""
    return read_cifar(place, 10)


@READERS.register("cifar100")
def read_cifar100(place: str) -> Dataset:
    """Read CIFAR-100, in torchvision's layout or from class folders."""
    return read_cifar(place, 100)


def _read_torchvision(root: Path, classes: int) -> Dataset | None:
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = CIFAR100 if classes == 100 else CIFAR10
    folder = root.parent if root.name == kind.base_folder else root
    if not (folder / kind.base_folder).is_dir():
        return None
    try:
        parts = {"train": kind(folder, train=True), "test": kind(folder, train=False)}
    except RuntimeError as error:
        raise DatasetError(f"{folder / kind.base_folder}: damaged or incomplete (checksums differ)") from error
    names = tuple(parts["train"].classes)
    splits = {
        part: ArraySamples(f"{root}/{part}", images.data, [names[i] for i in images.targets])
        for part, images in parts.items()
    }
    return Dataset("cifar", splits, names)
