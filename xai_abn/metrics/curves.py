"""Perturbation curves: the target's probability while pixels are removed, or added, in the order of a map.

A :class:`PerturbationProtocol` fixes every choice, a :class:`Curve` says which pixels change. Pixels are ranked once;
the image of a step is made by comparing ranks with a count; the steps of all images, maps and curves fill common
batches; the whole and the blank image are predicted once for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from xai_abn.errors import InvalidInputError
from xai_abn.heatmaps import upsample, usable
from xai_abn.metrics.base import Family, Metric, Predict, Scores, probabilities_of


@dataclass(frozen=True)
class Curve:
    """Which pixels change along a curve, and how.

    Attributes:
        name: such as ``"deletion"``.
        inserts: pixels appear on a blank image; otherwise they vanish from the whole image.
        least_first: the least relevant pixels change first, otherwise the most relevant.
        higher_is_better: of the area under the curve.
        axis_label: what the points of the curve are, for the report.
    """

    name: str
    inserts: bool = False
    least_first: bool = False
    higher_is_better: bool = False
    axis_label: str = "share of pixels deleted"


DELETION = Curve("deletion")
INSERTION = Curve("insertion", inserts=True, higher_is_better=True, axis_label="share of pixels inserted")


@dataclass(frozen=True)
class PerturbationProtocol:
    """Every choice behind a perturbation curve.

    Attributes:
        name: for the record.
        ranks: ``f(maps (M, H, W))`` to integer ranks (M, H * W); 0 is the pixel that changes first.
        counts: ``f(H, W)``, of volumes ``f(D, H, W)``, to ascending counts: at each point, the pixels of lower ranks
            are changed.
        deletion: what deleted pixels become.
        insertion: what pixels are before they are inserted.
        even: the area counts the points of the curve as equally spaced, even if their numbers of pixels are not.
        patch: side of the squares of pixels that change together; counts and ranks are of such squares.
        volumes: whether the protocol is also defined for volumes and clips.
    """

    name: str
    ranks: Callable[[Tensor], Tensor]
    counts: Callable[..., list[int]]
    deletion: Blank
    insertion: Blank
    even: bool = False
    patch: int = 1
    volumes: bool = False

    def axis(self, *size: int) -> Tensor:
        """Return the points of the curve, (T,): shares of the pixels changed, or equally spaced if ``even``."""
        counts = self.counts(*size)
        if self.even:
            return torch.linspace(0, 1, len(counts))
        return torch.tensor(counts).float() * self.patch**2 / math.prod(size)


@dataclass(frozen=True)
class CurveOf(Family):
    """A curve under a protocol; all curves of one protocol share the predictions."""

    protocol: PerturbationProtocol
    curve: Curve

    @property
    def group(self) -> Hashable:
        """The protocol."""
        return self.protocol

    def axis(self, *size: int) -> Tensor:
        """Return the points of the curve, (T,)."""
        return self.protocol.axis(*size)

    def compute(
        self,
        members: Sequence[CurveOf],
        predict: Predict,
        inputs: Tensor,
        maps: Tensor,
        targets: Tensor,
        *,
        batch_size: int = 16,
        black: Tensor | None = None,
    ) -> list[Scores]:
        """Return the area under each member's curve, (N, M), with the curves (N, M, T); see :class:`Family`."""
        curves = [member.curve for member in members]
        found = perturbation_curves(
            predict, inputs, maps, targets, self.protocol, curves, batch_size=batch_size, black=black
        )
        return [Scores(area(found.points[c.name], found.axis), found.points[c.name]) for c in curves]


