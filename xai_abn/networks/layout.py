"""Where the positions are in a layer's output: channels first, channels last, or tokens on a patch grid.

Sizes, grids and regions have two axes for images, (h, w), and three for volumes and clips, (d, h, w).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

#: Largest expected number of class, distillation and register tokens beside the patches.
MOST_EXTRA_TOKENS = 16
#: Tokens are patches if those at a changed part of the image change this many times as much as the others.
LOCALITY = 2.5
#: How many times it has to be where only two parts were changed, since fewer may be chance.
CERTAIN_LOCALITY = 10.0
#: Share of the changed parts in each of which they change more. Where some tokens always do, it is a few of the parts.
_MOST_REGIONS = 0.75
#: Standard deviation of the centers of changes, as a share of the map's side, from which on they tell something.
_TELLING = 0.05
#: Number of places below which correlations are chance.
_FEW = 6
#: Correlation of places in map and image that is clear; and a mean distance, as a share of a side, that is.
_CLEAR, _OFFSET = 0.8, 0.15

#: A part of an input: a slice of each of its axes behind the channels.
Part: TypeAlias = tuple[slice, ...]


@dataclass(frozen=True)
class Layout:
    """How to read a layer's output as maps (N, C, h, w), or (N, C, d, h, w) of a volume.

    Attributes:
        kind: ``"channels-first"`` (N, C, h, w), ``"channels-last"`` (N, h, w, C) or ``"tokens"`` (N, T, C).
        grid: (h, w), or (d, h, w).
        prefix: number of tokens before the patches, such as a class token. T may be larger than ``prefix + h w``.
        batch_axis: 1 for tokens (T, N, C), which are the default of ``nn.TransformerEncoder``, else 0. The methods
            expect the batch first, see :meth:`batch_first`.
    """

    kind: str
    grid: tuple[int, ...]
    prefix: int = 0
    batch_axis: int = 0

    @property
    def positions(self) -> int:
        """Number of positions of the grid."""
        return math.prod(self.grid)

    def batch_first(self, values: Tensor) -> Tensor:
        """Return a layer's output with the batch as its first axis; the inverse is the same operation."""
        return values.transpose(0, self.batch_axis)

    def to_maps(self, values: Tensor) -> Tensor:
        """Return values (..., as the layer gives them) as (..., C, h, w); leading axes stay."""
        if self.kind == "channels-last":
            for axis in range(1, len(self.grid) + 1):  # movedim() cannot be exported to ONNX
                values = values.transpose(-axis, -axis - 1)
            return values
        if self.kind == "tokens":
            patches = values[..., self.prefix : self.prefix + self.positions, :]
            result: Tensor = patches.transpose(-1, -2).unflatten(-1, self.grid)
            return result
        return values

    def from_maps(self, maps: Tensor, like: Tensor) -> Tensor:
        """Return maps (B, C, h, w) as the layer gives them; other tokens are those of ``like``, (1 or B, ...)."""
        if self.kind == "channels-last":
            for axis in range(len(self.grid), 0, -1):
                maps = maps.transpose(-axis - 1, -axis)
            return maps
        if self.kind == "tokens":
            other = like if len(like) == len(maps) else like.expand(len(maps), -1, -1)
            patches = maps.flatten(2).transpose(1, 2)
            end = self.prefix + patches.shape[1]
            return torch.cat([other[:, : self.prefix], patches, other[:, end:]], dim=1)
        return maps


def is_ambiguous(shape: Sequence[int], size: tuple[int, ...]) -> bool:
    """Return whether an output (N, a, b, c) could have its positions in (a, b) as well as in (b, c).

    Of a volume, (N, a, b, c, d), it also could where neither fits.
    """
    if len(shape) != len(size) + 2:
        return False
    first, last = _fits(shape[2:], size), _fits(shape[1:-1], size)
    if len(size) == 2:
        return min(shape[1:]) > 1 and first and last
    return min(math.prod(shape[2:]), math.prod(shape[1:-1])) > 1 and first == last


def grid_layout(
    shape: Sequence[int], size: tuple[int, ...], changes: Sequence[tuple[Part, Tensor]] = ()
) -> Layout | None:
    """Return the layout of an output (N, a, b, c), or (N, a, b, c, d) of a volume; None for another number of axes.

    It is read as channels last only where (a, b) fits the image and (b, c) does not; or where both do, and a change of
    a part of the image changes that part of (a, b) more. Two axes fit if they have the proportions of the image. The
    strides of a network of volumes often differ by axis, so three axes fit if none is longer than that of the volume.

    Args:
        shape: of the output, with the batch first.
        size: (H, W) or (D, H, W) of the network's input.
        changes: for some parts of the image, how the output (1, a, b, c) of one image changed with them; looked at
            where both fit.
    """
    if len(shape) != len(size) + 2:
        return None
    first, last = Layout("channels-first", tuple(shape[2:])), Layout("channels-last", tuple(shape[1:-1]))
    if is_ambiguous(shape, size):
        return max(first, last, key=lambda layout: _locality_of_maps(changes, layout, size))
    return last if _fits(last.grid, size) and not _fits(first.grid, size) else first


def _locality_of_maps(changes: Sequence[tuple[Part, Tensor]], layout: Layout, size: tuple[int, ...]) -> float:
    """Return what :func:`_locality` does, of the changes of an output read with a layout."""
    norms = [
        (region, layout.to_maps(change.detach().abs().float())[0].norm(dim=0).flatten()) for region, change in changes
    ]
    return _locality(norms, layout.grid, 0, size)


