"""Deletion and insertion: what happens to the answer when the map's top pixels go, or come.

A :class:`PerturbationProtocol` fixes every choice. Pixels are ranked once; the picture of a step is made by
comparing ranks with a count; the steps of all pictures, maps and both curves fill common batches; the whole and
the blank picture are predicted once, for all maps and both curves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from xai_abn.errors import InvalidInputError
from xai_abn.heatmaps import upsample, usable
from xai_abn.metrics.base import Predict, probabilities_of
from xai_abn.metrics.blanks import BLACK, Blank

CurveName = Literal["deletion", "insertion"]


@dataclass(frozen=True)
class PerturbationProtocol:
    """Every choice behind a deletion or insertion curve.

    Attributes:
        name: for the record.
        ranks: ``f(maps (M, H, W))`` to integer ranks (M, H * W), 0 for the pixel that goes or comes first.
        counts: ``f(H, W)`` to ascending thresholds: at each point, pixels of a lower rank are changed.
        deletion: what deleted pixels become.
        insertion: what pixels are before they are inserted.
        even: points of the curve are equally spaced in the area, also where they are not equally spaced in pixels.
        patch: side of the square that goes or comes as one; counts and ranks are of such squares.
    """

    name: str
    ranks: Callable[[Tensor], Tensor]
    counts: Callable[[int, int], list[int]]
    deletion: Blank
    insertion: Blank
    even: bool = False
    patch: int = 1

    def axis(self, height: int, width: int) -> Tensor:
        """Return the points of the curve, (T,): shares of the pixels changed, or equally spaced if ``even``."""
        counts = self.counts(height, width)
        if self.even:
            return torch.linspace(0, 1, len(counts))
        return torch.tensor(counts).float() * self.patch**2 / (height * width)


@dataclass(frozen=True, eq=False)
class Curves:
    """Softmax probability of the target along the steps.

    Attributes:
        axis: (T,) of the protocol: share of the pixels changed, or equally spaced in [0, 1].
        deletion: (N, T) or (N, M, T), or None if not asked for. NaN throughout for a flat or non-finite map.
        insertion: likewise.
        evaluations: pictures the network was run on.
    """

    axis: Tensor
    deletion: Tensor | None
    insertion: Tensor | None
    evaluations: int


def perturbation_curves(
    predict: Predict,
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    protocol: PerturbationProtocol,
    curves: Sequence[CurveName] = ("deletion", "insertion"),
    *,
    batch_size: int = 16,
    black: Tensor | None = None,
) -> Curves:
    """Return the curves of one or several maps a picture.

    Args:
        predict: inputs (B, 3, H, W) to logits (B, K); called under ``torch.no_grad()``.
        inputs: (N, 3, H, W), normalised.
        maps: (N, h, w), or (N, M, h, w) for M maps a picture, which share its whole and blank predictions.
        targets: (N,) or (N, M) class indices.
        protocol: which definition.
        curves: which of the two.
        batch_size: pictures per call of ``predict``; memory is bounded by it.
        black: (3,) the normalised value of black, for protocols that paint black.

    Raises:
        InvalidInputError: shapes that do not fit, or a protocol that paints black without ``black``.

    Source: Petsiuk et al., "RISE", 2018, section 4.2; the protocols name their own.
    """
    several = maps.dim() == 4
    maps, targets = _checked(inputs, maps, targets, several)
    if batch_size < 1:
        raise InvalidInputError(f"batch_size must be at least 1, got {batch_size}")
    work = _Work(inputs, maps, protocol, tuple(curves), black)
    found = work.run(predict, targets, batch_size)
    if not several:
        found = {name: curve[:, 0] for name, curve in found.items()}
    axis = protocol.axis(inputs.shape[2], inputs.shape[3])
    return Curves(axis, found.get("deletion"), found.get("insertion"), len(work.places))


def area(curve: Tensor, axis: Tensor) -> Tensor:
    """Return the area under curves (..., T) by the trapezoid rule, in [0, 1] for probabilities."""
    return torch.trapezoid(curve.double(), axis.to(curve.device).double(), dim=-1)


class _Work:
    """The pictures to predict, each once, and the places in the curves that each one fills."""

    def __init__(
        self,
        inputs: Tensor,
        maps: Tensor,
        protocol: PerturbationProtocol,
        curves: tuple[CurveName, ...],
        black: Tensor | None,
    ) -> None:
        self.size = (inputs.shape[2], inputs.shape[3])
        self.units = inputs.shape[2] * inputs.shape[3] // protocol.patch**2
        self.counts = protocol.counts(*self.size)
        self.usable = usable(maps.flatten(0, 1)).view(maps.shape[:2]).cpu().numpy()
        self.ranks = protocol.ranks(upsample(maps.flatten(0, 1), self.size)).unflatten(0, maps.shape[:2])
        self.layout = inputs.is_contiguous(memory_format=torch.channels_last)
        self.pictures = inputs.contiguous().flatten(2)
        self.blanks, self.blank_of = _make_blanks(inputs, protocol, curves, black)
        self.places = self._places(curves)

    def run(self, predict: Predict, targets: Tensor, batch_size: int) -> dict[str, Tensor]:
        """Predict every picture and return the curves (N, M, T) by name."""
        wanted = targets.numpy()
        found = {c: np.full((*self.usable.shape, len(self.counts)), np.nan, np.float32) for c in self.blank_of}
        pictures = list(self.places)
        for start in range(0, len(pictures), batch_size):
            chunk = pictures[start : start + batch_size]
            with torch.no_grad():
                answers = probabilities_of(predict, predict(self._drawn(chunk)).float()).cpu().numpy()
            if wanted.size and wanted.max() >= answers.shape[1]:
                raise InvalidInputError(f"target {wanted.max()} is out of range for {answers.shape[1]} classes")
            for answer, picture in zip(answers, chunk, strict=True):
                for curve, n, m, point in self.places[picture]:
                    found[curve][n, m, point] = answer[wanted[n, m]]
        return {name: torch.from_numpy(values) for name, values in found.items()}

    def _places(self, curves: tuple[CurveName, ...]) -> dict[_Picture, list[tuple[CurveName, int, int, int]]]:
        places: dict[_Picture, list[tuple[CurveName, int, int, int]]] = {}
        for n, m in np.argwhere(self.usable).tolist():
            for curve in curves:
                for point in range(len(self.counts)):
                    places.setdefault(self._picture(curve, n, m, point), []).append((curve, n, m, point))
        return places

    def _picture(self, curve: CurveName, n: int, m: int, point: int) -> _Picture:
        """Name the picture of a point: those that are whole or blank do not depend on the map, nor on the curve."""
        count, blank = self.counts[point], self.blank_of[curve]
        changed = 0 if count <= 0 else 1 if count >= self.units else None
        if changed is None:
            return _Picture(n, blank, m, count, curve == "insertion")
        if changed == (curve == "insertion"):
            return _Picture(n, None, 0, 0, False)
        return _Picture(n if len(self.blanks[blank]) > 1 else 0, blank, 0, self.units, False)

    def _drawn(self, chunk: list[_Picture]) -> Tensor:
        """Return the pictures as one batch (B, C, H, W), in the layout of the inputs."""
        buffer = self.pictures.new_empty(len(chunk), *self.pictures.shape[1:])
        for row, picture in enumerate(chunk):
            if picture.blank is None:
                buffer[row] = self.pictures[picture.n]
                continue
            blank = self.blanks[picture.blank]
            missing, whole = blank[picture.n if len(blank) > 1 else 0], self.pictures[picture.n]
            first = self.ranks[picture.n, picture.m] < picture.below
            torch.where(first, *((whole, missing) if picture.insert else (missing, whole)), out=buffer[row])
        batch = buffer.unflatten(2, self.size)
        result: Tensor = batch.contiguous(memory_format=torch.channels_last) if self.layout else batch
        return result


class _Picture(NamedTuple):
    """One picture to predict: ``n``'s, its ranks of map ``m`` lower than ``below`` blank (or all others, to insert)."""

    n: int
    blank: int | None
    m: int
    below: int
    insert: bool


