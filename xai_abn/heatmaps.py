"""What every metric does first with a map: find out whether it means anything, and bring it to a size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from xai_abn.errors import InvalidInputError
from xai_abn.explanation import FLAT_TOLERANCE


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps (N, h, w) to (N, H, W), bilinear with half-pixel centres; maps of that size stay as they are."""
    if tuple(maps.shape[1:]) == tuple(size):
        return maps.float()
    return F.interpolate(maps[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0]


def flaws(maps: Tensor) -> list[str | None]:
    """Say of each map (N, h, w) why it means nothing: ``"not finite"``, ``"flat"``, or None if it is usable.

    Flat means that its values differ by no more than a millionth of its largest magnitude.
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
