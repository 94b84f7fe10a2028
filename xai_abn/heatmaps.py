"""Heatmaps: flaws, scaling and resizing of maps, as numpy arrays or torch tensors.

A map of an image is (h, w), a map of a volume or clip (d, h, w).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    """Return why a map means nothing, ``"not finite"`` or ``"flat"``, or None if it is usable."""
    if not np.isfinite(map_).all():
        return "not finite"
    low, high = float(map_.min()), float(map_.max())
    return "flat" if high - low <= FLAT_TOLERANCE * max(abs(low), abs(high)) else None


def heatmap_of(map_: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return a map resized to (height, width), or (depth, height, width), and scaled to [0, 1], float32.

    After resizing, see :func:`resized`, the smallest value becomes 0 and the largest 1.

    Raises:
        UnusableMapError: the map is flat or not finite, or flat at this size.
    """
    flaw = flaw_of(map_)
    if flaw:
        raise UnusableMapError(f"the map is {flaw}: nothing to show")
    values = resized(map_, size)
    low, high = float(np.min(values)), float(np.max(values))
    if high <= low:
        raise UnusableMapError(f"the map is flat at {'x'.join(map(str, size))} pixels; ask for a larger size")
    return (values - low) / (high - low)


def resized(map_: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return a map resized to a size of as many axes, float32: linear with half-pixel centers in every axis."""
    if map_.ndim == 3:
        return upsample(torch.from_numpy(np.array(map_)[None]), size)[0].numpy()
    return np.asarray(cv2.resize(map_, size[::-1], interpolation=cv2.INTER_LINEAR), np.float32)


def positive_part(map_: np.ndarray) -> np.ndarray:
    """Return what of a map counts as evidence: a map with negative values from 0 up, others as they are."""
    return np.maximum(map_, 0) if float(map_.min()) < 0 else map_


def boxes_of(mask: np.ndarray) -> list[tuple[int, ...]]:
    """Return the boxes of the connected parts of a mask (H, W) or (D, H, W) bool, the part with most pixels first.

    Returns:
        (left, top, right, bottom), right and bottom exclusive; of a volume (left, top, first, right, bottom, last),
        where first and last are slices and last is exclusive. Pixels that touch at a corner are connected.
    """
    if mask.ndim == 3:
        from scipy import ndimage

        labels, number = ndimage.label(mask, np.ones((3, 3, 3)))
        sizes = np.bincount(labels.ravel(), minlength=number + 1)[1:]
        slices = [ndimage.find_objects(labels)[k] for k in np.argsort(-sizes, kind="stable")]
        return [(*(s.start for s in part[::-1]), *(s.stop for s in part[::-1])) for part in slices]
    return [box for box, _ in parts_of(mask)]


def parts_of(mask: np.ndarray) -> Iterator[tuple[tuple[int, int, int, int], np.ndarray]]:
    """Yield the connected parts of a mask (H, W) bool, each with its box as :func:`boxes_of` and where it is."""
    number, labels, found, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    for part in sorted(range(1, number), key=lambda part: -found[part, cv2.CC_STAT_AREA]):
        left, top, width, height, _ = found[part].tolist()
        yield (left, top, left + width, top + height), labels == part


@dataclass(frozen=True, eq=False)
class DisplayScale:
    """A map as it is drawn.

    Attributes:
        values: (H, W) or (D, H, W) float32: in [0, 1], or if signed in [-1, 1].
        low: what the smallest of these stands for, in the units of the map.
        high: what 1 stands for.
    """

    values: np.ndarray
    low: float
    high: float

    @property
    def signed(self) -> bool:
        """Whether there are negative values."""
        return self.low < 0


def display_scale(map_: np.ndarray, size: tuple[int, ...], limits: tuple[float, float] | None = None) -> DisplayScale:
    """Return a map without a flaw as it is drawn on an image of (height, width), or a volume of (depth, height, width).

    From its smallest to its largest value; a map with negative values from minus to plus its largest magnitude, so that
    0 is in the middle. In a map as fine as the input, the largest hundredth of the values is clipped, as captum does:
    otherwise single pixels would leave the rest in one color.

    Args:
        map_: the map.
        size: of the image.
        limits: the smallest and the largest value, where maps are drawn on one scale; default: those of the map.
    """
    values = resized(map_, size)
    low, high = limits or _limits(values, float(map_.min()) < 0, map_.shape[-2] * 2 >= size[-2])
    if low < 0:
        limit = max(-low, high)
        return DisplayScale(np.clip(values / limit, -1, 1), -limit, limit)
    return DisplayScale(np.clip((values - low) / max(high - low, 1e-30), 0, 1), low, high)


def _limits(values: np.ndarray, signed: bool, fine: bool) -> tuple[float, float]:
    if signed:
        limit = float(np.percentile(np.abs(values), CLIPPED) if fine else np.abs(values).max())
        limit = limit or float(np.abs(values).max())
        return -limit, limit
    low, high = float(values.min()), float(np.percentile(values, CLIPPED) if fine else values.max())
    return low, high if high > low else float(values.max())


def at_least_float32(values: Tensor) -> Tensor:
    """Return values of half precision as float32, others as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps (N, h, w) to (N, H, W), or (N, d, h, w) to (N, D, H, W); maps of that size stay as they are.

    Linear in every axis, with half-pixel centers (``align_corners=False``).

    Raises:
        InvalidInputError: the maps have another number of axes than the size.
    """
    if maps.dim() != len(size) + 1:
        raise InvalidInputError(
            f"expected maps with {len(size)} axes to resize to {tuple(size)}, got {tuple(maps.shape)}"
        )
    if tuple(maps.shape[1:]) == tuple(size):
        return at_least_float32(maps)
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return F.interpolate(at_least_float32(maps)[:, None], tuple(size), mode=mode, align_corners=False)[:, 0]


def flaws(maps: Tensor) -> list[str | None]:
    """Return for each map (N, h, w) or (N, d, h, w) why it means nothing, as :func:`flaw_of` does for one.

    Raises:
        InvalidInputError: the maps have another number of dimensions.
    """
    if maps.dim() not in (3, 4):
        raise InvalidInputError(f"expected maps (N, h, w) or (N, d, h, w), got shape {tuple(maps.shape)}")
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
    """Return maps (N, ...) scaled to [0, 1], each by its own smallest and largest value; a flat one becomes 0."""
    axes = tuple(range(1, maps.dim()))
    low, high = maps.amin(dim=axes, keepdim=True), maps.amax(dim=axes, keepdim=True)
    return (maps - low) / torch.where(high > low, high - low, 1.0)
