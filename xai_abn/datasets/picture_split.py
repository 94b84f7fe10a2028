"""Pictures that are read when they are needed, one at a time, by worker processes."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from xai_abn.datasets.training_data import (
    INTERPOLATION,
    Batch,
    ReadOptions,
    TensorSplit,
    TrainingData,
    check_labels,
    digest,
    normaliser,
)
from xai_abn.errors import DatasetError, ImageLoadError
from xai_abn.images.loading import LoadedImage, load_image
from xai_abn.images.preprocess import Preprocess

#: ImageNet's mean and standard deviation, usual for photos.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class UnreadableWarning(UserWarning):
    """Given when pictures that cannot be read are left out while pictures are taken into memory."""


class Pictures(Protocol):
    """Pictures that can be read one at a time, in any process."""

    def __len__(self) -> int:
        """Return the number of pictures."""
        ...

    def __getitem__(self, index: int) -> LoadedImage:
        """Read one.

        Raises:
            ImageLoadError: it cannot be read; the message names it.
        """
        ...

    def fingerprint(self) -> str:
        """Return a hash that changes with the pictures' names or order."""
        ...


#: Pictures and their labels, by ``"train"``, ``"validation"``, ``"test"``.
Parts = dict[str, tuple[Pictures, Tensor]]


@dataclass(frozen=True)
class PictureFiles:
    """Pictures in files of their own.

    Attributes:
        paths: of the files.
    """

    paths: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.paths)

    def __getitem__(self, index: int) -> LoadedImage:
        """Read one; see :class:`Pictures`."""
        return load_image(self.paths[index])

    def fingerprint(self) -> str:
        """Return a hash of the files' names and their folders', without where those lie."""
        return digest(*(os.fsencode("/".join(Path(path).parts[-2:])) + b"\0" for path in self.paths))


class PictureSplit:
    """Labelled pictures of any sizes, read and brought to one size by worker processes; see :class:`Split`.

    For training, a picture gives a random part of it, resized and perhaps flipped (:func:`random_part`); else exactly
    the pixels that ``look`` gives. What cannot be read is left out and counted, or stops: ``options.on_unreadable``.

    Args:
        pictures: see :class:`Pictures`.
        targets: (M,) class indices or (M, T) attributes of all pictures.
        look: what a network is to see of a picture.
        options: see :class:`ReadOptions`.
        scale: least and largest share of a picture's area that is seen in training.
        indices: (N,) of the pictures that belong to the split; default: all.
    """

    def __init__(
        self,
        pictures: Pictures,
        targets: Tensor,
        look: Preprocess,
        options: ReadOptions,
        *,
        scale: tuple[float, float] = (0.08, 1.0),
        indices: Tensor | None = None,
    ) -> None:
        self.pictures, self.look, self.options, self.scale = pictures, look, options, scale
        self._all_targets = targets
        self.indices = torch.arange(len(pictures)) if indices is None else indices

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.indices)

    @property
    def targets(self) -> Tensor:
        """Class indices (N,) or attributes (N, T) of the split's pictures."""
        return self._all_targets[self.indices]

    def fingerprint(self) -> str:
        """Return a hash of the pictures' names, which of them are the split's, and their targets."""
        parts = (tensor.contiguous().numpy().data for tensor in (self.indices, self.targets))
        return digest(self.pictures.fingerprint().encode(), *parts)

    def subset(self, indices: Tensor) -> PictureSplit:
        """Return the pictures at ``indices``."""
        chosen = self.indices[indices]
        return PictureSplit(self.pictures, self._all_targets, self.look, self.options, scale=self.scale, indices=chosen)

    def load(self, batches: Sequence[Tensor], device: torch.device, seed: int | None) -> Iterator[Batch]:
        """Yield a batch for each tensor of indices; see :class:`Split`.

        Raises:
            DatasetError: none of a training batch can be read, or one picture cannot and this is to stop the run.
        """
        normalise = normaliser(self.look.mean, self.look.std, device)
        for pixels, targets, problems in self.read(batches, seed, pinned=device.type == "cuda"):
            if seed is not None and not len(pixels):
                raise DatasetError(f"none of the {len(problems)} pictures of a batch can be read, as {problems[0]}")
            images = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2)
            yield Batch(normalise(images), targets.to(device), len(problems))

    def read(
        self, batches: Sequence[Tensor], seed: int | None, pinned: bool = False
    ) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        """Yield pixels (N, H, W, 3) uint8, their targets, and what was wrong with the others, a line each."""
        loader = DataLoader(
            _Reading(self, seed),
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=min(self.options.workers, len(batches)),
            collate_fn=self._stacked,
            pin_memory=pinned,
            generator=torch.Generator(),  # which it draws from, though nothing here depends on it
        )
        for pixels, kept, problems in loader:
            if problems and self.options.on_unreadable == "stop":
                raise DatasetError(f"{problems[0]}; mend it or leave it out, or skip what cannot be read")
            yield pixels, self._all_targets[self.indices[kept]], problems

    def _stacked(self, read: list[tuple[int, np.ndarray | str]]) -> tuple[Tensor, Tensor, list[str]]:
        found = [(index, pixels) for index, pixels in read if not isinstance(pixels, str)]
        kept = torch.tensor([index for index, _ in found], dtype=torch.long)
        blank = np.zeros((0, self.look.size, self.look.size, 3), np.uint8)
        pixels = np.stack([pixels for _, pixels in found]) if found else blank
        return torch.from_numpy(pixels), kept, [problem for _, problem in read if isinstance(problem, str)]