def curve_metric(curve: Curve, protocol: PerturbationProtocol, definition: str, source: str, **more: Any) -> Metric:
    """Return the metric of the area under a curve: ``"name:protocol"``.

    Args:
        curve: which pixels change.
        protocol: every other choice.
        definition: one or two sentences, for the report.
        source: the paper or program that defines the protocol.
        more: further fields of :class:`Metric`.
    """
    member = CurveOf(protocol, curve)

    def function(predict: Predict, inputs: Tensor, maps: Tensor, targets: Tensor, **options: Any) -> Scores:
        return member.compute([member], predict, inputs, maps, targets, **options)[0]

    return Metric(
        name=curve.name,
        protocol=protocol.name,
        function=function,
        higher_is_better=curve.higher_is_better,
        range=(0, 1),
        units="probability",
        definition=definition,
        source=source,
        family=member,
        reads_probabilities=True,
        axis_label=curve.axis_label,
        **more,
    )


@dataclass(frozen=True, eq=False)
class Curves:
    """Probability of the target along the steps.

    Attributes:
        axis: (T,) of the protocol: share of the pixels changed, or equally spaced in [0, 1].
        points: by curve name (N, T), or (N, M, T) for M maps per image; NaN throughout for a flat or non-finite map.
        evaluations: images the network was run on.
    """

    axis: Tensor
    points: dict[str, Tensor]
    evaluations: int

    @property
    def deletion(self) -> Tensor:
        """The points of the deletion curve."""
        return self.points["deletion"]

    @property
    def insertion(self) -> Tensor:
        """The points of the insertion curve."""
        return self.points["insertion"]


def perturbation_curves(
    predict: Predict,
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    protocol: PerturbationProtocol,
    curves: Sequence[Curve] = (DELETION, INSERTION),
    *,
    batch_size: int = 16,
    black: Tensor | None = None,
) -> Curves:
    """Return the curves of one or several maps per image.

    Args:
        predict: inputs to logits (B, K); called under ``torch.no_grad()``.
        inputs: (N, C, H, W), normalized, or volumes or clips (N, C, D, H, W).
        maps: (N, h, w), or (N, M, h, w) for M maps per image, which share its whole and blank predictions; those of
            volumes have one more axis.
        targets: (N,) or (N, M) class indices.
        protocol: every choice but which pixels change.
        curves: which pixels change.
        batch_size: images per call of ``predict``; limits memory.
        black: (C,) the normalized value of black, for protocols that use black.

    Raises:
        InvalidInputError: shapes that do not fit, no curve, a protocol that needs ``black``, or one that is defined for
            images alone.

    Source: Petsiuk et al., "RISE", 2018, section 4.2; the protocols name their own.
    """
    several = maps.dim() == inputs.dim()
    if isinstance(device := getattr(predict, "device", None), torch.device):
        inputs, maps = inputs.to(device), maps.to(device)
    maps, targets = _checked(inputs, maps, targets, several)
    if inputs.dim() == 5 and not protocol.volumes:
        raise InvalidInputError(f"the protocol {protocol.name} is defined for images, not for volumes; use xai-abn")
    if batch_size < 1:
        raise InvalidInputError(f"batch_size must be at least 1, got {batch_size}")
    if not curves or not all(isinstance(curve, Curve) for curve in curves):
        raise InvalidInputError(f"curves must be at least one Curve, such as DELETION, got {curves!r}")
    steps = _Steps(inputs, maps, protocol, tuple(curves), black)
    points = steps.predict_all(predict, targets, batch_size)
    if not several:
        points = {name: curve[:, 0] for name, curve in points.items()}
    return Curves(protocol.axis(*inputs.shape[2:]), points, len(steps.places))


def area(curve: Tensor, axis: Tensor) -> Tensor:
    """Return the area under curves (..., T) by the trapezoid rule, in [0, 1] for probabilities."""
    return torch.trapezoid(curve.double(), axis.to(curve.device).double(), dim=-1)


class _Image(NamedTuple):
    """An image to predict: image ``n``, with its ranks of map ``m`` below ``below`` kept, or replaced by a blank."""

    n: int
    blank: int | None
    m: int
    below: int
    keep: bool


