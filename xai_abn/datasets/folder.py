"""Photos in folders, without boxes; a folder of folders gives their classes."""

from __future__ import annotations

from pathlib import Path

from xai_abn.datasets.annotated import AnnotatedData, AnnotatedImage, datasets
from xai_abn.datasets.imagenet_classes import own_wnids
from xai_abn.errors import DatasetError, ImageLoadError
from xai_abn.images.loading import find_images


@datasets.register("folder")
def read_folder(path: str) -> AnnotatedData:
    """Read every photo below a folder.

    If folders in it hold photos, each of them is a class and gives its name to the photos below it; photos beside
    these folders are then among the problems. Else the photos have no class. Names that start with a dot are passed
    over.

    Args:
        path: the folder.

    Returns:
        The photos, sorted by path; classes named by WordNet ids of ImageNet-1k know their counterpart.

    Raises:
        DatasetError: no such folder, no photo in it, or a class without a photo.
    """
    root = Path(path)
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder; give a folder of photos")
    photos = _photos(root)
    labels = {photo: _label(photo, root) for photo in photos}
    names = tuple(sorted({label for label in labels.values() if label is not None}))
    if not names:
        return AnnotatedData("folder", tuple(AnnotatedImage(photo) for photo in photos), ())
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if folder.name not in names:
            raise DatasetError(f"{folder}: no photos of this class; add some or remove the folder")
    images = tuple(AnnotatedImage(photo, label=label) for photo, label in labels.items() if label is not None)
    problems = tuple((photo, "beside the class folders, so of no class") for photo in photos if labels[photo] is None)
    return AnnotatedData("folder", images, names, own_wnids(names), problems)


def _photos(root: Path) -> list[str]:
    """Return the photos below a folder, but none under a name that starts with a dot."""
    try:
        found = find_images(root)
    except ImageLoadError as error:
        raise DatasetError(str(error)) from error
    kept = [photo for photo in found if not any(p.startswith(".") for p in Path(photo).relative_to(root).parts)]
    if not kept:
        raise DatasetError(f"{root}: no photos in this folder but hidden ones")
    return kept


def _label(photo: str, root: Path) -> str | None:
    """Return the folder of the first level that a photo is in, or None for a photo beside these folders."""
    parts = Path(photo).relative_to(root).parts
    return parts[0] if len(parts) > 1 else None
