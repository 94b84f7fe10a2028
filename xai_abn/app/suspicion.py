"""Which images to look at first: where a model looks at the wrong place, or its branches disagree."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch

from xai_abn.datasets.sample import Sample
from xai_abn.errors import XaiAbnError
from xai_abn.explainers import make_explainers
from xai_abn.heatmaps import flaw_of
from xai_abn.images.preprocess import PreparedImage
from xai_abn.metrics.localization import energy_pointing_game
from xai_abn.models.adapter import ModelAdapter
from xai_abn.pipeline import explain_batch

#: Part of the score below which it is no reason.
SLIGHT = 0.05
#: Correlation from which the maps of two images count as alike.
ALIKE = 0.8


@dataclass(frozen=True, eq=False)
class Suspicion:
    """What is known about one image.

    Attributes:
        name: what it is called.
        label: the prediction.
        probability: its probability; NaN without probabilities.
        map: (h, w): M, or Grad-CAM of the prediction for a network without an attention map.
        attention_label: what the attention branch predicts, or None.
        disagreement: half the sum of the differences of both branches' probabilities, in [0, 1].
        outside: share of the map's positive values outside the annotated objects, in [0, 1]; None without objects.
        truth: the class of the image, if it is known and another than the prediction.
        like: name of the more suspicious image whose map is alike, or None.
    """

    name: str
    label: str
    probability: float
    map: np.ndarray
    attention_label: str | None = None
    disagreement: float = 0.0
    outside: float | None = None
    truth: str | None = None
    like: str | None = None

    @property
    def score(self) -> float:
        """How suspicious it is: the sum of disagreement, energy outside, and 1 for a wrong prediction."""
        return self.disagreement + (self.outside or 0.0) + float(self.truth is not None)

    @property
    def reasons(self) -> list[str]:
        """The score in words, the largest part first."""
        found = []
        if self.truth is not None:
            found.append((1.0, f"annotated as {self.truth}"))
        if self.outside is not None:
            found.append((self.outside, f"{self.outside:.0%} of the map outside the objects"))
        if self.attention_label is not None and self.attention_label != self.label:
            found.append((self.disagreement, f"the attention branch says {self.attention_label}"))
        elif self.attention_label is not None:
            found.append((self.disagreement, f"the branches differ by {self.disagreement:.0%}"))
        return [text for size, text in sorted(found, key=lambda pair: -pair[0]) if size >= SLIGHT]


def suspicion_of(model: ModelAdapter, prepared: PreparedImage, sample: Sample) -> Suspicion:
    """Return what is suspicious about an image.

    Args:
        model: the model.
        prepared: the image.
        sample: what is annotated.

    Raises:
        XaiAbnError: the image cannot be explained.
    """
    if model.uses_attention_map:
        own = model.edit(prepared).own
        both = own.probabilities, own.attention_probabilities
        predicted, attention = (int(answers.argmax()) for answers in (own.logits, own.attention_logits))
        map_ = own.attention_map if own.attention_map.dim() == 2 else own.attention_map[predicted]
        found = Suspicion(
            sample.source,
            model.label(predicted),
            float(both[0][predicted]),
            map_.numpy(force=True),
            model.label(attention),
            float((both[0] - both[1]).abs().sum() / (len(both[0]) if model.multi_label else 2)),
        )
    else:
        (result,) = explain_batch(model, [prepared], make_explainers(model, "grad-cam"), [[None]])
        if isinstance(result, XaiAbnError):
            raise result
        record = next(iter(result.values()))
        found = Suspicion(sample.source, record.predicted_label, record.probability, record.map)
    if sample.label is not None and sample.label.casefold() != found.label.casefold():
        known = {label.casefold() for label in model.labels or ()}
        found = replace(found, truth=sample.label if sample.label.casefold() in known else None)
    if sample.objects and prepared.size is not None:
        size = (prepared.size[-2], prepared.size[-1])
        sample.check(size)
        grid = (prepared.tensor.shape[1], prepared.tensor.shape[2])
        objects = sample.on_grid(size, prepared.seen, grid)
        if objects is not None and flaw_of(found.map) is None:
            inside = float(energy_pointing_game(torch.tensor(found.map)[None], [objects])[0])
            found = replace(found, outside=1 - inside if np.isfinite(inside) else None)
    return found


def sorted_by_suspicion(found: Iterable[Suspicion]) -> list[Suspicion]:
    """Return the most suspicious first, and behind each those with a map like its own, so that one look serves all.

    Maps are alike if their Pearson correlation is at least ``ALIKE``.
    """
    ranked = sorted(found, key=lambda one: -one.score)
    if not ranked:
        return []
    shape = ranked[0].map.shape
    unit = np.stack([_standardized(one.map if one.map.shape == shape else np.zeros(shape)) for one in ranked])
    ordered: list[Suspicion] = []
    left = np.arange(len(ranked))
    while len(left):
        first, left = left[0], left[1:]
        alike = unit[left] @ unit[first] >= ALIKE
        ordered += [ranked[first], *(replace(ranked[other], like=ranked[first].name) for other in left[alike])]
        left = left[~alike]
    return ordered


def _standardized(map_: np.ndarray) -> np.ndarray:
    """Return a map as a vector of mean 0 and length 1, whose product with another is their correlation; 0 if flawed."""
    if flaw_of(map_):
        return np.zeros(map_.size)
    centered = map_.ravel().astype(np.float64) - map_.mean(dtype=np.float64)
    return np.asarray(centered / np.linalg.norm(centered))
