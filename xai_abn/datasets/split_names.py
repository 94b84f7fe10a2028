"""What the splits of a data set are called, and which of them are used."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from xai_abn.errors import DatasetError


class LeftAsideWarning(UserWarning):
    """Given when splits of a data set are not used."""


#: What splits are called in data sets, in lower case, by what they are for.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val"),
    "test": ("test", "testing"),
}


def split_for(name: str) -> str | None:
    """Return what a split of that name is for: ``"train"``, ``"validation"`` or ``"test"``; None for other names."""
    return next((part for part, names in SPLIT_NAMES.items() if name.lower() in names), None)


def sorted_splits(names: Iterable[str], source: str) -> dict[str, str]:
    """Return which of a data set's splits is for what, with a warning of those that are for nothing.

    Args:
        names: of its splits, in the order in which they are told.
        source: what to call the data set in messages.

    Returns:
        Names by ``"train"``, ``"validation"`` and ``"test"``, as far as they are there.

    Raises:
        DatasetError: none for training, or two for the same.
    """
    names = list(names)
    found: dict[str, str] = {}
    for name in names:
        part = split_for(name)
        if part is not None and found.setdefault(part, name) != name:
            raise DatasetError(f"{source}: it has both {found[part]} and {name}; keep one of them")
    if "train" not in found:
        raise DatasetError(f"{source}: it has {', '.join(names)}, but nothing called train to learn from")
    aside = [name for name in names if name not in found.values()]
    if aside:
        told = f"{source}: not used beside {found['train']}: {', '.join(aside[:5])}{', ...' if aside[5:] else ''}"
        warnings.warn(LeftAsideWarning(told), stacklevel=3)
    return found