class _Steps:
    """The images to predict, each once, and the places in the curves that each one fills."""

    def __init__(
        self,
        inputs: Tensor,
        maps: Tensor,
        protocol: PerturbationProtocol,
        curves: tuple[Curve, ...],
        black: Tensor | None,
    ) -> None:
        self.size = tuple(inputs.shape[2:])
        self.units = math.prod(self.size) // protocol.patch**2
        self.counts = protocol.counts(*self.size)
        self.usable = usable(maps.flatten(0, 1)).view(maps.shape[:2]).cpu().numpy()
        self.ranks = protocol.ranks(upsample(maps.flatten(0, 1), self.size)).unflatten(0, maps.shape[:2])
        self.channels_last = inputs.dim() == 4 and inputs.is_contiguous(memory_format=torch.channels_last)
        self.pixels = inputs.contiguous().flatten(2)
        self.curves = curves
        wanted = [protocol.insertion if curve.inserts else protocol.deletion for curve in curves]
        different = list(dict.fromkeys(wanted))
        self.blank_of = {curve: different.index(blank) for curve, blank in zip(curves, wanted, strict=True)}
        self.blanks = _make_blanks(inputs, different, protocol, black)
        self.places = self._places()

    def predict_all(self, predict: Predict, targets: Tensor, batch_size: int) -> dict[str, Tensor]:
        """Predict every image and return the curves (N, M, T) by name."""
        images = list(self.places)
        filled = [place for image in images for place in self.places[image]]
        rows = torch.tensor([row for row, image in enumerate(images) for _ in self.places[image]])
        classes = targets[[n for _, n, _, _ in filled], [m for _, _, m, _ in filled]]
        bounds = torch.searchsorted(rows, torch.arange(0, len(images) + batch_size, batch_size)).tolist()
        if (expect := getattr(predict, "expect", None)) is not None:
            expect(len(images))
        read: list[Tensor] = []
        for start, first, last in zip(range(0, len(images), batch_size), bounds, bounds[1:], strict=False):
            with torch.no_grad():
                logits = predict(self._drawn(images[start : start + batch_size])).float()
                if not start and classes.numel() and int(classes.max()) >= logits.shape[1]:
                    raise InvalidInputError(
                        f"target {int(classes.max())} is out of range for {logits.shape[1]} classes"
                    )
                rows, classes = rows.to(logits.device), classes.to(logits.device)  # once
                read.append(probabilities_of(predict, logits)[rows[first:last] - start, classes[first:last]])
        values = torch.cat(read).float().cpu().numpy() if read else np.zeros(0)  # once, so that a GPU never waits
        found = {c.name: np.full((*self.usable.shape, len(self.counts)), np.nan, np.float32) for c in self.curves}
        for (name, n, m, point), value in zip(filled, values, strict=True):
            found[name][n, m, point] = value
        return {name: torch.from_numpy(points) for name, points in found.items()}

    def _places(self) -> dict[_Image, list[tuple[str, int, int, int]]]:
        places: dict[_Image, list[tuple[str, int, int, int]]] = {}
        for n, m in np.argwhere(self.usable).tolist():
            for curve in self.curves:
                for point in range(len(self.counts)):
                    places.setdefault(self._image(curve, n, m, point), []).append((curve.name, n, m, point))
        return places

    def _image(self, curve: Curve, n: int, m: int, point: int) -> _Image:
        """Return the image of a point; a whole or a blank one depends neither on the map nor on the curve."""
        count, blank = self.counts[point], self.blank_of[curve]
        if 0 < count < self.units:
            below = self.units - count if curve.least_first else count
            return _Image(n, blank, m, below, curve.inserts != curve.least_first)
        if (count >= self.units) == curve.inserts:
            return _Image(n, None, 0, 0, False)
        return _Image(n if len(self.blanks[blank]) > 1 else 0, blank, 0, self.units, False)

    def _drawn(self, chunk: list[_Image]) -> Tensor:
        """Return the images as one batch (B, C, ...), in the memory format of the inputs."""
        buffer = self.pixels.new_empty(len(chunk), *self.pixels.shape[1:])
        below = torch.tensor([image.below for image in chunk], dtype=torch.int32).to(buffer.device)
        start = 0
        for (n, blank, m, keep), alike in groupby(chunk, lambda i: (i.n, i.blank, i.m, i.keep)):
            rows = slice(start, start := start + len(list(alike)))
            whole = self.pixels[n]
            if blank is None:
                buffer[rows] = whole
                continue
            missing = self.blanks[blank][n if len(self.blanks[blank]) > 1 else 0]
            first = (self.ranks[n, m] < below[rows, None])[:, None]
            torch.where(first, *((whole, missing) if keep else (missing, whole)), out=buffer[rows])
        batch = buffer.unflatten(2, self.size)
        result: Tensor = batch.contiguous(memory_format=torch.channels_last) if self.channels_last else batch
        return result


