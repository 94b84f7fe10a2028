"""Photos with several objects: how many does a map find, and does it keep their classes apart?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from xai_abn.errors import InvalidInputError
from xai_abn.metrics.base import Needs, Subject
from xai_abn.metrics.localisation import add_share, each_map, paired
from xai_abn.metrics.objects import Objects


def object_recall(maps: Tensor, objects: Sequence[Objects], share: float = 0.2) -> Tensor:
    """Share of the single objects that hold at least one of the map's top pixels.

    Exactly ``round(share * H * W)`` pixels count as top, equal values in reading order. A map of scattered
    specks touches many objects: compare with random maps of the same resolution, not only with methods.

    Args:
        maps: (N, h, w).
        objects: N; annotations of crowds (``single`` False) are left out.
        share: of the pixels, in (0, 1).

    Returns:
        (N,) in [0, 1]; NaN for a flat or non-finite map and for a photo of crowds alone.

    Raises:
        InvalidInputError: an impossible share, or not one :class:`Objects` a map.
    """
    if not 0 < share < 1:
        raise InvalidInputError(f"share must lie in (0, 1), got {share}")

    def recall(map_: Tensor, present: Objects) -> float:
        masks = present.masks[present.single]
        return float((masks & _top(map_, share)).flatten(1).any(dim=1).float().mean()) if len(masks) else math.nan

    return each_map(maps, objects, recall)


def all_objects_found(maps: Tensor, objects: Sequence[Objects], share: float = 0.2) -> Tensor:
    """1 where :func:`object_recall` is 1: every single object holds a top pixel; else 0. NaN as there."""
    recall = object_recall(maps, objects, share)
    return torch.where(recall.isnan(), recall, (recall == 1).float())


def energy_confusion(maps: Tensor, objects: Sequence[Objects], others: Sequence[Objects | None]) -> Tensor:
    """Of the map's positive values on annotated objects, the share on objects of *other* classes only.

    Does the map of "dog" light up the bicycle? Pixels of both belong to the class's own. A map that knows no
    classes gets what the areas give. Lower is better.

    Args:
        maps: (N, h, w) maps of one class each.
        objects: N, of that class.
        others: N, of the other classes present, or None.

    Returns:
        (N,) in [0, 1]; NaN without another class, without positive values on any object, or for a non-finite map.
    """

    def share(map_: Tensor, own: Objects, other: Objects | None) -> float:
        if other is None:
            return math.nan
        if other.size != own.size:
            raise InvalidInputError(f"a class's objects and the others' are on grids of {own.size} and {other.size}")
        positive = map_.clamp_min(0)
        inside = float(positive[own.mask].sum())
        wrong = float(positive[other.mask & ~own.mask].sum())
        return wrong / (inside + wrong) if inside + wrong > 0 else math.nan

    if len(paired(objects, others)) != len(maps):
        raise InvalidInputError(f"got {len(maps)} maps for {len(objects)} Objects")
    found = [
        each_map(maps[n : n + 1], objects[n : n + 1], partial(share, other=others[n]), flat_is_fine=True)
        for n in range(len(maps))
    ]
    return torch.cat(found) if found else torch.zeros(0)


def grid_pointing(maps: Tensor, cells: Sequence[Objects]) -> Tensor:
    """Share of the map's positive values in the cells of its class, on a grid of single-class photos.

    Chance is the cells' share of the grid. A map whose positive values sum to at most 1e-7 scores 0, as published.

    Args:
        maps: (N, h, w) maps of one class each.
        cells: N, the grid's cells that show that class.

    Returns:
        (N,) in [0, 1]; NaN for a non-finite map.

    Source: Boehle et al., "Convolutional Dynamic Alignment Networks", CVPR 2021, section 4.2.
    """

    def share(map_: Tensor, present: Objects) -> float:
        positive = map_.clamp_min(0)
        total = float(positive.sum())
        return float((positive * present.mask).sum()) / total if total > 1e-7 else 0.0

    return each_map(maps, cells, share, flat_is_fine=True)


def _top(map_: Tensor, share: float) -> Tensor:
    """Return the top pixels of a map (H, W) as a mask."""
    order = map_.flatten().argsort(descending=True, stable=True)
    top = torch.zeros(map_.numel(), dtype=torch.bool)
    top[order[: round(share * map_.numel())]] = True
    return top.view(map_.shape)


add_share(
    "object-recall",
    "top-20%",
    object_recall,
    "Share of the annotated objects, of any class, that hold one of the top 20 % of pixels of the top-1 class's "
    "map (or of a class-agnostic map). Crowds are left out. Rewards scatter: read it beside random maps and "
    "peak-inside.",
    "this project",
    subject=Subject.PREDICTION,
)
add_share(
    "all-objects-found",
    "top-20%",
    all_objects_found,
    "Share of photos whose object-recall is 1.",
    "this project",
    subject=Subject.PREDICTION,
)
add_share(
    "energy-confusion",
    "xai-abn",
    energy_confusion,
    "Of a class map's positive values on annotated objects, the share on objects of other classes only.",
    "this project",
    needs=Needs.CLASS_OBJECTS,
    higher_is_better=False,
    flat_counts_as=None,
)
add_share(
    "grid-pointing",
    "gridpg-2021",
    grid_pointing,
    "On grids of single-class photos: share of a class map's positive values in the class's own cells.",
    "Boehle et al., CVPR 2021",
    flat_counts_as=None,
)
