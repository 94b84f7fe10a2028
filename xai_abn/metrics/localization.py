"""Localization: whether a map points at the annotated objects.

Maps (N, h, w) are enlarged bilinearly to the grid of their :class:`Objects`. A flat or non-finite map has no value
(NaN): it never counts as a hit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from xai_abn.errors import InvalidInputError
from xai_abn.heatmaps import flaws, upsample
from xai_abn.metrics.base import Metric, Scores, Subject, register
from xai_abn.metrics.objects import Objects

#: TorchRay's tolerance around the objects, in pixels.
TOLERANCE = 15.0


def pointing_game(maps: Tensor, objects: Sequence[Objects], tolerance: float = TOLERANCE) -> Tensor:
    """Return 1 where the map's largest value is closer than ``tolerance`` pixels to the objects, else 0.

    Of several largest values the first in reading order counts. The distance must be strictly smaller, as in
    TorchRay's code (its documentation says "at most").

    Args:
        maps: (N, h, w).
        objects: N; for the 15 pixels of TorchRay, on grids of the images' own sizes.
        tolerance: in pixels of that grid; with 0 the largest value must be on an object.

    Returns:
        (N,) of 0 and 1; NaN for a flat or non-finite map, and where all objects are ``difficult``.

    Raises:
        InvalidInputError: the numbers of maps and objects differ.

    Source: Zhang et al., "Top-down Neural Attention by Excitation Backprop", 2016, section 4.1; TorchRay.
    """

    def hit(map_: Tensor, present: Objects) -> float:
        if not _has_easy_object(present):
            return math.nan
        row, column = divmod(int(map_.argmax()), map_.shape[1])
        rows, columns = present.mask.nonzero(as_tuple=True)
        nearest = int(((rows - row) ** 2 + (columns - column) ** 2).min())
        return float(nearest < tolerance**2 or nearest == 0)

    return each_map(maps, objects, hit)


def peak_inside(maps: Tensor, objects: Sequence[Objects]) -> Tensor:
    """Return the pointing game without tolerance: 1 where the map's largest value is on an object, else 0."""
    return pointing_game(maps, objects, tolerance=0)


def pointing_game_difficult(
    maps: Tensor, objects: Sequence[Objects], others: Sequence[Objects | None], tolerance: float = TOLERANCE
) -> Tensor:
    """Return the pointing game on difficult images: small objects, with objects of other classes beside them.

    A trial counts if the objects of the class cover less than a quarter of the image and another class is present;
    otherwise it is NaN.

    Source: Zhang et al., 2016, section 4.1 (the "difficult" set); TorchRay ships that set as lists.
    """
    check_same_number(objects, others)
    difficult = [_is_difficult(own, other) for own, other in zip(objects, others, strict=True)]
    return pointing_game(maps, objects, tolerance).masked_fill(~torch.tensor(difficult, dtype=torch.bool), math.nan)


def energy_pointing_game(maps: Tensor, objects: Sequence[Objects]) -> Tensor:
    """Return the share of the map's positive values that lies inside the objects.

    A uniform map reaches the objects' share of the area.

    Returns:
        (N,) in [0, 1]; NaN for a non-finite map and one without positive values.

    Source: energy-based pointing game, Wang et al., "Score-CAM", 2020, section 4.3; negative values count as 0.
    """

    def share(map_: Tensor, present: Objects) -> float:
        positive = map_.clamp_min(0)
        total = float(positive.sum())
        return float((positive * present.mask).sum()) / total if total > 0 else math.nan

    return each_map(maps, objects, share, score_flat=True)


def relevance_rank_accuracy(maps: Tensor, objects: Sequence[Objects]) -> Tensor:
    """Return the share of the K largest values that lies inside the objects, K being the objects' number of pixels.

    Equal values count in reading order. Returns (N,) in [0, 1]; NaN for a flat or non-finite map.

    Source: Arras et al., "CLEVR-XAI", 2022, section 3.3 (relevance rank accuracy).
    """

    def accuracy(map_: Tensor, present: Objects) -> float:
        inside = present.mask.flatten()
        number = int(inside.sum())
        order = map_.flatten().argsort(descending=True, stable=True)
        return float(inside[order[:number]].float().mean())

    return each_map(maps, objects, accuracy)