def _make_blanks(
    inputs: Tensor, blanks: Sequence[Blank], protocol: PerturbationProtocol, black: Tensor | None
) -> list[Tensor]:
    """Return each blank for these inputs, flattened: (N or 1, C, pixels)."""
    if black is None:
        if BLACK in blanks:
            raise InvalidInputError(
                f"protocol {protocol.name} replaces pixels by black; pass black=, its normalized value"
            )
        black = inputs.new_zeros(inputs.shape[1])
    if black.shape != (inputs.shape[1],):
        raise InvalidInputError(f"black must hold one value per channel ({inputs.shape[1]},), got {tuple(black.shape)}")
    return [blank.make(inputs, black.to(inputs)).contiguous().flatten(2) for blank in blanks]


def _checked(inputs: Tensor, maps: Tensor, targets: Tensor, several: bool) -> tuple[Tensor, Tensor]:
    """Return maps as (N, M, h, w), of volumes (N, M, d, h, w), and targets as (N, M)."""
    axes = inputs.dim()
    fitting = axes in (4, 5) and maps.dim() in (axes - 1, axes)
    if not fitting or len(maps) != len(inputs) or len(targets) != len(inputs):
        raise InvalidInputError(
            f"expected inputs (N, C, H, W), maps (N, h, w) or (N, M, h, w) and N targets, of volumes one axis more, "
            f"got {tuple(inputs.shape)}, {tuple(maps.shape)} and {tuple(targets.shape)}"
        )
    maps = maps if several else maps[:, None]
    targets = targets if targets.dim() == 2 else targets[:, None].expand(-1, maps.shape[1])
    if targets.shape != maps.shape[:2]:
        raise InvalidInputError(f"got {tuple(targets.shape)} targets for {tuple(maps.shape[:2])} maps")
    if targets.numel() and int(targets.min()) < 0:
        raise InvalidInputError(f"targets are class indices from 0, got {int(targets.min())}")
    return maps, targets.cpu()


@dataclass(frozen=True)
class Blank:
    """The replacement of missing pixels.

    Attributes:
        name: of the replacement.
        make: ``f(inputs (N, C, H, W), black (C,))`` to (N, C, H, W), or (1, C, H, W) if it is the same for all.
    """

    name: str
    make: Callable[[Tensor, Tensor], Tensor]


def rise_kernel() -> Tensor:
    """Return RISE's 11x11 blur kernel: a unit impulse smoothed by SciPy with sigma 5 within those 11 pixels.

    Reflection at the edges makes it nearly flat (center 0.00883, corner 0.00774); it is not a truncated Gaussian of
    sigma 5.
    """
    from scipy.ndimage import gaussian_filter

    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    return torch.from_numpy(gaussian_filter(impulse, 5)).float()


def _rise_blur(inputs: Tensor, black: Tensor) -> Tensor:
    channels = inputs.shape[1]
    kernel = rise_kernel().to(inputs).expand(channels, 1, 11, 11)
    return F.conv2d(inputs.contiguous(), kernel, padding=5, groups=channels)