class _Reading(Dataset):
    """What a worker does: an index to the picture's pixels (H, W, 3), or to what is wrong with it."""

    def __init__(self, split: PictureSplit, seed: int | None) -> None:
        self.split, self.seed = split, seed

    def __getitem__(self, index: int) -> tuple[int, np.ndarray | str]:
        split, look = self.split, self.split.look
        try:
            image = split.pictures[int(split.indices[index])].image
        except ImageLoadError as error:
            return index, error.line
        if self.seed is None:
            return index, look.pixels(image)
        part, flipped = random_part(image.size, np.random.default_rng((self.seed, index)), split.scale)
        pixels = np.asarray(image.crop(part).resize((look.size, look.size), look.resampling))
        return index, pixels[:, ::-1] if flipped else pixels


def random_part(
    size: tuple[int, int], random: np.random.Generator, scale: tuple[float, float]
) -> tuple[tuple[int, int, int, int], bool]:
    """Draw a part of a picture, and whether to flip it.

    Args:
        size: width and height of the picture.
        random: what is drawn from.
        scale: least and largest share of the area.

    Returns:
        Left, top, right, bottom, with width to height between 3:4 and 4:3; and true in half of the cases.

    Source: Szegedy et al., CVPR 2015, as in torchvision's RandomResizedCrop: ten tries, then the middle.
    """
    width, height = size
    flipped = bool(random.integers(2))
    for _ in range(10):
        area, ratio = width * height * random.uniform(*scale), math.exp(random.uniform(-1, 1) * math.log(4 / 3))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(random.integers(width - w + 1)), int(random.integers(height - h + 1))
            return (left, top, left + w, top + h), flipped
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return (left, top, left + w, top + h), flipped


def picture_data(source: str, labels: tuple[str, ...], parts: Parts, options: ReadOptions) -> TrainingData:
    """Return training data of classes whose pictures are read when needed, after checking the labels.

    Args:
        source: ``KIND:PLACE``.
        labels: of the classes.
        parts: pictures and class indices (N,), at least of ``"train"``.
        options: see :class:`ReadOptions`.

    Raises:
        DatasetError: no training pictures, a label out of range, fewer than two classes, or one that is not learnt.
    """
    if "train" not in parts or not len(parts["train"][0]):
        raise DatasetError(f"{source}: no training pictures")
    for part, (_, targets) in parts.items():
        check_labels(targets, len(labels), f"{source} ({part})")
    if len(labels) < 2:
        raise DatasetError(f"{source}: one class, {labels[0]!r}; there is nothing to tell apart")
    unknown = sorted(set(range(len(labels))) - set(parts["train"][1].tolist()))
    if unknown:
        holders = [part for part, (_, targets) in parts.items() if bool((targets == unknown[0]).any())]
        has = f"has {holders[0]} pictures but no" if holders else "has no"
        raise DatasetError(
            f"{source}: class {labels[unknown[0]]!r} {has} training pictures"
            + (f", and {len(unknown) - 1} more classes have none" if unknown[1:] else "")
        )
    look = Preprocess(options.size, 0.875, INTERPOLATION, MEAN, STD)
    splits = {part: PictureSplit(pictures, targets, look, options) for part, (pictures, targets) in parts.items()}
    validation, test = splits.get("validation"), splits.get("test")
    return TrainingData(recorded_name(source), labels, look, splits["train"], validation, test)


def recorded_name(source: str) -> str:
    """Return ``KIND:PLACE`` without the folders that the place lies in, which are nobody else's business."""
    kind, _, place = source.partition(":")
    return f"{kind}:{Path(place).resolve().name}"


def in_memory(split: PictureSplit, padding: int) -> TensorSplit:
    """Read all pictures once, as an evaluation sees them; what cannot be read gives a warning and is left out.

    Raises:
        DatasetError: none can be read, or one cannot and this is to stop the run.
    """
    found = list(split.read(torch.arange(len(split)).split(256), None))
    problems = [problem for _, _, more in found for problem in more]
    if len(problems) == len(split):
        raise DatasetError(f"none of {len(split)} pictures can be read, as {problems[0]}")
    if problems:
        told = f"{len(problems)} of {len(split)} pictures cannot be read and are left out, as {problems[0]}"
        warnings.warn(UnreadableWarning(told), stacklevel=2)
    images = torch.cat([pixels for pixels, _, _ in found]).permute(0, 3, 1, 2).contiguous()
    return TensorSplit(images, torch.cat([t for _, t, _ in found]), split.look.mean, split.look.std, padding)
