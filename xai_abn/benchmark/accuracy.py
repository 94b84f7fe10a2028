"""How often a model's prediction is right on the images of a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from xai_abn.benchmark.statistics import Estimate, mean_interval
from xai_abn.benchmark.trials import class_indices
from xai_abn.datasets import Dataset, Sample
from xai_abn.errors import DatasetError, UnsupportedModelError, XaiAbnError
from xai_abn.images.preprocess import PreparedImage, Preprocess
from xai_abn.models.adapter import ModelAdapter
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.models.predictor import Predictor
from xai_abn.threads import in_order

#: A prediction is near if a right class is among that many most probable ones.
_NEAR = 5


@dataclass(frozen=True)
class Accuracy:
    """Shares of images whose class a model names.

    An image of several classes counts as right if the prediction is one of them.

    Attributes:
        top_1: share of images whose most probable class is right, with Wilson's 95 % interval.
        top_5: share of images with a right class among the five most probable; None of a model of at most five classes.
        attention: ``top_1`` of the attention branch of an Attention Branch Network; None for other models.
        by_class: by class of the data set, the number of its images and of those that are right.
        unknown_classes: classes of the data set that the model does not have; their images are left out.
        left_out: number of images of such classes alone.
        failed: (image, reason) of those that could not be read.
        predictions: how the classes were predicted; empty of an Attention Branch Network, whose branches both answer.
    """

    top_1: Estimate
    top_5: Estimate | None
    attention: Estimate | None
    by_class: dict[str, tuple[int, int]]
    unknown_classes: tuple[str, ...] = ()
    left_out: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    predictions: str = ""

    @property
    def balanced(self) -> float:
        """Mean over classes of the share of their images that are right."""
        return float(np.mean([right / count for count, right in self.by_class.values()]))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return {
            "top_1": vars(self.top_1),
            "top_5": vars(self.top_5) if self.top_5 else None,
            "attention_top_1": vars(self.attention) if self.attention else None,
            "balanced": self.balanced,
            "by_class": {name: {"images": n, "right": right} for name, (n, right) in self.by_class.items()},
            "unknown_classes": list(self.unknown_classes),
            "left_out": self.left_out,
            "failed": [{"image": name, "reason": reason} for name, reason in self.failed],
            "predictions": self.predictions,
        }


def accuracy(
    model: ModelAdapter,
    data: Dataset,
    split: str | None = None,
    *,
    crop: Literal["center", "squash"] = "center",
    batch_size: int = 32,
    workers: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Accuracy:
    """Measure how often a classifier is right.

    Args:
        model: the classifier.
        data: from :func:`xai_abn.datasets.read_dataset`, with the class of each image.
        split: ``"train"``, ``"validation"`` or ``"test"``; default: the last of them that the data set has.
        crop: ``"center"`` shows the network its usual crop, ``"squash"`` the whole image.
        batch_size: images per forward pass.
        workers: number of threads that read images.
        progress: called after each batch with the number of images done and of all.

    Raises:
        DatasetError: there is no such split, no image with a class that the model knows, or none that can be read.
        UnsupportedModelError: the model is no classifier with one class per image.
    """
    if model.axes != 2 or model.detects or model.multi_label or model.scores_only or model.gives_map:
        raise UnsupportedModelError(f"{model.name} does not give one class of an image, so it has no accuracy")
    if model.is_abn and model.backend:
        raise UnsupportedModelError(
            f"{model.name} is an Attention Branch Network, both of whose branches are asked, which only the network "
            "itself can; leave the backend out"
        )
    samples = data.samples if split is None else data.splits.get(split, ())
    if not samples:
        given = ", ".join(name for name, part in data.splits.items() if part) or "none"
        raise DatasetError(f"the data set has no images in the split {split or 'test'}; it has {given}")
    indices = class_indices(model, data, model.number_of_classes)
    known = [sample for sample in samples if any(name in indices for name in sample.classes)]
    if not known:
        raise DatasetError(f"{model.name} knows the class of none of the {len(samples)} images")
    preprocess = replace(model.preprocess, crop=crop, size=data.image_size or model.preprocess.size)
    hits, failed = _Hits(indices), list(data.problems)
    predictor, done = Predictor(model), 0
    predictor.expect(len(known))
    for batch in _batches(in_order(_Preparing(preprocess), known, workers, ahead=2 * batch_size), batch_size):
        failed += [(sample.source, image.line) for sample, image in batch if isinstance(image, XaiAbnError)]
        readable = [(sample, image) for sample, image in batch if isinstance(image, PreparedImage)]
        if readable:
            inputs = torch.stack([image.tensor for _, image in readable])
            answer = ForwardPass(model, inputs) if model.is_abn else None
            logits = predictor(inputs) if answer is None else answer.logits
            hits.add([sample for sample, _ in readable], logits, None if answer is None else answer.class_maps)
        done += len(batch)
        progress(done, len(known))
    if not hits.top_1:
        raise DatasetError(f"none of the {len(known)} images can be read; the first: {failed[0][1]}")
    present = {name for sample in samples for name in sample.classes}
    return Accuracy(
        top_1=_share(hits.top_1),
        top_5=_share(hits.top_5) if hits.top_5 else None,
        attention=_share(hits.attention) if hits.attention else None,
        by_class={name: hits.by_class[name] for name in sorted(hits.by_class)},
        unknown_classes=tuple(sorted(present - set(indices))),
        left_out=len(samples) - len(known),
        failed=failed,
        predictions=str(predictor) if predictor.images else "",
    )


class _Preparing:
    """Reads samples; an image that cannot be read is its error."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess

    def __call__(self, sample: Sample) -> tuple[Sample, PreparedImage | XaiAbnError]:
        try:
            return sample, self.preprocess(sample.load())
        except XaiAbnError as error:
            return sample, error


def _batches(
    found: Iterator[tuple[Sample, PreparedImage | XaiAbnError]], size: int
) -> Iterator[list[tuple[Sample, PreparedImage | XaiAbnError]]]:
    batch = []
    for each in found:
        batch.append(each)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


class _Hits:
    """Right and wrong predictions, image by image."""

    def __init__(self, indices: dict[str, tuple[int, ...]]) -> None:
        self.indices = indices
        self.top_1: list[bool] = []
        self.top_5: list[bool] = []
        self.attention: list[bool] = []
        self.by_class: dict[str, tuple[int, int]] = {}

    def add(self, samples: Sequence[Sample], logits: torch.Tensor, class_maps: torch.Tensor | None) -> None:
        """Add the predictions of logits (N, K), and of class maps (N, K, h, w) if there is an attention branch."""
        first = logits.argmax(dim=1).tolist()
        near = logits.topk(_NEAR).indices.tolist() if logits.shape[1] > _NEAR else None
        branch = None if class_maps is None else class_maps.mean(dim=(2, 3)).argmax(dim=1).tolist()
        for row, sample in enumerate(samples):
            named = [(name, self.indices[name]) for name in sample.classes if name in self.indices]
            right = {index for _, indices in named for index in indices}
            self.top_1.append(first[row] in right)
            if near is not None:
                self.top_5.append(not right.isdisjoint(near[row]))
            if branch is not None:
                self.attention.append(branch[row] in right)
            for name, _ in named:
                count, before = self.by_class.get(name, (0, 0))
                self.by_class[name] = count + 1, before + (first[row] in right)


def _share(hits: Sequence[bool]) -> Estimate:
    return mean_interval(np.array(hits, float))
