"""Does a map point at the annotated objects?

Maps (N, h, w) are enlarged bilinearly to the grid of their :class:`Objects`. A flat or non-finite map has no
value (NaN): it never counts as a hit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from xai_abn.errors import InvalidInputError
from xai_abn.heatmaps import flaws, upsample
from xai_abn.metrics.base import Metric, Needs, Scores, Subject, register
from xai_abn.metrics.objects import Objects

#: TorchRay's tolerance around the objects, in pixels.
TOLERANCE = 15.0


def pointing_game(maps: Tensor, objects: Sequence[Objects], tolerance: float = TOLERANCE) -> Tensor:
    """1 where the map's largest value lies nearer than ``tolerance`` pixels to the objects, else 0.

    Of equal largest values the first in reading order counts. The distance is strictly smaller, as in
    TorchRay's code (its documentation says "at most").

    Args:
        maps: (N, h, w).
        objects: N, on grids of the photos' own sizes if 15 pixels are to mean what they do in TorchRay.
        tolerance: in pixels of that grid; 0 asks for a pixel of the object itself.

    Returns:
        (N,) of 0 and 1; NaN for a flat or non-finite map, and where all objects are ``difficult``.

    Raises:
        InvalidInputError: not one :class:`Objects` a map.

    Source: Zhang et al., "Top-down Neural Attention by Excitation Backprop", 2016, section 4.1; TorchRay.
    """

    def hit(map_: Tensor, present: Objects) -> float:
        if bool(present.difficult.all()):
            return math.nan
        row, column = divmod(int(map_.argmax()), map_.shape[1])
        rows, columns = present.mask.nonzero(as_tuple=True)
        nearest = int(((rows - row) ** 2 + (columns - column) ** 2).min())
        return float(nearest < tolerance**2 or nearest == 0)

    return each_map(maps, objects, hit)


def peak_inside(maps: Tensor, objects: Sequence[Objects]) -> Tensor:
    """The pointing game without tolerance: 1 where the map's largest value lies inside an object."""
    return pointing_game(maps, objects, tolerance=0)


def difficult_pointing_game(
    maps: Tensor, objects: Sequence[Objects], others: Sequence[Objects | None], tolerance: float = TOLERANCE
) -> Tensor:
    """The pointing game where it is hard: small objects of the class, and others to mistake them for.

    A trial counts if the class's objects cover less than a quarter of the photo and another class is
    present; the rest is NaN.

    Source: Zhang et al., 2016, section 4.1 (the "difficult" set); TorchRay ships that set as lists.
    """
    values = pointing_game(maps, objects, tolerance)
    partners = paired(objects, others)
    hard = [o.mask.float().mean() < 0.25 and other is not None for o, other in zip(objects, partners, strict=True)]
    return values.masked_fill(~torch.tensor(hard, dtype=torch.bool), math.nan)


def energy_inside(maps: Tensor, objects: Sequence[Objects]) -> Tensor:
    """Share of the map's positive values that lies inside the objects.

    Compare it with the objects' share of the area, which is what a uniform map reaches.

    Returns:
        (N,) in [0, 1]; NaN for a non-finite map and one without positive values.

    Source: energy-based pointing game, Wang et al., "Score-CAM", 2020, section 4.3; negative values count as 0.
    """

    def share(map_: Tensor, present: Objects) -> float:
        positive = map_.clamp_min(0)
        total = float(positive.sum())
        return float((positive * present.mask).sum()) / total if total > 0 else math.nan

    return each_map(maps, objects, share, flat_is_fine=True)


def relevance_rank_accuracy(maps: Tensor, objects: Sequence[Objects]) -> Tensor:
    """Share of the K largest values that lies inside the objects, K being the objects' number of pixels.

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
    """Largest intersection over union of the objects' pixels with {map >= t}, over every threshold t.

    Returns (N,) in [0, 1]; NaN for a flat or non-finite map. The threshold is chosen by the answer: an upper bound.
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
    maps: Tensor,
    objects: Sequence[Objects],
    score: Callable[[Tensor, Objects], float],
    *,
    flat_is_fine: bool = False,
) -> Tensor:
    """Score each map on its objects' grid, in order; NaN for non-finite ones and, unless they are fine, flat ones."""
    if maps.dim() != 3 or len(maps) != len(objects):
        raise InvalidInputError(f"expected N maps (N, h, w) and N Objects, got {tuple(maps.shape)} and {len(objects)}")
    values = []
    for map_, present, flaw in zip(maps.detach().cpu(), objects, flaws(maps), strict=True):
        if flaw == "not finite" or (flaw and not flat_is_fine):
            values.append(math.nan)
        else:
            values.append(score(upsample(map_[None], present.size)[0], present))
    return torch.tensor(values)


def paired(objects: Sequence[Objects], others: Sequence[Objects | None]) -> Sequence[Objects | None]:
    """Return ``others`` if there is one for each of ``objects``.

    Raises:
        InvalidInputError: their numbers differ.
    """
    if len(objects) != len(others):
        raise InvalidInputError(f"got {len(objects)} Objects but {len(others)} of other classes; use None for none")
    return others


def add_share(
    name: str, protocol: str, function: Callable[..., Tensor | Scores], definition: str, source: str, **rest: Any
) -> None:
    """Register a metric of maps and annotated objects with values in [0, 1], by class and higher better unless told."""
    facts: dict[str, Any] = {
        "needs": Needs.OBJECTS,
        "subject": Subject.CLASSES,
        "higher_is_better": True,
        "range": (0.0, 1.0),
        "units": "share",
        "flat_counts_as": 0.0,
    }
    register(Metric(name, protocol, function, definition=definition, source=source, **(facts | rest)))


add_share(
    "pointing-game",
    "torchray-15px",
    pointing_game,
    "The map's largest value, at the photo's own size, lies less than 15 pixels from an object of the class (outlines "
    "where annotated, else boxes). A class whose objects are all difficult is left out. Mean over photos; TorchRay's "
    "accuracy is the mean over classes, which stands in the per-class table.",
    "Zhang et al., 2016; TorchRay 2019",
    at_photo_size=True,
    units="share of trials",
)
add_share(
    "pointing-game-difficult",
    "torchray-15px",
    difficult_pointing_game,
    "As pointing-game, only where the class covers less than a quarter of the photo and another class is present.",
    "Zhang et al., 2016, by its rule; TorchRay ships lists",
    needs=Needs.CLASS_OBJECTS,
    at_photo_size=True,
    units="share of trials",
)
add_share(
    "peak-inside",
    "xai-abn",
    peak_inside,
    "The largest value of the top-1 class's map, at the network's input size, lies inside any annotated object.",
    "this project",
    subject=Subject.PREDICTION,
    units="share of photos",
)
add_share(
    "energy-pointing-game",
    "score-cam-2020",
    energy_inside,
    "Share of the map's positive values inside the objects of the class, at the network's input size.",
    "Wang et al., Score-CAM, 2020",
    flat_counts_as=None,
)
add_share(
    "relevance-rank-accuracy",
    "clevr-xai",
    relevance_rank_accuracy,
    "Share of the K top pixels inside the objects of the class, K being their number of pixels.",
    "Arras et al., CLEVR-XAI, 2022",
)
add_share(
    "best-iou",
    "xai-abn",
    best_iou,
    "Largest IoU of the objects' pixels with the thresholded map over all thresholds: an upper bound.",
    "this project",
)
