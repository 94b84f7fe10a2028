"""Pictures with labels to train on: what a trainer asks of them, and the ones that fit into memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from xai_abn.errors import DatasetError, InvalidInputError, UnknownNameError
from xai_abn.images.preprocess import Preprocess
from xai_abn.registry import Registry

#: How pictures are resized for training, for validation and, from then on, for the network's explanations.
INTERPOLATION = "bilinear"


class Batch(NamedTuple):
    """Some pictures.

    Attributes:
        images: (N, 3, H, W) float32, normalised, channels last in memory; N is 0 where nothing asked for by an
            evaluation can be read, never in training.
        targets: (N,) class indices, or (N, T) attributes, 0 or 1.
        skipped: how many more were asked for and could not be read.
    """

    images: Tensor
    targets: Tensor
    skipped: int = 0


class Split(Protocol):
    """Some labelled pictures, in an order."""

    @property
    def targets(self) -> Tensor:
        """Class indices (N,) of the pictures, or attributes (N, T)."""
        ...

    def fingerprint(self) -> str:
        """Return a hash that changes with the pictures, their order or their targets, as far as is quickly known."""
        ...

    def __len__(self) -> int:
        """Return the number of pictures."""
        ...

    def subset(self, indices: Tensor) -> Split:
        """Return the pictures at ``indices``, in that order."""
        ...

    def load(self, batches: Sequence[Tensor], device: torch.device, seed: int | None) -> Iterator[Batch]:
        """Yield a batch for each tensor of indices.

        Args:
            batches: indices of the pictures of each batch.
            device: where the batch is to be.
            seed: of the random crops and flips, which depend on it and on the index alone, whatever else is in
                the batch; None for the pictures as they are.

        Raises:
            DatasetError: a picture cannot be read and this is to stop the run, or none of a training batch can.
        """
        ...


@dataclass(frozen=True)
class TrainingData:
    """What a network is trained, chosen and tested on.

    Attributes:
        name: for the record.
        labels: names of the classes, or of the attributes.
        preprocess: what makes the network's input of a picture, as it is done for validation and test.
        train: pictures to learn from.
        validation: pictures to choose by, or None.
        test: pictures to be used once, at the end, or None.
        multi_label: whether targets are attributes that may hold at once.
    """

    name: str
    labels: tuple[str, ...]
    preprocess: Preprocess
    train: Split
    validation: Split | None = None
    test: Split | None = None
    multi_label: bool = False

    def fingerprint(self) -> str:
        """Return a hash of the labels and of what is learnt from and chosen by."""
        content = repr((self.labels, self.train.fingerprint(), self.validation and self.validation.fingerprint()))
        return digest(content.encode())

    def held_out(self, share: float, seed: int = 0) -> TrainingData:
        """Return the data with ``share`` of the training pictures, drawn with ``seed``, set aside for validation.

        Data that brings a validation split keeps it. A class whose pictures were all drawn keeps the first of them.

        Raises:
            InvalidInputError: ``share`` is not in [0, 1), or leaves nothing to learn from or to choose by.
        """
        if not 0 <= share < 1:
            raise InvalidInputError(f"validation must be a share in [0, 1), got {share}")
        if self.validation is not None or share == 0:
            return self
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        count = round(share * len(order))
        if not 0 < count < len(order):
            raise InvalidInputError(f"a share of {share} of {len(order)} training pictures leaves one side empty")
        kept = torch.cat([order[count:], _only_ones(self.train.targets, order[:count], order[count:])])
        validation = order[:count][~torch.isin(order[:count], kept)].sort().values
        if not len(validation):
            raise InvalidInputError(f"a share of {share} leaves nothing to choose by, as each class needs a picture")
        train = kept.sort().values
        return replace(self, train=self.train.subset(train), validation=self.train.subset(validation))


def _only_ones(targets: Tensor, drawn: Tensor, rest: Tensor) -> Tensor:
    """Return the first drawn picture of each class of which none is left."""
    if targets.dim() != 1:
        return drawn[:0]
    left = set(targets[rest].tolist())
    first: dict[int, int] = {}
    for index, label in zip(drawn.tolist(), targets[drawn].tolist(), strict=True):
        first.setdefault(label, index)
    return torch.tensor([index for label, index in first.items() if label not in left], dtype=drawn.dtype)


def digest(*contents: bytes | memoryview) -> str:
    """Return a hash of bytes."""
    found = hashlib.blake2b(digest_size=16)
    for content in contents:
        found.update(content)
    return found.hexdigest()


class TensorSplit:
    """Pictures in memory as one tensor, cropped and flipped a batch at a time on the device.

    Args:
        images: (N, 3, H, W) uint8.
        targets: (N,) class indices or (N, T) attributes.
        mean: per channel, in [0, 1].
        std: per channel, in [0, 1].
        padding: a random crop may reach this many pixels over the edge, where it is black.

    Raises:
        DatasetError: the numbers of pictures and targets differ, or there are none.
    """

    def __init__(
        self, images: Tensor, targets: Tensor, mean: Sequence[float], std: Sequence[float], padding: int = 4
    ) -> None:
        if len(images) != len(targets) or not len(images):
            raise DatasetError(f"got {len(images)} pictures and {len(targets)} labels")
        self.images, self.targets = images, targets
        self.mean, self.std, self.padding = tuple(mean), tuple(std), padding

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.images)

    def fingerprint(self) -> str:
        """Return a hash of pixels and targets."""
        return digest(self.images.contiguous().numpy().data, self.targets.contiguous().numpy().data)

    def subset(self, indices: Tensor) -> TensorSplit:
        """Return the pictures at ``indices``."""
        return TensorSplit(self.images[indices], self.targets[indices], self.mean, self.std, self.padding)

    def load(self, batches: Sequence[Tensor], device: torch.device, seed: int | None) -> Iterator[Batch]:
        """Yield a batch for each tensor of indices; see :class:`Split`."""
        images, targets = self.images.to(device), self.targets.to(device)
        normalise = normaliser(self.mean, self.std, device)
        places = None if seed is None else self._places(seed).to(device)
        for indices in batches:
            indices = indices.to(device)
            picked = images[indices]
            if places is not None:
                picked = shifted(picked, places[indices], self.padding)
            yield Batch(normalise(picked), targets[indices])

    def _places(self, seed: int) -> Tensor:
        """Return for each picture where its crop begins and whether it is flipped, (N, 3)."""
        generator = torch.Generator().manual_seed(seed)
        corners = torch.randint(0, 2 * self.padding + 1, (len(self), 2), generator=generator)
        return torch.cat([corners, torch.randint(0, 2, (len(self), 1), generator=generator)], dim=1)


def normaliser(mean: Sequence[float], std: Sequence[float], device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return what turns (N, 3, H, W) uint8 on the device into normalised float32, channels last in memory."""
    shape = (1, 3, 1, 1)
    scale = (1 / (255 * torch.tensor(std))).view(shape).to(device)
    offset = (torch.tensor(mean) / torch.tensor(std)).view(shape).to(device)
    return lambda images: (images * scale - offset).contiguous(memory_format=torch.channels_last)


