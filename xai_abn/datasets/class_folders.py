"""Pictures to train on in folders, one a class."""

from __future__ import annotations

from pathlib import Path

import torch

from xai_abn.datasets.picture_split import Parts, PictureFiles, picture_data
from xai_abn.datasets.split_names import sorted_splits, split_for
from xai_abn.datasets.training_data import ReadOptions, TrainingData, training_data
from xai_abn.errors import DatasetError, ImageLoadError
from xai_abn.images.loading import EXTENSIONS, find_images


@training_data.register("images")
def read_class_folders(place: str, options: ReadOptions = ReadOptions()) -> TrainingData:
    """Read pictures whose folder is their class.

    Args:
        place: a folder with ``train/<class>/`` (or ``training/``), and ``val/<class>/`` (or ``valid/``,
            ``validation/``) and ``test/<class>/`` (or ``testing/``) if there are such pictures, in upper or lower case;
            or with ``<class>/`` alone. Pictures may lie deeper in a class's folder. Names that start with a dot are
            passed over; other folders beside ``train`` are, with a warning.
        options: see :class:`ReadOptions`.

    Raises:
        DatasetError: no such folder, no class folders, a class without a picture or without a training picture,
            pictures of no class.
    """
    root = Path(place)
    if not root.is_dir():
        raise DatasetError(f"{place}: no such folder")
    found = {part: _by_class(folder) for part, folder in _parts(root).items()}
    labels = tuple(sorted({label for classes in found.values() for label in classes}))
    parts: Parts = {}
    for part, classes in found.items():
        paths = tuple(path for label in labels for path in classes.get(label, ()))
        numbers = [number for number, label in enumerate(labels) for _ in classes.get(label, ())]
        parts[part] = PictureFiles(paths), torch.tensor(numbers)
    return picture_data(f"images:{place}", labels, parts, options)


def _parts(root: Path) -> dict[str, Path]:
    """Return the folders of the training, validation and test pictures."""
    names = [p.name for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    if not any(map(split_for, names)):
        return {"train": root}
    return {part: root / name for part, name in sorted_splits(names, str(root)).items()}


def _by_class(folder: Path) -> dict[str, list[str]]:
    """Return the pictures of each class, sorted."""
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    loose = [p for p in entries if p.suffix.lower() in EXTENSIONS and p.is_file()]
    classes = [p for p in entries if p.is_dir()]
    if not classes:
        raise DatasetError(f"{folder}: no class folders in it; expected <class>/<picture>")
    if loose:
        raise DatasetError(f"{folder}: {len(loose)} pictures beside the class folders, such as {loose[0].name}")
    try:
        return {p.name: find_images(p) for p in classes}
    except ImageLoadError as error:
        raise DatasetError(f"an empty class folder: {error}") from error