def _wide_blur(inputs: Tensor, black: Tensor) -> Tensor:
    """Blur by a Gaussian with sigma 1/12 of the shorter side, truncated at two sigma, with mirrored edges.

    Of a volume or clip, each slice is blurred alone, as an image.
    """
    if inputs.dim() == 5:
        slices = _wide_blur(inputs.transpose(1, 2).flatten(0, 1), black)
        return slices.reshape(len(inputs), inputs.shape[2], *slices.shape[1:]).transpose(1, 2)
    sigma = min(inputs.shape[2:]) / 12
    radius = min(round(2 * sigma), min(inputs.shape[2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32, device=inputs.device)
    line = torch.exp(-0.5 * (offsets / sigma) ** 2)
    line = (line / line.sum()).to(inputs.dtype)
    channels = inputs.shape[1]
    padded = F.pad(inputs.contiguous(), (radius,) * 4, mode="reflect")
    rows = F.conv2d(padded, line.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(rows, line.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


def _black(inputs: Tensor, black: Tensor) -> Tensor:
    return black.view(1, -1, *[1] * (inputs.dim() - 2)).expand(1, -1, *inputs.shape[2:])


#: Normalized 0, the mean color.
ZERO = Blank("normalized zero", lambda inputs, black: torch.zeros_like(inputs[:1]))
#: Black, before normalizing.
BLACK = Blank("black", _black)
#: RISE's blur, with zero padding.
RISE_BLUR = Blank("RISE's 11x11 blur, zero padded", _rise_blur)
#: A blur that is wide enough to hide objects and has no dark borders.
WIDE_BLUR = Blank("Gaussian blur, sigma 1/12 of the shorter side, mirrored edges", _wide_blur)


def stable_ranks(maps: Tensor) -> Tensor:
    """Rank pixels, largest first, equal values in reading order: (M, H, W) or (M, D, H, W) to (M, pixels)."""
    return _positions(maps.flatten(1).argsort(dim=1, descending=True, stable=True))


def reversed_ranks(maps: Tensor) -> Tensor:
    """Rank pixels, largest first, equal values in reverse reading order, as a flipped ascending argsort does."""
    return _positions(maps.flatten(1).argsort(dim=1, stable=True).flip(1))


def scattered_ranks(maps: Tensor, seed: int = 0) -> Tensor:
    """Rank pixels, largest first, equal values in a fixed random order, so that no corner of a plateau comes first."""
    flat = maps.flatten(1)
    generator = torch.Generator().manual_seed(seed)
    shuffle = torch.randperm(flat.shape[1], generator=generator).to(flat.device)
    return _positions(shuffle[flat[:, shuffle].argsort(dim=1, descending=True, stable=True)])


def patch_ranks(maps: Tensor, patch: int) -> Tensor:
    """Rank patches by their largest value; the rank of a pixel is the number of patches with a larger value."""
    height, width = maps.shape[1:]
    if height % patch or width % patch:
        raise InvalidInputError(
            f"the sides of an input must be multiples of the patch of {patch} pixels, got {height}x{width}"
        )
    largest = F.max_pool2d(maps[:, None], patch)[:, 0]
    ordered = (-largest).flatten(1).contiguous().sort(dim=1).values
    above = torch.searchsorted(ordered, (-largest).flatten(1).contiguous())
    grid = above.view(largest.shape)
    return grid.repeat_interleave(patch, 1).repeat_interleave(patch, 2).flatten(1)


def _positions(order: Tensor) -> Tensor:
    places = torch.arange(order.shape[1], device=order.device, dtype=torch.int32).expand_as(order)
    return torch.empty_like(places, memory_format=torch.contiguous_format).scatter_(1, order, places)


def every(step: int) -> Callable[..., list[int]]:
    """Return a function for the counts 0, step, 2 step, ... and all pixels."""
    return lambda *size: [*range(0, math.prod(size), step), math.prod(size)]


def at_most(steps: int) -> Callable[..., list[int]]:
    """Return a function for the counts of at most ``steps`` equal steps, the last one shorter, as in torchcam."""
    return lambda *size: every(math.ceil(math.prod(size) / steps))(*size)


def equal(steps: int) -> Callable[..., list[int]]:
    """Return a function for the counts of exactly ``steps`` steps, equal to within a pixel."""
    return lambda *size: [round(i * math.prod(size) / steps) for i in range(steps + 1)]