def shifted(images: Tensor, places: Tensor, padding: int) -> Tensor:
    """Return crops of the pictures padded with zeros, each at its own place.

    Args:
        images: (N, C, H, W).
        places: (N, 3): top and left of the crop in the padded picture, in [0, 2 * padding], and 1 to flip it.
        padding: pixels on each side.

    Returns:
        (N, C, H, W), channels last in memory.
    """
    number, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    columns = torch.arange(width, device=images.device).expand(number, -1)
    columns = torch.where(places[:, 2:] == 1, columns.flip(1), columns) + places[:, 1:2]
    rows = torch.arange(height, device=images.device) + places[:, :1]
    picture = torch.arange(number, device=images.device)[:, None, None]
    return padded[picture, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def check_labels(targets: Tensor, classes: int, source: str) -> None:
    """Refuse labels that no class has.

    Raises:
        DatasetError: a label is outside [0, classes).
    """
    if len(targets) and not (int(targets.min()) >= 0 and int(targets.max()) < classes):
        wrong = int(((targets < 0) | (targets >= classes)).sum())
        raise DatasetError(
            f"{source}: {wrong} labels are outside 0 to {classes - 1} (from {int(targets.min())} to "
            f"{int(targets.max())}); correct them, or name all classes"
        )


@dataclass(frozen=True)
class ReadOptions:
    """How pictures are read, where the data leaves a choice.

    Attributes:
        size: height and width wanted by the network; data of one size, such as CIFAR, keeps its own.
        workers: processes that read picture files; 0 to read them in this one.
        on_unreadable: ``"skip"`` leaves a picture that cannot be read out and counts it, ``"stop"`` stops.
        validation: share of the people to learn from who are held out, where the data names people and has a split,
            but none for validation; 0 for none. (Where it names none, see :meth:`TrainingData.held_out`.)
    """

    size: int = 224
    workers: int = 2
    on_unreadable: str = "skip"
    validation: float = 0.1


#: Functions of a place (what stands behind the colon of ``KIND:PLACE``) and options that return the data.
training_data: Registry[Callable[[str, ReadOptions], TrainingData]] = Registry("kind of training data")


def read_training_data(spec: str, options: ReadOptions = ReadOptions()) -> TrainingData:
    """Read pictures to train on.

    Args:
        spec: ``KIND:PLACE``, such as ``"cifar100:DIR"``; kinds are ``training_data.names()``.
        options: see :class:`ReadOptions`.

    Raises:
        UnknownNameError: unknown kind.
        DatasetError: missing, damaged, or labels that do not fit.
    """
    kind, colon, place = spec.partition(":")
    if not colon or not place:
        raise UnknownNameError("training data", spec, [f"{name}:PLACE" for name in training_data.names()])
    return training_data.get(kind)(place, options)
