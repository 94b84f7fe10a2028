"""Batches of images for training and evaluation: from memory, or read on demand by worker processes."""

from __future__ import annotations

import math
import os
import re
import signal
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from xai_abn.datasets.sample import Sample, SampleSubset
from xai_abn.errors import DatasetError, ImageLoadError, XaiAbnWarning
from xai_abn.files import digest
from xai_abn.images.preprocess import Preprocess, normalizer
from xai_abn.settings import MAX_SIZE, Settings


class UnreadableWarning(XaiAbnWarning):
    """Given when images that are listed but cannot be used, or read into memory, are left out of a data set."""


class ConvertedWarning(XaiAbnWarning):
    """Given when the pixels of images are changed on reading, such as those of 16 bits."""


class Corrected(NamedTuple):
    """Corrected images of a batch.

    Attributes:
        images: (N, 3, H, W) as in a batch.
        targets: (N,) the class whose map was corrected.
        masks: (N, 2, H, W) uint8 of 0 and 1: where to look, and where not to.
    """

    images: Tensor
    targets: Tensor
    masks: Tensor


class Batch(NamedTuple):
    """A batch of images.

    Attributes:
        images: (N, 3, H, W) float32, normalized, channels last in memory; N may be 0 in an evaluation, if none of the
            images can be read, but never in training.
        targets: (N,) class indices, or (N, T) attributes, 0 or 1.
        skipped: number of further images that could not be read.
        corrected: images whose maps were corrected, if there are corrections.
    """

    images: Tensor
    targets: Tensor
    skipped: int = 0
    corrected: Corrected | None = None


class DataSplit(Protocol):
    """Labeled images in a fixed order."""

    @property
    def targets(self) -> Tensor:
        """Class indices (N,) of the images, or attributes (N, T)."""
        ...

    def fingerprint(self) -> str:
        """Return a hash of the images, their order and their targets; of files only the names count."""
        ...

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def subset(self, indices: Tensor) -> DataSplit:
        """Return the images at ``indices``, in that order."""
        ...

    def load(self, batches: Sequence[Tensor], device: torch.device, seed: int | None) -> Iterator[Batch]:
        """Yield a batch for each tensor of indices.

        Args:
            batches: indices of the images of each batch.
            device: device of the batches.
            seed: seed of the random crops and flips, which depend on it and on the index alone; None for the images
                as an evaluation sees them.

        Raises:
            DatasetError: an image cannot be read and unreadable images stop the run, or a training batch has no
                readable image.
        """
        ...


class ReadOptions(Settings):
    """How images are read for training."""

    size: int = Field(
        224,
        ge=1,
        le=MAX_SIZE,
        description="Height and width for the network; data of a fixed size, such as CIFAR, keeps its own.",
    )
    workers: int = Field(2, ge=0, description="Processes that read images; 0 reads them in the main process.")
    on_unreadable: Literal["skip", "stop"] = Field(
        "skip",
        description="'skip' leaves out and counts images that cannot be used or read, 'stop' stops at the first.",
    )
    validation: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of the groups (such as people) in the training split to hold out for validation, if the "
        "data has groups but no validation split. Without groups, TrainingData.held_out draws images instead.",
    )


