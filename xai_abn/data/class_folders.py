"""Pictures to train on in folders, one a class."""

from __future__ import annotations

from pathlib import Path

import torch

from xai_abn.data.picture_split import Parts, PictureFiles, picture_data
from xai_abn.data.training_data import ReadOptions, TrainingData, training_data
from xai_abn.errors import DatasetError, ImageLoadError
from xai_abn.images import EXTENSIONS, find_images

_VALIDATION = ("val", "valid", "validation")


@training_data.register("images")
def read_class_folders(place: str, options: ReadOptions = ReadOptions()) -> TrainingData:
    """Read pictures whose folder is their class.

    Args:
        place: a folder with ``train/<class>/``, and ``val/<class>/`` (or ``valid/``, ``validation/``) and
            ``test/<class>/`` if there are such pictures, in upper or lower case; or with ``<class>/`` alone. Pictures
            may lie deeper in a class's folder. Names that start with a dot are passed over.
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
    folders = [p for p in sorted(root.iterdir()) if p.is_dir() and p.name.lower() in ("train", *_VALIDATION, "test")]
    present = {p.name.lower(): p for p in folders}
    if len(present) < len(folders):
        raise DatasetError(f"{root}: it has {' and '.join(p.name for p in folders)}, alike but for their case")
    if "train" not in present:
        if present:
            raise DatasetError(f"{root}: it has {' and '.join(present)} but no train folder")
        return {"train": root}
    several = [name for name in _VALIDATION if name in present]
    if len(several) > 1:
        raise DatasetError(f"{root}: it has both {' and '.join(several)}; keep one of them")
    return {"validation" if name in _VALIDATION else name: folder for name, folder in present.items()}


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
