"""One answer to "where did you look?", complete enough to be checked later."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from xai_abn.errors import UnusableMapError

#: A map whose values differ by less than this share of its largest magnitude counts as flat.
FLAT_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Explanation:
    """A map over one picture, with what it explains and how it was made.

    Attributes:
        map: (h, w) float32 at the layer's own resolution, in the method's own units; read-only.
        method: registered name of the explainer.
        target: class index that was explained (or, if not ``class_specific``, the one predicted).
        label: that class's name, or ``"class 7"`` where the model has no labels.
        versus: index of the class compared with, or None.
        score: what was explained, from the same pass: the target's logit, or the difference of two.
        probability: its softmax probability, in [0, 1], of a multi-label model its sigmoid; of this class rather than
            the other where two are compared; NaN where a function of the answer is explained.
        predicted: index of the top-1 class, of a multi-label model the most probable.
        predicted_label: its name.
        class_specific: False where the map is the same for every class, as ABN's attention map.
        layer: name of the layer the map was read from.
        model: name of the model.
        parameters: the explainer's settings.
        versions: of xai-abn and torch.
        source: where the picture came from.
        notes: what was done to the picture on reading it.
        seconds: wall time for this map: the picture's share of the forward pass and of the method.
        view: (H, W, 3) uint8 RGB, the part of the picture the network saw.
    """

    map: np.ndarray
    method: str
    target: int
    label: str
    score: float
    probability: float
    predicted: int
    predicted_label: str
    class_specific: bool
    layer: str
    model: str
    view: np.ndarray = field(repr=False)
    source: str = ""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    parameters: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    versus: int | None = None

    def __post_init__(self) -> None:
        """Make the map read-only: a frozen record should not change through its array."""
        self.map.flags.writeable = False

    @property
    def answer(self) -> str:
        """The label with its probability, or with its score where there is none."""
        certain = f"{self.probability:.1%}" if np.isfinite(self.probability) else f"score {self.score:.3g}"
        return f"{self.label}  {certain}"

    @property
    def flaw(self) -> str | None:
        """Why the map means nothing: ``"not finite"``, ``"flat"``, or None for a usable map."""
        if not np.isfinite(self.map).all():
            return "not finite"
        low, high = float(self.map.min()), float(self.map.max())
        if high - low <= FLAT_TOLERANCE * max(abs(low), abs(high)):
            return "flat"
        return None

    def heatmap(self, size: tuple[int, int] | None = None) -> np.ndarray:
        """Return the map scaled to [0, 1] and resized: the only place where a map is scaled.

        The smallest value becomes 0 and the largest 1, after bilinear interpolation with half-pixel
        centres (``align_corners=False``).

        Args:
            size: (height, width); default that of ``view``.

        Returns:
            (height, width) float32 in [0, 1].

        Raises:
            UnusableMapError: the map is flat or not finite.
        """
        if self.flaw:
            raise UnusableMapError(
                f"{self.source}: the {self.method} map for {self.label!r} is {self.flaw}: nothing to show"
            )
        height, width = size or self.view.shape[:2]
        resized = np.asarray(cv2.resize(self.map, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
        low, high = float(np.min(resized)), float(np.max(resized))
        if high <= low:
            raise UnusableMapError(f"the {self.method} map is flat at {height}x{width} pixels; ask for a larger size")
        return (resized - low) / (high - low)

    def overlay(self, **options: Any) -> Any:
        """Return the map over the picture as a Pillow image; see :func:`xai_abn.rendering.overlay`."""
        from xai_abn.rendering import overlay

        return overlay(self, **options)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the arrays as plain values, for JSON."""
        return {
            "source": self.source,
            "model": self.model,
            "method": self.method,
            "layer": self.layer,
            "target": self.target,
            "label": self.label,
            "score": self.score,
            "probability": _finite_or_none(self.probability),
            "versus": self.versus,
            "predicted": self.predicted,
            "predicted_label": self.predicted_label,
            "class_specific": self.class_specific,
            "map_shape": list(self.map.shape),
            "map_min": _finite_or_none(self.map.min()),
            "map_max": _finite_or_none(self.map.max()),
            "flaw": self.flaw,
            "notes": list(self.notes),
            "parameters": dict(self.parameters),
            "versions": dict(self.versions),
        }

    def _repr_png_(self) -> bytes:
        """Show the overlay in a notebook."""
        buffer = io.BytesIO()
        self.overlay().save(buffer, "PNG")
        return buffer.getvalue()


def _finite_or_none(value: float | np.floating) -> float | None:
    return float(value) if np.isfinite(value) else None
