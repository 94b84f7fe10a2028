"""The rows of a benchmark run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ImageRow:
    """One photo of a run.

    Attributes:
        image: key of its content and annotations.
        position: in the data set.
        source: path, as named in the data set.
        label: class of the whole photo, or None.
        view: JPEG of the part the network saw.
        objects: ``[{"label", "box": [left, top, right, bottom], "crowd", "difficult"}]``, boxes as shares of the view.
        superseded: the photo or its annotations changed since; its results no longer count.
    """

    image: str
    position: int
    source: str
    label: str | None
    view: bytes
    objects: list[dict[str, Any]]
    superseded: bool = False


@dataclass(frozen=True, eq=False)
class MapRow:
    """One map, kept for the report's pictures: of large ones, a reduced copy.

    Attributes:
        trial: ``"top-1"`` or the name of an annotated class.
        target: the model's class index.
        label: its name.
        probability: of the target.
        flaw: why the map means nothing, or None.
        seconds: the photo's share of the forward pass, and the method's own.
        map: (h, w) float32.
    """

    key: str
    image: str
    method: str
    trial: str
    target: int
    label: str
    probability: float
    flaw: str | None
    seconds: float
    map: np.ndarray


@dataclass(frozen=True, eq=False)
class ResultRow:
    """One value: of one metric with its protocol, for one method, target and photo.

    Attributes:
        metric: ``"name:protocol"``.
        value: None where the metric has none, with the reason in ``flaw``.
        flaw: such as ``"flat"``: why the map could not be scored.
        curve: (T,) float32 where the metric has one, else None.
        work: key shared by all trials of one metric and method on one photo; they are written together.
    """

    key: str
    image: str
    method: str
    trial: str
    target: int
    metric: str
    value: float | None
    flaw: str | None
    curve: np.ndarray | None = None
    work: str = ""


@dataclass(frozen=True)
class FailureRow:
    """Something that could not be measured, and why. ``method`` and ``metric`` are "" where all failed."""

    source: str
    reason: str
    image: str = ""
    method: str = ""
    metric: str = ""


@dataclass
class Batch:
    """What one step of a run adds, written in one transaction."""

    images: list[ImageRow] = field(default_factory=list)
    maps: list[MapRow] = field(default_factory=list)
    results: list[ResultRow] = field(default_factory=list)
    failures: list[FailureRow] = field(default_factory=list)