class InMemorySplit:
    """Images in one tensor, shifted and flipped a batch at a time on the device; see :class:`DataSplit`.

    Args:
        images: (N, 3, H, W) uint8.
        targets: (N,) class indices or (N, T) attributes.
        mean: per channel, in [0, 1].
        std: per channel, in [0, 1].
        padding: largest shift in pixels; what a shift uncovers is black.

    Raises:
        DatasetError: there are no images, or not as many targets.
    """

    def __init__(
        self, images: Tensor, targets: Tensor, mean: Sequence[float], std: Sequence[float], padding: int = 4
    ) -> None:
        if len(images) != len(targets) or not len(images):
            raise DatasetError(f"expected one target for each image, got {len(images)} images and {len(targets)}")
        self.images, self.targets = images, targets
        self.mean, self.std, self.padding = tuple(mean), tuple(std), padding

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def fingerprint(self) -> str:
        """Return a hash of pixels and targets."""
        return digest(self.images.contiguous().numpy().data, self.targets.contiguous().numpy().data)

    def subset(self, indices: Tensor) -> InMemorySplit:
        """Return the images at ``indices``."""
        return InMemorySplit(self.images[indices], self.targets[indices], self.mean, self.std, self.padding)

    def load(self, batches: Sequence[Tensor], device: torch.device, seed: int | None) -> Iterator[Batch]:
        """Yield a batch for each tensor of indices; see :class:`DataSplit`."""
        images, targets = self.images.to(device), self.targets.to(device)
        normalize = normalizer(self.mean, self.std, device)
        places = None if seed is None else self._places(seed).to(device)
        for indices in batches:
            indices = indices.to(device)
            chosen = images[indices]
            if places is not None:
                chosen = shifted(chosen, places[indices], self.padding)
            yield Batch(normalize(chosen).contiguous(memory_format=torch.channels_last), targets[indices])

    def _places(self, seed: int) -> Tensor:
        """Return the top and left of each image's crop and whether to flip it, (N, 3)."""
        generator = torch.Generator().manual_seed(seed)
        corners = torch.randint(0, 2 * self.padding + 1, (len(self), 2), generator=generator)
        return torch.cat([corners, torch.randint(0, 2, (len(self), 1), generator=generator)], dim=1)


