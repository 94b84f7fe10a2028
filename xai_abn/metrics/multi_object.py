"""Images with several objects: how many a map finds, and whether it keeps their classes apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from xai_abn.errors import InvalidInputError
from xai_abn.metrics.base import Subject
from xai_abn.metrics.localization import check_same_number, each_map, register_localization
from xai_abn.metrics.objects import Objects


def object_recall(maps: Tensor, objects: Sequence[Objects], share: float = 0.2) -> Tensor:
    """Return the share of the single objects that contain at least one of the map's top pixels.

    Exactly ``round(share * H * W)`` pixels count as top, equal values in reading order. A map of scattered specks
    touches many objects: compare with random maps of the same resolution, not only with other methods.

    Args:
        maps: (N, h, w).
        objects: N; annotations of crowds (``single`` False) are left out.
        share: of the pixels, in (0, 1).

    Returns:
        (N,) in [0, 1]; NaN for a flat or non-finite map and for an image with crowds only.

    Raises:
        InvalidInputError: an impossible share, or the numbers of maps and objects differ.
    """
    if not 0 < share < 1:
        raise InvalidInputError(f"share must be in (0, 1), got {share}")

    def recall(map_: Tensor, present: Objects) -> float:
        masks = present.masks[present.single]
        return float((masks & _top(map_, share)).flatten(1).any(dim=1).float().mean()) if len(masks) else math.nan

    return each_map(maps, objects, recall)


def all_objects_found(maps: Tensor, objects: Sequence[Objects], share: float = 0.2) -> Tensor:
    """Return 1 where :func:`object_recall` is 1, because every single object contains a top pixel; else 0 or NaN."""
    recall = object_recall(maps, objects, share)
    return torch.where(recall.isnan(), recall, (recall == 1).float())


def energy_confusion(maps: Tensor, objects: Sequence[Objects], others: Sequence[Objects | None]) -> Tensor:
    """Return the share of the map's positive values on annotated objects that is on *other* classes only.

    Does the map of "dog" mark the bicycle? Pixels of both belong to the dog. A map that does not depend on the class
    gets the share of the areas. Lower is better.

    Args:
        maps: (N, h, w), each of one class.
        objects: N, of that class.
        others: N, of the other classes present, or None.

    Returns:
        (N,) in [0, 1]; NaN without another class, without positive values on any object, or for a non-finite map.

    Raises:
        InvalidInputError: the numbers of maps, objects and others differ, or their grids do.
    """

    def share(map_: Tensor, own: Objects, other: Objects | None) -> float:
        if other is None:
            return math.nan
        if other.size != own.size:
            raise InvalidInputError(
                f"expected the objects of all classes on one grid, got grids of {own.size} and {other.size}"
            )
        positive = map_.clamp_min(0)
        inside = float(positive[own.mask].sum())
        wrong = float(positive[other.mask & ~own.mask].sum())
        return wrong / (inside + wrong) if inside + wrong > 0 else math.nan

    check_same_number(objects, others)
    if len(objects) != len(maps):
        raise InvalidInputError(f"expected one Objects per map, got {len(objects)} for {len(maps)} maps")
    values = [
        each_map(maps[n : n + 1], objects[n : n + 1], partial(share, other=others[n]), score_flat=True)
        for n in range(len(maps))
    ]
    return torch.cat(values) if values else torch.zeros(0)


def grid_pointing(maps: Tensor, objects: Sequence[Objects]) -> Tensor:
    """Return the share of the map's positive values in the cells of its class, on a grid of single-class images.

    Chance is the cells' share of the grid. A map whose positive values sum to at most 1e-7 scores 0, as published.

    Args:
        maps: (N, h, w), each of one class.
        objects: N, the grid's cells that show that class.

    Returns:
        (N,) in [0, 1]; NaN for a non-finite map.

    Source: Boehle et al., "Convolutional Dynamic Alignment Networks", CVPR 2021, section 4.2.
    """

    def share(map_: Tensor, present: Objects) -> float:
        positive = map_.clamp_min(0)
        total = float(positive.sum())
        return float((positive * present.mask).sum()) / total if total > 1e-7 else 0.0

    return each_map(maps, objects, share, score_flat=True)


def _top(map_: Tensor, share: float) -> Tensor:
    """Return the top pixels of a map (H, W) as a mask."""
    order = map_.flatten().argsort(descending=True, stable=True)
    top = torch.zeros(map_.numel(), dtype=torch.bool)
    top[order[: round(share * map_.numel())]] = True
    return top.view(map_.shape)


def _has_single_object(own: Objects, others: Objects | None) -> bool:
    return bool(own.single.any())


register_localization(
    "object-recall",
    "top-20%",
    object_recall,
    "Share of the annotated objects, of any class, that contain one of the top 20 % of pixels of the top-1 class's "
    "map (or of a map without class). Crowds are left out. Scattered maps score well: compare with random maps and "
    "peak-inside.",
    "this project",
    subject=Subject.PREDICTION,
    applies=_has_single_object,
)
register_localization(
    "all-objects-found",
    "top-20%",
    all_objects_found,
    "Share of images whose object-recall is 1.",
    "this project",
    subject=Subject.PREDICTION,
    applies=_has_single_object,
)
register_localization(
    "energy-confusion",
    "xai-abn",
    energy_confusion,
    "Of a class map's positive values on annotated objects, the share on objects of other classes only.",
    "this project",
    applies=lambda own, others: others is not None,
    higher_is_better=False,
    flat_counts_as=None,
)
register_localization(
    "grid-pointing",
    "gridpg-2021",
    grid_pointing,
    "On grids of single-class images: share of a class map's positive values in the class's own cells.",
    "Boehle et al., CVPR 2021",
    flat_counts_as=None,
)
