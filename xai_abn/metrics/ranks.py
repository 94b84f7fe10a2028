"""The order in which pixels go or come, and how many at each step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from xai_abn.errors import InvalidInputError


def stable_ranks(maps: Tensor) -> Tensor:
    """Largest first; equal values in reading order. (M, H, W) to (M, H * W)."""
    return _positions(maps.flatten(1).argsort(dim=1, descending=True, stable=True))


def reversed_ranks(maps: Tensor) -> Tensor:
    """Largest first; equal values in reversed reading order, as flipping an ascending argsort gives."""
    return _positions(maps.flatten(1).argsort(dim=1, stable=True).flip(1))


def scattered_ranks(maps: Tensor, seed: int = 0) -> Tensor:
    """Largest first; equal values in one fixed random order, so that a plateau is not eaten from its upper left."""
    flat = maps.flatten(1)
    generator = torch.Generator().manual_seed(seed)
    shuffle = torch.randperm(flat.shape[1], generator=generator).to(flat.device)
    return _positions(shuffle[flat[:, shuffle].argsort(dim=1, descending=True, stable=True)])


def patch_ranks(maps: Tensor, patch: int) -> Tensor:
    """Rank patches by their largest value; a pixel's rank is the number of patches above its own."""
    height, width = maps.shape[1:]
    if height % patch or width % patch:
        raise InvalidInputError(f"the sides of {height}x{width} pixels must be multiples of the patch, {patch}")
    largest = F.max_pool2d(maps[:, None], patch)[:, 0]
    ordered = (-largest).flatten(1).contiguous().sort(dim=1).values
    above = torch.searchsorted(ordered, (-largest).flatten(1).contiguous())
    grid = above.view(largest.shape)
    return grid.repeat_interleave(patch, 1).repeat_interleave(patch, 2).flatten(1)


def _positions(order: Tensor) -> Tensor:
    places = torch.arange(order.shape[1], device=order.device, dtype=torch.int32).expand_as(order)
    return torch.empty_like(places, memory_format=torch.contiguous_format).scatter_(1, order, places)


def every(step: int) -> Callable[[int, int], list[int]]:
    """Counts 0, step, 2 step, ... and all pixels."""
    return lambda height, width: [*range(0, height * width, step), height * width]


def at_most(steps: int) -> Callable[[int, int], list[int]]:
    """Counts of at most ``steps`` equal steps, the last one shorter, as torchcam takes them."""
    return lambda height, width: every(math.ceil(height * width / steps))(height, width)


def equal(steps: int) -> Callable[[int, int], list[int]]:
    """Counts of exactly ``steps`` steps, equal to within a pixel."""
    return lambda height, width: [round(i * height * width / steps) for i in range(steps + 1)]