def _make_blanks(
    inputs: Tensor, protocol: PerturbationProtocol, curves: Sequence[CurveName], black: Tensor | None
) -> tuple[list[Tensor], dict[CurveName, int]]:
    """Return each different blank, flattened, and which one a curve uses."""
    unknown = set(curves) - {"deletion", "insertion"}
    if unknown or not curves:
        raise InvalidInputError(f"curves are deletion and insertion, got {', '.join(sorted(unknown)) or 'none'}")
    wanted = {name: protocol.deletion if name == "deletion" else protocol.insertion for name in curves}
    different = list(dict.fromkeys(wanted.values()))
    if black is None:
        if BLACK in different:
            raise InvalidInputError(
                f"protocol {protocol.name} paints black: give black=, the normalised value of black"
            )
        black = inputs.new_zeros(inputs.shape[1])
    if black.shape != (inputs.shape[1],):
        raise InvalidInputError(f"black must hold one value a channel, ({inputs.shape[1]},), got {tuple(black.shape)}")
    made = [blank.make(inputs, black.to(inputs)).contiguous().flatten(2) for blank in different]
    return made, {name: different.index(blank) for name, blank in wanted.items()}


def _checked(inputs: Tensor, maps: Tensor, targets: Tensor, several: bool) -> tuple[Tensor, Tensor]:
    """Return maps as (N, M, h, w) and targets as (N, M)."""
    if inputs.dim() != 4 or maps.dim() not in (3, 4) or len(maps) != len(inputs) or len(targets) != len(inputs):
        raise InvalidInputError(
            f"expected inputs (N, C, H, W), maps (N, h, w) or (N, M, h, w) and N targets, "
            f"got {tuple(inputs.shape)}, {tuple(maps.shape)} and {tuple(targets.shape)}"
        )
    maps = maps if several else maps[:, None]
    targets = targets if targets.dim() == 2 else targets[:, None].expand(-1, maps.shape[1])
    if targets.shape != maps.shape[:2]:
        raise InvalidInputError(f"got {tuple(targets.shape)} targets for {tuple(maps.shape[:2])} maps")
    if targets.numel() and int(targets.min()) < 0:
        raise InvalidInputError(f"targets are class indices from 0, got {int(targets.min())}")
    return maps, targets.cpu()
