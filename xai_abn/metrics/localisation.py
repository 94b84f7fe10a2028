"""Does a map point at the annotated objects?

Boxes are (left, top, right, bottom) in pixels of the map, right and bottom exclusive after rounding to
the nearest pixel; a box covers at least one pixel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from xai_abn.errors import InvalidInputError


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps (N, h, w) to (N, H, W), bilinear with half-pixel centres."""
    return F.interpolate(maps[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0]


def energy_inside(map_: Tensor, boxes: Tensor) -> float:
    """Share of the map's positive values that lies inside the union of the boxes.

    Compare it with the boxes' share of the picture's area, which is what a uniform map reaches.

    Args:
        map_: (H, W), finite; negative values count as 0.
        boxes: (B, 4), B >= 1.

    Returns:
        The share in [0, 1]; NaN for a map without positive values.

    Raises:
        InvalidInputError: wrong shapes, or a map that is not finite.

    Source: energy-based pointing game, Wang et al., "Score-CAM", 2020, section 4.3.
    """
    inside = box_mask(boxes, _checked(map_))
    positive = map_.clamp_min(0)
    return float((positive * inside).sum() / positive.sum()) if positive.sum() > 0 else float("nan")


def peak_inside(map_: Tensor, boxes: Tensor) -> float:
    """1.0 if the map's largest value lies inside a box, else 0.0; NaN for a constant map, which points nowhere.

    Of equal largest values the first in reading order counts. No tolerance around the boxes.

    Args:
        map_: (H, W), finite.
        boxes: (B, 4), B >= 1.

    Raises:
        InvalidInputError: wrong shapes, or a map that is not finite.

    Source: pointing game, Zhang et al., "Top-down Neural Attention by Excitation Backprop", 2016,
    with boxes and without its 15-pixel tolerance.
    """
    inside = box_mask(boxes, _checked(map_))
    if map_.max() == map_.min():
        return float("nan")
    return float(inside.flatten()[map_.argmax()])


def object_recall(map_: Tensor, boxes: Tensor, share: float = 0.2) -> float:
    """Share of the boxes that hold at least one of the map's top pixels.

    Exactly ``round(share * H * W)`` pixels count as top, in stable order of value. A map of scattered
    specks touches many boxes: compare with a random map of the same resolution, not only with methods.

    Args:
        map_: (H, W), finite.
        boxes: (B, 4), B >= 1, one an object.
        share: of the pixels, in (0, 1).

    Returns:
        The share of boxes in [0, 1]; NaN for a constant map, which has no top.

    Raises:
        InvalidInputError: wrong shapes or share, or a map that is not finite.
    """
    _checked(map_)
    objects = [box_mask(box[None], map_) for box in _checked_boxes(boxes)]
    if not 0 < share < 1:
        raise InvalidInputError(f"share must lie in (0, 1), got {share}")
    if map_.max() == map_.min():
        return float("nan")
    order = map_.flatten().argsort(descending=True, stable=True)
    top = torch.zeros(map_.numel(), dtype=torch.bool)
    top[order[: round(share * map_.numel())]] = True
    top = top.view(map_.shape)
    return sum(bool((mask & top).any()) for mask in objects) / len(objects)


def box_mask(boxes: Tensor, like: Tensor) -> Tensor:
    """Return the union of the boxes as a bool mask shaped as ``like`` (H, W).

    Raises:
        InvalidInputError: no boxes, or not four numbers a box.
    """
    _checked_boxes(boxes)
    height, width = like.shape
    mask = torch.zeros(height, width, dtype=torch.bool)
    for left, top, right, bottom in boxes.round().long().tolist():
        left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
        mask[top : max(bottom, top + 1), left : max(right, left + 1)] = True
    return mask


def _checked(map_: Tensor) -> Tensor:
    if map_.dim() != 2 or not bool(torch.isfinite(map_).all()):
        raise InvalidInputError(f"expected one finite map (H, W), got shape {tuple(map_.shape)}")
    return map_


def _checked_boxes(boxes: Tensor) -> Tensor:
    if boxes.dim() != 2 or boxes.shape[1] != 4 or len(boxes) == 0:
        raise InvalidInputError(f"boxes must have shape (B, 4) with B >= 1, got {tuple(boxes.shape)}")
    return boxes