def token_layout(
    length: int,
    grids: Sequence[tuple[int, ...]],
    size: tuple[int, ...],
    extra: int | None,
    changes: Sequence[tuple[Part, Tensor]],
    others: Collection[int] = (),
) -> Layout | None:
    """Return how a sequence of tokens is arranged as patches, or None if it is not.

    Tokens are patches if their number, less that of class and register tokens, is the number of positions of a spatial
    map or token grid that the network computed before, or of such a grid with every n-th row and column (and of a
    volume every n-th slice or every slice); and if a
    change of a part of the image changes the tokens of that part most. Pooled vectors, columns of text and learned
    queries fail the second test.

    Other tokens are in front of the patches or behind them; or the first is in front and the others are behind.

    Args:
        length: number of tokens T.
        grids: (h, w) or (d, h, w) of the spatial outputs and token grids before, in order of computing.
        size: (H, W) or (D, H, W) of the network's input.
        extra: number of tokens that are not patches, if the network states it.
        changes: for some parts of the image, how much each token changed with them, (T,).
        others: numbers of tokens that are not patches in sequences before.
    """
    for grid, behind in _candidates(length, grids, size, extra, others):
        fitting = [(_locality(changes, grid, front, size), -front) for front in {0, min(1, behind), behind}]
        locality, front = max(fitting)
        if locality >= (CERTAIN_LOCALITY if len(changes) < 3 else LOCALITY):
            return Layout("tokens", grid, -front)
    return None


def _candidates(
    length: int, grids: Sequence[tuple[int, ...]], size: tuple[int, ...], extra: int | None, others: Collection[int]
) -> list[tuple[tuple[int, ...], int]]:
    """Return the grids that T tokens may have, with the number of other tokens; grids without others come first."""
    direct = [(g, length - math.prod(g)) for g in dict.fromkeys(reversed(grids))]
    direct = [(g, n) for g, n in direct if n in (0, extra) or (extra is None and 0 <= n <= MOST_EXTRA_TOKENS)]
    reduced = []
    for *depth, rows, columns in dict.fromkeys([*reversed(grids), size]):
        for step in range(2, min(rows, columns) + 1):
            plane = (math.ceil(rows / step), math.ceil(columns / step))
            for grid in dict.fromkeys([(*depth, *plane), (*(math.ceil(d / step) for d in depth), *plane)]):
                if length - math.prod(grid) in (0, extra or 0, *others):
                    reduced.append((grid, length - math.prod(grid)))
    possible = {(g, n): None for g, n in [*sorted(direct, key=lambda c: c[1]), *reduced] if math.prod(g) > 1}
    return list(possible)


def _locality(
    changes: Sequence[tuple[Part, Tensor]], grid: tuple[int, ...], front: int, size: tuple[int, ...]
) -> float:
    """Return by what factor the tokens at a changed part of the image changed more than the others; 0 if few do."""
    inside_all, outside_all, looked, stronger = 0.0, 0.0, 0, 0
    for part, change in changes:
        marked = torch.zeros(grid, dtype=torch.bool)
        marked[
            tuple(
                slice(s.start * cells // side, math.ceil(s.stop * cells / side))
                for s, cells, side in zip(part, grid, size, strict=True)
            )
        ] = True
        patches = change[front : front + marked.numel()]
        inside = marked.flatten()
        if inside.all():
            continue
        within, without = float(patches[inside].mean()), float(patches[~inside].mean())
        inside_all, outside_all = inside_all + within, outside_all + without
        looked, stronger = looked + 1, stronger + (within > without)
    if not inside_all or stronger < _MOST_REGIONS * looked:
        return 0.0
    return inside_all / outside_all if outside_all else math.inf


def misplacement(found: Sequence[tuple[float, float]], parts: Sequence[tuple[float, float]]) -> str:
    """Return how the positions of a map lie in the image, if not as they are drawn; else an empty text.

    It speaks only where the map tells: where attention or a pooling spreads every change over the map, it does not.

    Args:
        found: for some parts of the image, the center (y, x) in [0, 1] of what changed in the map with them.
        parts: the centers (y, x) of these parts in the image.
    """
    if len(found) < _FEW:
        return ""
    maps, image = torch.tensor(found, dtype=torch.float64), torch.tensor(parts, dtype=torch.float64)
    both = torch.corrcoef(torch.cat([maps, image], dim=1).T)[:2, 2:]  # rows: y, x of the map; columns: of the image
    tells = maps.std(dim=0) > _TELLING
    own, other = both.diagonal()[tells], torch.stack([both[0, 1], both[1, 0]])[tells]
    if bool((own < -_CLEAR).any()):
        return "sees the image mirrored or turned"
    if bool(((other.abs() > _CLEAR) & (own.abs() < 1 - _CLEAR)).any()):
        return "sees the image with other axes in the place of its rows and columns, or turned"
    offset = (maps - image).mean(dim=0)[tells].abs()
    if bool(((own > _CLEAR) & (offset > _OFFSET)).any()):
        return "sees the image with borders, or beside something else"
    return ""


def _fits(grid: Sequence[int], size: tuple[int, ...]) -> bool:
    """Return whether a grid could be that of an input: ``size`` divided by one stride, up to rounding.

    Of a volume, each axis may have a stride of its own.
    """
    if len(size) == 2:
        return abs(grid[0] * size[1] - grid[1] * size[0]) < max(size)
    return all(cells <= side for cells, side in zip(grid, size, strict=True))
