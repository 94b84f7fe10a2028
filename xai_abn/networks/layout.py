"""Where the positions are in a layer's output: channels first, channels last, or tokens on a patch grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Class, distillation and register tokens in front of the patches: at most so many are looked for.
MOST_PREFIX_TOKENS = 16


@dataclass(frozen=True)
class Layout:
    """How to read a layer's output as maps (N, C, h, w).

    Attributes:
        kind: ``"channels-first"`` (N, C, h, w), ``"channels-last"`` (N, h, w, C) or ``"tokens"`` (N, prefix + h w, C).
        grid: (h, w).
        prefix: number of tokens before the patches, such as a class token.
    """

    kind: str
    grid: tuple[int, int]
    prefix: int = 0

    def to_maps(self, values: Tensor) -> Tensor:
        """Return values (..., as the layer gives them) as (..., C, h, w); leading axes stay."""
        if self.kind == "channels-last":
            return values.movedim(-1, -3)
        if self.kind == "tokens":
            result: Tensor = values[..., self.prefix :, :].transpose(-1, -2).unflatten(-1, self.grid)
            return result
        return values

    def from_maps(self, maps: Tensor, like: Tensor) -> Tensor:
        """Return maps (B, C, h, w) as the layer gives them; tokens in front are taken from ``like`` (1, ...)."""
        if self.kind == "channels-last":
            return maps.movedim(-3, -1)
        if self.kind == "tokens":
            front = like[:, : self.prefix].expand(len(maps), -1, -1)
            return torch.cat([front, maps.flatten(2).transpose(1, 2)], dim=1)
        return maps


def layout_of(shape: tuple[int, ...], size: tuple[int, int], prefix: int | None = None) -> Layout | None:
    """Return the layout of a layer's output, or None if it has no positions of an image of ``size``.

    A grid has positions in the proportions of the image. (N, a, b, c) is read as channels last only where (a, b) has
    them and (b, c) has not. Tokens are patches of such a grid after ``prefix`` other tokens, or after as few as fit.

    Args:
        shape: of the output, with the batch first.
        size: (H, W) of the network's input.
        prefix: number of tokens that are not patches, if known.
    """
    if len(shape) == 4:
        last = _in_proportion(shape[1], shape[2], size) and not _in_proportion(shape[2], shape[3], size)
        return Layout("channels-last", shape[1:3]) if last else Layout("channels-first", shape[2:4])
    if len(shape) != 3:
        return None
    for front in range(MOST_PREFIX_TOKENS + 1) if prefix is None else (prefix,):
        patches = shape[1] - front
        rows = round((max(patches, 0) * size[0] / size[1]) ** 0.5)
        if rows and patches > 1 and patches % rows == 0 and _in_proportion(rows, patches // rows, size):
            return Layout("tokens", (rows, patches // rows), front)
    return None


def _in_proportion(rows: int, columns: int, size: tuple[int, int]) -> bool:
    """Return whether (rows, columns) could be ``size`` divided by one stride, up to rounding."""
    return abs(rows * size[1] - columns * size[0]) < max(size)