class LazySplit:
    """Labeled images of any size, read and resized on demand by worker processes; see :class:`DataSplit`.

    In training an image is cropped at random, resized and perhaps flipped (:func:`random_crop`); otherwise
    ``preprocess`` prepares it.

    Args:
        samples: the images.
        targets: (N,) class indices or (N, T) attributes.
        preprocess: how an evaluation sees an image.
        options: see :class:`ReadOptions`.
        area: least and largest share of an image's area in a random crop.
        told: what :func:`warn_of_conversions` has told; one set for all splits of a data set.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        targets: Tensor,
        preprocess: Preprocess,
        options: ReadOptions,
        area: tuple[float, float] = (0.08, 1.0),
        told: set[str] | None = None,
    ) -> None:
        self.samples, self.targets = SampleSubset(samples, range(len(samples))), targets
        self.preprocess, self.options, self.area = preprocess, options, area
        self._told = set() if told is None else told

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.samples)

    def fingerprint(self) -> str:
        """Return a hash of the names of all images of the data set, of those in the split, and of their targets."""
        source = self.samples.whole
        if hasattr(source, "fingerprint"):
            name = source.fingerprint()
        else:  # file and folder, but not where the folder is
            name = digest(*(os.fsencode("/".join(Path(s.source).parts[-2:])) + b"\0" for s in source))
        tensors = (torch.tensor(self.samples.indices), self.targets)
        return digest(name.encode(), *(tensor.contiguous().numpy().data for tensor in tensors))

    def subset(self, indices: Tensor) -> LazySplit:
        """Return the images at ``indices``."""
        chosen = SampleSubset(self.samples, indices.tolist())
        return LazySplit(chosen, self.targets[indices], self.preprocess, self.options, self.area, self._told)

    def load(self, batches: Sequence[Tensor], device: torch.device, seed: int | None) -> Iterator[Batch]:
        """Yield a batch for each tensor of indices; see :class:`DataSplit`.

        Raises:
            DatasetError: a training batch has no readable image, or an image cannot be read and this stops the run.
        """
        normalize = normalizer(self.preprocess.mean, self.preprocess.std, device)
        for pixels, targets, problems in self.read(batches, seed, pinned=device.type == "cuda"):
            if seed is not None and not len(pixels):
                raise DatasetError(f"none of the {len(problems)} images of a batch can be read, as {problems[0]}")
            images = normalize(pixels.to(device, non_blocking=True).permute(0, 3, 1, 2))
            yield Batch(images.contiguous(memory_format=torch.channels_last), targets.to(device), len(problems))

    def read(
        self, batches: Sequence[Tensor], seed: int | None, pinned: bool = False
    ) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        """Yield pixels (N, H, W, 3) uint8, their targets, and a line for each image that cannot be read."""
        loader = DataLoader(
            _PixelReader(self, seed),
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=min(self.options.workers, len(batches)),
            collate_fn=self._stack,
            pin_memory=pinned,
            generator=torch.Generator(),  # else it would draw from torch's global state
            worker_init_fn=ignore_signals,
        )
        for pixels, kept, problems, notes in loader:
            warn_of_conversions(notes, self._told)
            if problems and self.options.on_unreadable == "stop":
                raise DatasetError(f"{problems[0]}; repair or remove the image, or skip unreadable images")
            yield pixels, self.targets[kept], problems

    def _stack(
        self, read: list[tuple[int, np.ndarray | str, tuple[str, ...]]]
    ) -> tuple[Tensor, Tensor, list[str], dict[str, str]]:
        readable = [(index, pixels) for index, pixels, _ in read if not isinstance(pixels, str)]
        notes = {note: self.samples[index].source for index, _, given in reversed(read) for note in given}
        kept = torch.tensor([index for index, _ in readable], dtype=torch.long)
        empty = np.zeros((0, self.preprocess.side, self.preprocess.side, 3), np.uint8)
        pixels = np.stack([pixels for _, pixels in readable]) if readable else empty
        return torch.from_numpy(pixels), kept, [problem for _, problem, _ in read if isinstance(problem, str)], notes


def warn_of_conversions(notes: Mapping[str, str], told: set[str]) -> None:
    """Warn of what was done to images when they were read, once for each kind.

    Args:
        notes: an image by each note, such as "gray values scaled from [0, 65535] to 8 bits".
        told: kinds of notes, which are notes without their numbers, that were given before; new ones are added.
    """
    for note, source in notes.items():
        kind = re.sub(r"\d+", "", note)
        if kind not in told:
            told.add(kind)
            warnings.warn(ConvertedWarning(f"{source}: {note}; other images of its kind are not named"), stacklevel=3)


class _PixelReader(TorchDataset[tuple[int, "np.ndarray | str", tuple[str, ...]]]):
    """Gives each index, the pixels (H, W, 3) of its image or the reason why it cannot be read, and notes on it."""

    def __init__(self, split: LazySplit, seed: int | None) -> None:
        self.split, self.seed = split, seed

    def __getitem__(self, index: int) -> tuple[int, np.ndarray | str, tuple[str, ...]]:
        split = self.split
        try:
            loaded = split.samples[index].load()
        except ImageLoadError as error:
            return index, error.line, ()
        if self.seed is None:
            return index, split.preprocess.pixels(loaded.image), loaded.notes
        random = np.random.default_rng((self.seed, index))
        return index, random_crop(loaded.image, split.preprocess, random, split.area), loaded.notes


class RandomCrops(TorchDataset["Tensor | ImageLoadError"]):
    """Images as random crops, normalized for a network, for training without labels.

    An image that cannot be read gives its error, which is not raised; :func:`stack_readable` leaves it out.

    Args:
        samples: the images.
        preprocess: size, interpolation and normalization of the network.
        area: least and largest share of an image's area in a crop.
    """

    def __init__(
        self, samples: Sequence[Sample], preprocess: Preprocess, area: tuple[float, float] = (0.25, 1.0)
    ) -> None:
        self.samples, self.preprocess, self.area = samples, preprocess, area

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.samples)

    def __getitem__(self, index: int) -> Tensor | ImageLoadError:
        """Return a crop (3, size, size) drawn with torch's random numbers, or the error of an unreadable image."""
        random = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
        try:
            image = self.samples[index].load().image
        except ImageLoadError as error:
            return error
        return self.preprocess.normalize(random_crop(image, self.preprocess, random, self.area))


