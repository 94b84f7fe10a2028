"""Images in folders: with a folder for each class, and one for each split if there are splits."""

from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path

from xai_abn.datasets.imagenet_classes import own_wnids
from xai_abn.datasets.sample import READERS, Dataset, Sample
from xai_abn.datasets.splits import find_splits, split_for, split_within
from xai_abn.errors import DatasetError, ImageLoadError
from xai_abn.files import name_as_text
from xai_abn.images.loading import EXTENSIONS, find_images, is_hidden


@READERS.register("images")
def read_image_folder(place: str) -> Dataset:
    """Read images whose folder is their class.

    Args:
        place: a folder with ``train/<class>/`` (or ``training/``) and, if there are such images, ``val/<class>/`` (or
            ``valid/``, ``validation/``) and ``test/<class>/`` (or ``testing/``), in upper or lower case, or longer
            names such as ``training_set/`` and ``test_set/``; or with ``<class>/`` alone; or with images alone, which
            then have no class. Images may lie deeper in the folder of a class. Names that start with a dot, and
            folders of systems such as ``@eaDir``, are skipped; other folders beside ``train`` are skipped with a
            warning.

    Returns:
        The images, sorted by class and path. Names of folders that look the same, with accents as one or two
        characters, are one class; images beside class folders are among the problems. Classes named by
        WordNet ids of ImageNet-1k are known to be these classes.

    Raises:
        DatasetError: there is no such folder, no image in it, or a class without images.
    """
    root = Path(place)
    if not root.is_dir():
        raise DatasetError(f"{place}: no such folder; give a folder of images")
    names = _folders_in(root)
    folders = {"train": root}
    if any(map(split_for, names)) or len({split_within(name) for name in names} - {None}) > 1:
        folders = {part: _inner(root / name) for part, name in find_splits(names, str(root)).items()}
    else:
        _refuse_hidden_splits(root, names)
    splits, problems = {}, []
    for part, folder in folders.items():
        splits[part], loose = _read_split(folder)
        problems += [(path, "beside the class folders, so it has no class") for path in loose]
    classes = tuple(sorted({s.label for samples in splits.values() for s in samples if s.label is not None}))
    return Dataset("images", splits, classes, own_wnids(classes), tuple(problems))


def _entries(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted and without what is hidden."""
    try:
        return sorted(p for p in folder.iterdir() if not is_hidden(p.name))
    except OSError as error:
        raise DatasetError(f"{folder}: the folder cannot be opened ({error.strerror})") from error


def _folders_in(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, without hidden ones."""
    return [p.name for p in _entries(folder) if p.is_dir()]


def _inner(folder: Path) -> Path:
    """Return the folder of the same name in a folder that holds nothing else, as Kaggle's archives have it."""
    return folder / folder.name if _folders_in(folder) == [folder.name] else folder


def _refuse_hidden_splits(root: Path, names: list[str]) -> None:
    """Refuse folders that would be taken for classes and are rather splits, or hold splits.

    Raises:
        DatasetError: two of them hold two folders of the same names or a split, or one is called like a split.
    """
    inside = Counter(name for folder in names for name in _folders_in(_inner(root / folder)))
    common = [name for name, number in inside.items() if number > 1]
    called = [name for name in names if split_within(name) and _folders_in(root / name)]
    if len(common) > 1 or any(map(split_for, inside)) or called:
        reason = f"{called[0]} is called like a split" if called else f"their folders are called {', '.join(inside)}"
        raise DatasetError(
            f"{root}: {', '.join(names[:3])} look like splits or hold splits, not like classes ({reason[:200]}); make "
            "folders train, val and test with a folder for each class, or give one of them alone"
        )


def _read_split(folder: Path) -> tuple[list[Sample], list[str]]:
    """Return the images of class folders, and the paths of images beside these; images alone have no class."""
    entries = _entries(folder)
    loose = [str(p) for p in entries if p.suffix.lower() in EXTENSIONS and p.is_file()]
    by_class: dict[str, list[str]] = {}
    empty = []
    for path in filter(Path.is_dir, entries):
        try:
            found = find_images(path)
        except ImageLoadError:
            empty.append(path)
        else:
            by_class.setdefault(unicodedata.normalize("NFC", path.name), []).extend(found)
    if by_class and empty:
        raise DatasetError(f"{empty[0]}: no images of this class; add some or remove the folder")
    if not by_class and not loose:
        raise DatasetError(f"{folder}: no images in this folder (looked for {', '.join(sorted(EXTENSIONS))})")
    if not by_class:
        return [Sample(path) for path in loose], []
    named = ((name_as_text(name), paths) for name, paths in sorted(by_class.items()))
    return [Sample(path, label=name) for name, paths in named for path in paths], loose
