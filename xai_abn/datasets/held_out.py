"""Set photos apart that training must not see."""

from __future__ import annotations

import filecmp
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from xai_abn.errors import ImageLoadError, InvalidInputError
from xai_abn.images.loading import load_image
from xai_abn.images.preprocess import Preprocess

#: At most this share of the photos is held out.
LARGEST_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Photos set apart.

    Attributes:
        inputs: (N, 3, H, W), prepared as for any prediction.
        rest: paths of the others, at least one; none has the content of a held-out photo, under whatever name.
        unreadable: why photos that were drawn could not be read; they stay among the rest.
    """

    inputs: Tensor
    rest: list[str]
    unreadable: list[str]


def hold_out(paths: Sequence[str], preprocess: Preprocess, number: int) -> HeldOut:
    """Set photos apart: ``number`` of them, but at most a fifth of all, and at least one.

    They are drawn by a hash of folder and file name, so that a photo held out once stays so in a later run,
    whatever its seed and wherever the folders have gone.

    Args:
        paths: of the photos; one may be named several times.
        preprocess: how they become inputs.
        number: at least 1.

    Raises:
        InvalidInputError: fewer than two different photos, or a number below 1.
        ImageLoadError: none of the photos can be read.
    """
    distinct = sorted(set(paths))
    if number < 1:
        raise InvalidInputError(f"at least one photo must be held out, got {number}")
    number = min(number, max(1, int(LARGEST_SHARE * len(distinct))))
    held: dict[str, Tensor] = {}
    unreadable: list[str] = []
    for path in sorted(distinct, key=_lot):
        try:
            held[path] = preprocess(load_image(path)).tensor
        except ImageLoadError as error:
            unreadable.append(str(error))
        if len(held) == number:
            break
    if not held:
        raise ImageLoadError(f"none of the {len(distinct)} photos can be read; the first: {unreadable[0]}")
    rest = _without(paths, list(held))
    if not rest:
        raise InvalidInputError(
            f"{len(distinct)} photos with one content: one must be held out, none is left to train on"
        )
    return HeldOut(torch.stack(list(held.values())), rest, unreadable)


def _lot(path: str) -> str:
    return hashlib.sha256("/".join(Path(path).parts[-2:]).encode(errors="surrogateescape")).hexdigest()


def _without(paths: Sequence[str], held: Sequence[str]) -> list[str]:
    """Leave out the held-out photos and their copies; only files of equal size are compared."""
    sizes: dict[int, list[str]] = {}
    for path in held:
        sizes.setdefault(_size(path), []).append(path)
    left_out = set(held)
    for path in set(paths) - left_out:
        if any(filecmp.cmp(path, other, shallow=False) for other in sizes.get(_size(path), []) if _size(path) >= 0):
            left_out.add(path)
    return [p for p in paths if p not in left_out]


def _size(path: str) -> int:
    """Return a file's size, or -1 for what is not a file."""
    return Path(path).stat().st_size if Path(path).is_file() else -1
