"""Trials: the classes of an image that a model knows, and their objects as the network sees them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from xai_abn.datasets import Dataset, Sample
from xai_abn.datasets.imagenet_classes import are_imagenet
from xai_abn.errors import DatasetError
from xai_abn.files import name_as_text
from xai_abn.images.preprocess import PreparedImage
from xai_abn.metrics.objects import Objects
from xai_abn.models.adapter import ModelAdapter

#: Name of the trial for the model's own prediction.
TOP = "top-1"


@dataclass(frozen=True, eq=False)
class PreparedSample:
    """An image ready to be scored.

    Attributes:
        key: hash of its content and annotations.
        name: its path below the data set's folder.
        position: in the data set.
        annotated: the sample with its annotations.
        prepared: what the network sees.
        size: (H, W) of the image.
        region: left, top, right, bottom of the part seen, in its pixels.
    """

    key: str
    name: str
    position: int
    annotated: Sample
    prepared: PreparedImage
    size: tuple[int, int]
    region: tuple[float, float, float, float]
    _drawn: dict[tuple[str, bool], Objects | None] = field(default_factory=dict, repr=False)

    def objects(self, classes: Sequence[str] | None = None, *, at_image_size: bool = False) -> Objects | None:
        """Return the objects seen, of some classes or all, on the network's grid or the image's own."""
        wanted = self.annotated.classes if classes is None else classes
        found = [o for o in (self._of_class(name, at_image_size) for name in wanted) if o is not None]
        return Objects.joined(found) if found else None

    def others(self, name: str, *, at_image_size: bool = False) -> Objects | None:
        """Return the objects of every class but one."""
        return self.objects([c for c in self.annotated.classes if c != name], at_image_size=at_image_size)

    def _of_class(self, name: str, at_image_size: bool) -> Objects | None:
        """Return the objects of one class, drawn once."""
        if (name, at_image_size) not in self._drawn:
            left, top, right, bottom = self.region
            own = (max(1, round(bottom - top)), max(1, round(right - left)))
            grid = own if at_image_size else (self.prepared.tensor.shape[1], self.prepared.tensor.shape[2])
            drawn = self.annotated.on_grid(self.size, self.region, grid, [name])
            self._drawn[name, at_image_size] = drawn
        return self._drawn[name, at_image_size]


@dataclass(frozen=True)
class Trial:
    """A target of an image: its ``row`` in the batch, ``name`` of the class (or ``TOP``), the model's class index."""

    row: int
    name: str
    target: int


def class_indices(model: ModelAdapter, data: Dataset, classes: int) -> dict[str, tuple[int, ...]]:
    """Return the model's classes that correspond to each class of a data set; those without are left out.

    A class that has the name of one of the model's labels is that class, but not one that has the name of several,
    such as the two cranes of ImageNet; for a model of 1,000 ImageNet classes the WordNet ids of the data set decide.
    A model of 1,000 classes without labels is taken for one of them.

    Args:
        model: the model.
        data: the data set.
        classes: number K of classes that the model scores.

    Raises:
        DatasetError: no class corresponds.
    """
    found: dict[str, tuple[int, ...]] = {}
    if classes == 1000 and data.wnids and (model.labels is None or are_imagenet(model.labels)):
        from timm.data.imagenet_info import ImageNetInfo

        numbers = {wnid: i for i, wnid in enumerate(ImageNetInfo().label_names())}
        found = {name: tuple(numbers[w] for w in wnids) for name, wnids in data.wnids.items()}
    else:
        named = classes_called(model, data.class_names)
        found = {name: indices for name, indices in named.items() if len(indices) == 1}
    if not found:
        raise DatasetError(
            f"{model.name} knows none of the classes of {data.kind} ({', '.join(data.class_names[:3])} ...): give it "
            "labels of the same names, of which each is that of one class, or choose metrics that score only the "
            "top-1 class"
        )
    return found


def classes_called(model: ModelAdapter, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Return the model's classes that have each name as their label, in upper or lower case."""
    labels: dict[str, list[int]] = {}
    for index, label in enumerate(model.labels or ()):
        labels.setdefault(label.casefold(), []).append(index)
    return {name: tuple(labels.get(name.casefold(), ())) for name in names}


def trials_of(image: PreparedSample, row: int, logits: Tensor, indices: dict[str, tuple[int, ...]]) -> list[Trial]:
    """Return one trial for each class that is present, in view and known to the model.

    If several of the model's classes correspond to one class, such as 118 breeds to "dog", the one with the largest
    logit is explained.

    Args:
        image: the image.
        row: its position in the batch.
        logits: (K,) of the image.
        indices: from :func:`class_indices`.
    """
    trials = []
    for name in image.annotated.classes:
        group = indices.get(name)
        if group and image.objects([name]) is not None:
            trials.append(Trial(row, name, group[int(logits[torch.tensor(group)].argmax())]))
    return trials


def short_names(samples: Iterable[Sample]) -> list[str]:
    """Return each image's path below the folder that holds them all."""
    paths = [sample.source for sample in samples]
    folder = os.path.commonpath([os.path.dirname(p) for p in paths]) if len(paths) > 1 else os.path.dirname(paths[0])
    names = [os.path.relpath(p, folder) if folder else p for p in paths]
    return [name_as_text(name) for name in names]
