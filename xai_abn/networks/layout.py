"""Where the positions are in a layer's output: channels first, channels last, or tokens on a patch grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Largest expected number of class, distillation and register tokens beside the patches.
MOST_EXTRA_TOKENS = 16
#: Tokens are patches if those at a changed part of the image change this many times as much as the others.
LOCALITY = 2.5


@dataclass(frozen=True)
class Layout:
    """How to read a layer's output as maps (N, C, h, w).

    Attributes:
        kind: ``"channels-first"`` (N, C, h, w), ``"channels-last"`` (N, h, w, C) or ``"tokens"`` (N, T, C).
        grid: (h, w).
        prefix: number of tokens before the patches, such as a class token. T may be larger than ``prefix + h w``.
        batch_axis: 1 for tokens (T, N, C), which are the default of ``nn.TransformerEncoder``, else 0. The methods
            expect the batch first, see :meth:`batch_first`.
    """

    kind: str
    grid: tuple[int, int]
    prefix: int = 0
    batch_axis: int = 0

    def batch_first(self, values: Tensor) -> Tensor:
        """Return a layer's output with the batch as its first axis; the inverse is the same operation."""
        return values.transpose(0, self.batch_axis)

    def to_maps(self, values: Tensor) -> Tensor:
        """Return values (..., as the layer gives them) as (..., C, h, w); leading axes stay."""
        if self.kind == "channels-last":
            return values.transpose(-1, -2).transpose(-2, -3)  # movedim() cannot be exported to ONNX
        if self.kind == "tokens":
            patches = values[..., self.prefix : self.prefix + self.grid[0] * self.grid[1], :]
            result: Tensor = patches.transpose(-1, -2).unflatten(-1, self.grid)
            return result
        return values

    def from_maps(self, maps: Tensor, like: Tensor) -> Tensor:
        """Return maps (B, C, h, w) as the layer gives them; other tokens are those of ``like``, (1 or B, ...)."""
        if self.kind == "channels-last":
            return maps.transpose(-3, -2).transpose(-2, -1)
        if self.kind == "tokens":
            other = like if len(like) == len(maps) else like.expand(len(maps), -1, -1)
            patches = maps.flatten(2).transpose(1, 2)
            end = self.prefix + patches.shape[1]
            return torch.cat([other[:, : self.prefix], patches, other[:, end:]], dim=1)
        return maps


def is_ambiguous(shape: Sequence[int], size: tuple[int, int]) -> bool:
    """Return whether an output (N, a, b, c) could have its positions in (a, b) as well as in (b, c)."""
    several = len(shape) == 4 and min(shape[1:]) > 1
    return several and _in_proportion(shape[1], shape[2], size) and _in_proportion(shape[2], shape[3], size)


def grid_layout(
    shape: Sequence[int], size: tuple[int, int], changes: Sequence[tuple[tuple[slice, slice], Tensor]] = ()
) -> Layout | None:
    """Return the layout of an output (N, a, b, c), or None for another number of axes.

    It is read as channels last only where (a, b) has the proportions of the image and (b, c) has not; or where both
    have them, and a change of a part of the image changes that part of (a, b) more.

    Args:
        shape: of the output, with the batch first.
        size: (H, W) of the network's input.
        changes: for some parts of the image (rows and columns of pixels), how the output (1, a, b, c) of one image
            changed with them; looked at where both fit.
    """
    if len(shape) != 4:
        return None
    first, last = Layout("channels-first", (shape[2], shape[3])), Layout("channels-last", (shape[1], shape[2]))
    if is_ambiguous(shape, size):
        return max(first, last, key=lambda layout: _locality_of_maps(changes, layout, size))
    return last if _in_proportion(*last.grid, size) and not _in_proportion(*first.grid, size) else first


def _locality_of_maps(
    changes: Sequence[tuple[tuple[slice, slice], Tensor]], layout: Layout, size: tuple[int, int]
) -> float:
    """Return what :func:`_locality` does, of the changes of an output read with a layout."""
    norms = [
        (region, layout.to_maps(change.detach().abs().float())[0].norm(dim=0).flatten()) for region, change in changes
    ]
    return _locality(norms, layout.grid, 0, size)


def token_layout(
    length: int,
    grids: Sequence[tuple[int, int]],
    size: tuple[int, int],
    extra: int | None,
    changes: Sequence[tuple[tuple[slice, slice], Tensor]],
) -> Layout | None:
    """Return how a sequence of tokens is arranged as patches, or None if it is not.

    Tokens are patches if their number, less that of class and register tokens, is the number of positions of a spatial
    map or token grid that the network computed before, or of such a grid with every n-th row and column; and if a
    change of a part of the image changes the tokens of that part most. Pooled vectors, columns of text and learned
    queries fail the second test.

    Other tokens are in front of the patches or behind them; or the first is in front and the others are behind.

    Args:
        length: number of tokens T.
        grids: (h, w) of the spatial outputs and token grids before, in order of computing.
        size: (H, W) of the network's input.
        extra: number of tokens that are not patches, if the network states it.
        changes: for some parts of the image (rows and columns of pixels), how much each token changed with them, (T,).
    """
    for grid, others in _candidates(length, grids, size, extra):
        fitting = [(_locality(changes, grid, front, size), -front) for front in {0, min(1, others), others}]
        locality, front = max(fitting)
        if locality >= LOCALITY:
            return Layout("tokens", grid, -front)
    return None


def _candidates(
    length: int, grids: Sequence[tuple[int, int]], size: tuple[int, int], extra: int | None
) -> list[tuple[tuple[int, int], int]]:
    """Return the grids that T tokens may have, with the number of other tokens; grids without others come first."""
    direct = [(g, length - g[0] * g[1]) for g in dict.fromkeys(reversed(grids))]
    direct = [(g, n) for g, n in direct if n in (0, extra) or (extra is None and 0 <= n <= MOST_EXTRA_TOKENS)]
    reduced = []
    for rows, columns in dict.fromkeys([*reversed(grids), size]):
        for step in range(2, min(rows, columns) + 1):
            grid = (math.ceil(rows / step), math.ceil(columns / step))
            if length - grid[0] * grid[1] in (0, extra or 0):
                reduced.append((grid, length - grid[0] * grid[1]))
    possible = {(g, n): None for g, n in [*sorted(direct, key=lambda c: c[1]), *reduced] if g[0] * g[1] > 1}
    return list(possible)


def _locality(
    changes: Sequence[tuple[tuple[slice, slice], Tensor]], grid: tuple[int, int], front: int, size: tuple[int, int]
) -> float:
    """Return by what factor the tokens at a changed part of the image changed more than the other patches."""
    rows, columns = grid
    inside_all, outside_all = 0.0, 0.0
    for (vertical, horizontal), change in changes:
        marked = torch.zeros(rows, columns, dtype=torch.bool)
        marked[
            vertical.start * rows // size[0] : math.ceil(vertical.stop * rows / size[0]),
            horizontal.start * columns // size[1] : math.ceil(horizontal.stop * columns / size[1]),
        ] = True
        patches = change[front : front + rows * columns]
        inside = marked.flatten()
        if inside.all():
            continue
        inside_all += float(patches[inside].mean())
        outside_all += float(patches[~inside].mean())
    if not inside_all:
        return 0.0
    return inside_all / outside_all if outside_all else math.inf


def _in_proportion(rows: int, columns: int, size: tuple[int, int]) -> bool:
    """Return whether (rows, columns) could be ``size`` divided by one stride, up to rounding."""
    return abs(rows * size[1] - columns * size[0]) < max(size)