def best_iou(maps: Tensor, objects: Sequence[Objects]) -> Tensor:
    """Return the largest intersection over union of the objects' pixels with {map >= t}, over every threshold t.

    The threshold is chosen with the objects known, so this is an upper bound. Returns (N,) in [0, 1]; NaN for a flat
    or non-finite map.
    """

    def best(map_: Tensor, present: Objects) -> float:
        values, order = map_.flatten().sort(descending=True, stable=True)
        inside = present.mask.flatten()[order].double()
        hits, total = inside.cumsum(0), inside.sum()
        taken = torch.arange(1, len(values) + 1)
        last_of_equals = torch.cat([values[1:] != values[:-1], torch.ones(1, dtype=torch.bool)])
        return float((hits / (taken + total - hits))[last_of_equals].max())

    return each_map(maps, objects, best)


def each_map(
    maps: Tensor, objects: Sequence[Objects], score: Callable[[Tensor, Objects], float], *, score_flat: bool = False
) -> Tensor:
    """Score each map on the grid of its objects, (N,).

    Args:
        maps: (N, h, w).
        objects: N.
        score: computes the value of a map (H, W) and its objects.
        score_flat: score flat maps too; otherwise they are NaN, as non-finite maps are.

    Raises:
        InvalidInputError: the numbers of maps and objects differ.
    """
    if maps.dim() != 3 or len(maps) != len(objects):
        raise InvalidInputError(f"expected N maps (N, h, w) and N Objects, got {tuple(maps.shape)} and {len(objects)}")
    values = []
    for map_, present, flaw in zip(maps.detach().cpu(), objects, flaws(maps), strict=True):
        if flaw == "not finite" or (flaw and not score_flat):
            values.append(math.nan)
        else:
            values.append(score(upsample(map_[None], present.size)[0], present))
    return torch.tensor(values)


def check_same_number(objects: Sequence[Objects], others: Sequence[Objects | None]) -> None:
    """Check that ``others`` has one entry for each of ``objects``.

    Raises:
        InvalidInputError: their numbers differ.
    """
    if len(objects) != len(others):
        raise InvalidInputError(
            f"expected one entry of other classes per Objects, None where there is none; got {len(others)} for "
            f"{len(objects)}"
        )


def _has_easy_object(own: Objects, others: Objects | None = None) -> bool:
    return not bool(own.difficult.all())


def _is_difficult(own: Objects, others: Objects | None) -> bool:
    return others is not None and bool(own.mask.float().mean() < 0.25)


def register_localization(
    name: str, protocol: str, function: Callable[..., Tensor | Scores], definition: str, source: str, **fields: Any
) -> None:
    """Register a metric of maps and objects with values in [0, 1]; by default of each class, higher is better."""
    defaults: dict[str, Any] = {
        "subject": Subject.CLASSES,
        "higher_is_better": True,
        "range": (0.0, 1.0),
        "units": "share",
        "flat_counts_as": 0.0,
    }
    register(Metric(name, protocol, function, definition=definition, source=source, **(defaults | fields)))


register_localization(
    "pointing-game",
    "torchray-15px",
    pointing_game,
    "The map's largest value, at the image's own size, is less than 15 pixels from an object of the class (outlines "
    "where annotated, else boxes). A class whose objects are all difficult is left out. Mean over images; TorchRay's "
    "accuracy is the mean over classes, shown in the table of classes.",
    "Zhang et al., 2016; TorchRay 2019",
    applies=_has_easy_object,
    at_image_size=True,
    units="share of trials",
)
register_localization(
    "pointing-game-difficult",
    "torchray-15px",
    pointing_game_difficult,
    "As pointing-game, only where the class covers less than a quarter of the image and another class is present.",
    "Zhang et al., 2016, by its rule; TorchRay ships lists",
    applies=lambda own, others: _has_easy_object(own) and _is_difficult(own, others),
    at_image_size=True,
    units="share of trials",
)
register_localization(
    "peak-inside",
    "xai-abn",
    peak_inside,
    "The largest value of the top-1 class's map, at the network's input size, is on an annotated object of any class.",
    "this project",
    subject=Subject.PREDICTION,
    applies=_has_easy_object,
    units="share of images",
)
register_localization(
    "energy-pointing-game",
    "score-cam-2020",
    energy_pointing_game,
    "Share of the map's positive values inside the objects of the class, at the network's input size.",
    "Wang et al., Score-CAM, 2020",
    flat_counts_as=None,
)
register_localization(
    "relevance-rank-accuracy",
    "clevr-xai",
    relevance_rank_accuracy,
    "Share of the K top pixels inside the objects of the class, K being their number of pixels.",
    "Arras et al., CLEVR-XAI, 2022",
)
register_localization(
    "best-iou",
    "xai-abn",
    best_iou,
    "Largest IoU of the objects' pixels with the thresholded map over all thresholds: an upper bound.",
    "this project",
)
