"""Heatmaps: flaws, scaling and resizing of maps, as numpy arrays or torch tensors."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from xai_abn.errors import InvalidInputError, UnusableMapError

#: A map whose values differ by no more than this share of its largest magnitude counts as flat.
FLAT_TOLERANCE = 1e-6
#: Percentile from which the values of a fine map are clipped when it is drawn.
CLIPPED = 99


def flaw_of(map_: np.ndarray) -> str | None:
    """Return why a map (h, w) means nothing, ``"not finite"`` or ``"flat"``, or None if it is usable."""
    if not np.isfinite(map_).all():
        return "not finite"
    low, high = float(map_.min()), float(map_.max())
    return "flat" if high - low <= FLAT_TOLERANCE * max(abs(low), abs(high)) else None


def heatmap_of(map_: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a map (h, w) resized to (height, width) and scaled to [0, 1], float32.

    Bilinear interpolation with half-pixel centers (``align_corners=False``); then the smallest value becomes 0 and the
    largest 1.

    Raises:
        UnusableMapError: the map is flat or not finite, or flat at this size.
    """
    flaw = flaw_of(map_)
    if flaw:
        raise UnusableMapError(f"the map is {flaw}: nothing to show")
    height, width = size
    resized = np.asarray(cv2.resize(map_, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
    low, high = float(np.min(resized)), float(np.max(resized))
    if high <= low:
        raise UnusableMapError(f"the map is flat at {height}x{width} pixels; ask for a larger size")
    return (resized - low) / (high - low)


def boxes_of(mask: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Return the boxes of the connected parts of a mask (H, W) bool, the part with most pixels first.

    Returns:
        (left, top, right, bottom), right and bottom exclusive. Pixels that touch at a corner are connected.
    """
    number, _, found, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    parts = sorted(found[1:number].tolist(), key=lambda part: -part[4])
    return [(left, top, left + width, top + height) for left, top, width, height, _ in parts]


@dataclass(frozen=True, eq=False)
class DisplayScale:
    """A map as it is drawn.

    Attributes:
        values: (H, W) float32: in [0, 1], or for a map with negative values in [-1, 1].
        low: what the smallest of these stands for, in the units of the map.
        high: what 1 stands for.
        signed: whether the map has negative values.
    """

    values: np.ndarray
    low: float
    high: float
    signed: bool


def display_scale(map_: np.ndarray, size: tuple[int, int]) -> DisplayScale:
    """Return a map (h, w) without a flaw as it is drawn on an image of (height, width).

    From its smallest to its largest value; a map with negative values from minus to plus its largest magnitude, so that
    0 is in the middle. In a map as fine as the input, the largest hundredth of the values is clipped, as captum does:
    otherwise single pixels would leave the rest in one color.
    """
    resized = np.asarray(cv2.resize(map_, size[::-1], interpolation=cv2.INTER_LINEAR), np.float32)
    fine = map_.shape[0] * 2 >= size[0]
    if float(map_.min()) < 0:
        limit = float(np.percentile(np.abs(resized), CLIPPED) if fine else np.abs(resized).max())
        limit = limit or float(np.abs(resized).max())
        return DisplayScale(np.clip(resized / limit, -1, 1), -limit, limit, True)
    low, high = float(resized.min()), float(np.percentile(resized, CLIPPED) if fine else resized.max())
    high = high if high > low else float(resized.max())
    return DisplayScale(np.clip((resized - low) / max(high - low, 1e-30), 0, 1), low, high, False)


def at_least_float32(values: Tensor) -> Tensor:
    """Return values of half precision as float32, others as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps (N, h, w) to (N, H, W), bilinear with half-pixel centers; maps of that size stay as they are."""
    if tuple(maps.shape[1:]) == tuple(size):
        return at_least_float32(maps)
    return F.interpolate(at_least_float32(maps)[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def flaws(maps: Tensor) -> list[str | None]:
    """Return for each map (N, h, w) why it means nothing, as :func:`flaw_of` does for one.

    Raises:
        InvalidInputError: the maps have another number of dimensions.
    """
    if maps.dim() != 3:
        raise InvalidInputError(f"expected maps (N, h, w), got shape {tuple(maps.shape)}")
    flat = maps.detach().float().flatten(1)
    finite = torch.isfinite(flat).all(dim=1)
    low, high = flat.amin(dim=1), flat.amax(dim=1)
    even = high - low <= FLAT_TOLERANCE * torch.maximum(low.abs(), high.abs())
    return [
        "not finite" if not good else "flat" if same else None
        for good, same in zip(finite.tolist(), even.tolist(), strict=True)
    ]


def usable(maps: Tensor) -> Tensor:
    """Return (N,) bool: which maps have no flaw."""
    return torch.tensor([f is None for f in flaws(maps)], dtype=torch.bool, device=maps.device)


def unit_range(maps: Tensor) -> Tensor:
    """Return maps (..., h, w) scaled to [0, 1], each by its own smallest and largest value; a flat one becomes 0."""
    low, high = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    return (maps - low) / torch.where(high > low, high - low, 1.0)