def stack_readable(crops: Sequence[Tensor | ImageLoadError]) -> tuple[Tensor, list[str]]:
    """Collate: return the readable crops as (N, 3, H, W), or an empty tensor, and the reasons for the others."""
    readable = [crop for crop in crops if isinstance(crop, Tensor)]
    reasons = [str(crop) for crop in crops if not isinstance(crop, Tensor)]
    return torch.stack(readable) if readable else torch.empty(0), reasons


def random_crop(
    image: Image.Image, preprocess: Preprocess, random: np.random.Generator, area: tuple[float, float]
) -> np.ndarray:
    """Return a random crop of an image, resized and in half of the cases flipped: (size, size, 3) uint8."""
    box, flipped = random_crop_box(image.size, random, area)
    pixels = np.asarray(image.crop(box).resize((preprocess.side, preprocess.side), preprocess.resampling))
    return pixels[:, ::-1] if flipped else pixels


def random_crop_box(
    size: tuple[int, int], random: np.random.Generator, area: tuple[float, float]
) -> tuple[tuple[int, int, int, int], bool]:
    """Draw the box of a random crop, and whether to flip the crop.

    Args:
        size: width and height of the image.
        random: source of random numbers.
        area: least and largest share of the image's area.

    Returns:
        Left, top, right, bottom, with an aspect ratio between 3:4 and 4:3; and True in half of the cases.

    Source: Szegedy et al., CVPR 2015, as in torchvision's RandomResizedCrop: ten tries, then the center.
    """
    width, height = size
    flipped = bool(random.integers(2))
    for _ in range(10):
        pixels, ratio = width * height * random.uniform(*area), math.exp(random.uniform(-1, 1) * math.log(4 / 3))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(random.integers(width - w + 1)), int(random.integers(height - h + 1))
            return (left, top, left + w, top + h), flipped
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return (left, top, left + w, top + h), flipped


def shifted(images: Tensor, places: Tensor, padding: int) -> Tensor:
    """Return crops of the images padded with zeros, each at its own place.

    Args:
        images: (N, C, H, W).
        places: (N, 3): top and left of the crop in the padded image, in [0, 2 * padding], and 1 to flip it.
        padding: pixels on each side.

    Returns:
        (N, C, H, W), channels last in memory.
    """
    number, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    columns = torch.arange(width, device=images.device).expand(number, -1)
    columns = torch.where(places[:, 2:] == 1, columns.flip(1), columns) + places[:, 1:2]
    rows = torch.arange(height, device=images.device) + places[:, :1]
    image = torch.arange(number, device=images.device)[:, None, None]
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def read_into_memory(split: LazySplit, padding: int) -> InMemorySplit:
    """Read all images once, as an evaluation sees them; unreadable ones are left out with a warning.

    Raises:
        DatasetError: no image can be read, or one cannot and this stops the run.
    """
    parts = list(split.read(torch.split(torch.arange(len(split)), 256), None))
    problems = [problem for _, _, reasons in parts for problem in reasons]
    if len(problems) == len(split):
        raise DatasetError(f"none of {len(split)} images can be read, as {problems[0]}")
    if problems:
        message = f"{len(problems)} of {len(split)} images cannot be read and are left out, as {problems[0]}"
        warnings.warn(UnreadableWarning(message), stacklevel=2)
    images = torch.cat([pixels for pixels, _, _ in parts]).permute(0, 3, 1, 2).contiguous()
    targets = torch.cat([targets for _, targets, _ in parts])
    return InMemorySplit(images, targets, split.preprocess.mean, split.preprocess.std, padding)


def ignore_signals(_worker: int) -> None:
    """Let a signal that is sent to every process end the run, and not first the process that reads images."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
