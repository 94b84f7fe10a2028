"""Records of explanations: one map with everything about it, and all maps of an image."""

from __future__ import annotations

from collections.abc import Iterable, KeysView, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xai_abn.errors import InvalidInputError, UnknownNameError, UnusableMapError
from xai_abn.files import replacing
from xai_abn.heatmaps import boxes_of, flaw_of, heatmap_of, positive_part, resized
from xai_abn.images.preprocess import Deferred
from xai_abn.images.volumes import nifti_bytes, read_affine, upright
from xai_abn.rendering import Panel, clip_bytes, overlay, png_bytes, stacked
from xai_abn.rendering import sheet as draw_sheet

#: Number of images of which a notebook shows the sheets.
SHOWN = 8


@dataclass(frozen=True, eq=False)
class Explanation:
    """A map of one image, volume or clip, with what it explains and how it was made.

    Attributes:
        map: (h, w) float32, or (d, h, w) of a volume or clip, at the layer's own resolution, in the method's own units;
            read-only.
        method: specification of the explainer, such as ``"grad-cam"`` or ``"rise:masks=500"``.
        target: class index that was explained (or, if not ``class_specific``, the predicted one).
        label: name of that class, or ``"class 7"`` for a model without labels.
        versus: index of the class compared with, or None.
        score: what was explained, from the same pass: the target's logit, or the difference of two.
        probability: its softmax probability, in [0, 1]; its sigmoid for a multi-label model; the probability of this
            class rather than the other if two are compared; NaN for a function of the output.
        predicted: index of the top-1 class; of a multi-label model the most probable.
        predicted_label: its name.
        class_specific: False if the map is the same for every class, as ABN's attention map.
        layer: name of the layer the map was read from.
        model: name of the model.
        parameters: the explainer's options.
        versions: of xai-abn and torch.
        source: where the image came from.
        notes: what to know about image, model and target, such as what was done to the image on reading it.
        seconds: wall time for this map: the image's share of the forward pass and of the method.
        view: (H, W, 3) uint8 RGB, the part of the image the network saw; of a volume or clip (D, H, W, 3), its slices
            or frames.
        top: the most probable classes with their probabilities, at most five, the first first; empty without
            probabilities.
        image_size: (height, width) of the whole image, of a clip (frames, height, width); None for a tensor.
        region: (left, top, right, bottom) of the view in the whole image, in pixels; None for a tensor.
        tensor: the map (h, w) with its history, on the network's device; None unless made with ``create_graph``.
        affine: (4, 4) of the NIfTI file that a volume came from, or None.
        limits: the smallest and the largest value that the map is drawn with; None: those of the map.
        class_label: name of the class ``target`` alone, where ``label`` also compares it or counts detections.
        backend: what computed the forward pass, and in which precision, such as ``"network, float32"``.
    """

    map: np.ndarray = field(repr=False)
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
    top: tuple[tuple[str, float], ...] = ()
    image_size: tuple[int, ...] | None = None
    region: tuple[float, float, float, float] | None = None
    tensor: Tensor | None = field(default=None, repr=False)
    affine: np.ndarray | None = field(default=None, repr=False)
    class_label: str = ""
    limits: tuple[float, float] | None = None
    backend: str = ""

    def __post_init__(self) -> None:
        """Make the map read-only: a frozen record should not change through its array."""
        self.map.flags.writeable = False

    @property
    def answer(self) -> str:
        """The label with its probability, or with its score if there is none."""
        certain = f"{self.probability:.1%}" if np.isfinite(self.probability) else f"score {self.score:.4g}"
        return f"{self.label}  {certain}"

    @property
    def flaw(self) -> str | None:
        """Why the map means nothing: ``"not finite"``, ``"flat"``, or None for a usable map."""
        return flaw_of(self.map)

    @property
    def has_parts(self) -> bool:
        """Whether the map shows evidence for its target anywhere: it has no flaw, and not only negative values."""
        return self.flaw is None and flaw_of(positive_part(self.map)) is None

    def heatmap(self, size: tuple[int, ...] | None = None) -> np.ndarray:
        """Return the map resized and scaled to [0, 1]; see :func:`xai_abn.heatmaps.heatmap_of`.

        Args:
            size: (height, width), or (depth, height, width); default that of ``view``. With ``image_size``, the map is
                that of the whole image, and 0 outside the part the network saw.

        Returns:
            The heatmap of that size, float32 in [0, 1].

        Raises:
            UnusableMapError: the map is flat or not finite.
            InvalidInputError: the size has another number of axes, or height and width other proportions than the view,
                which would distort the map.
        """
        size = tuple(size or self.view.shape[:-1])
        if len(size) != self.map.ndim:
            raise InvalidInputError(f"{self.source}: size must have {self.map.ndim} numbers, as the map, got {size}")
        *depth, height, width = size
        seen = _box_of(self.region) if self.region is not None and size == self.image_size else None
        rows, columns = self.view.shape[-3:-1]
        if seen is None and abs(height - rows / columns * width) > 1 + 0.01 * height:
            raise InvalidInputError(
                f"{self.source}: the network saw a part of {columns}x{rows} (width x height), "
                f"which has other proportions than {width}x{height}; give the size of the image, {self.image_size}, to "
                "get the map in its place"
            )
        try:
            if seen is None:
                return heatmap_of(self.map, size)
            left, top, right, bottom = seen
            whole = np.zeros(size, np.float32)
            seen_map = heatmap_of(self.map, (*depth, bottom - top, right - left))  # with borders, larger than the image
            inside = seen_map[..., max(-top, 0) : height - top, max(-left, 0) : width - left]
            whole[..., max(top, 0) : bottom, max(left, 0) : right] = inside
            return whole
        except UnusableMapError as error:
            raise UnusableMapError(f"{self.source}: {self.method} for {self.label!r}: {error}") from None

    def mask(self, threshold: float = 0.5) -> np.ndarray:
        """Return where the map is at least a share of its range, on the whole image.

        Of a map with negative values, only the positive ones count, from 0 to the largest.

        Args:
            threshold: share of the range from the smallest to the largest value, above 0 and at most 1.

        Returns:
            (height, width) bool, of the whole image; of a tensor or volume, of what the network saw, (depth, height,
            width). False where it did not look.

        Raises:
            UnusableMapError: the map is flat or not finite, or has no positive value.
            InvalidInputError: the threshold is out of range.
        """
        if not 0 < threshold <= 1:
            raise InvalidInputError(f"threshold must be above 0 and at most 1, got {threshold}")
        found: np.ndarray = replace(self, map=positive_part(self.map)).heatmap(self.image_size) >= threshold
        return found

    def boxes(self, threshold: float = 0.5, *, largest: bool = False) -> list[tuple[int, ...]]:
        """Return a box around each connected part of :meth:`mask`, the largest part first.

        Args:
            threshold: see :meth:`mask`.
            largest: return the box of the largest part alone.

        Returns:
            (left, top, right, bottom) in pixels of the whole image, right and bottom exclusive. Of a volume or clip
            (left, top, first, right, bottom, last): left and right along its last axis, first and last along its first.

        Raises:
            UnusableMapError, InvalidInputError: as for :meth:`mask`.

        Source: Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, section 3.2, who take
        the largest part above 20 % of the maximum.
        """
        found = boxes_of(self.mask(threshold))
        return found[:1] if largest else found

    @property
    def panel(self) -> Panel:
        """The map over its image, ready to be drawn."""
        view, map_ = self.view, self.map
        if self.affine is not None:
            view, map_ = upright(view, self.affine), upright(map_, self.affine)
        # the gradient of a probability vanishes where it saturates, so maps of several are not compared by their size
        scale = "" if self.score == self.probability else self.method
        return Panel(view, self.method, self._heading, map_, scale, self.limits)

    @property
    def _heading(self) -> str:
        """What the map explains, and what was predicted."""
        if not np.isfinite(self.probability) or self.versus is not None:
            return self.answer if self.class_specific else f"{self.answer} (same map for every output)"
        if self.target == self.predicted:
            return f"predicted: {self.answer}" + ("" if self.class_specific else " (same map for every class)")
        # an attribute can be present beside another that is more probable
        return self.answer if self.probability > 0.5 else f"{self.answer} (predicted: {self.predicted_label})"

    def overlay(self, **options: Any) -> Image.Image:
        """Return the map over the image, with heading and color bar; see :func:`xai_abn.rendering.overlay`."""
        return overlay(self.panel, **options)

    def save_clip(self, path: str | Path, **options: Any) -> None:
        """Save the slices or frames with their map one after another, as GIF or MP4 by the ending of the path.

        Args:
            path: replaced if it exists.
            options: ``colormap``, ``opacity`` and ``contour``, see :func:`xai_abn.rendering.overlay`.

        Raises:
            InvalidInputError: the map is of an image, or another ending.
        """
        content = clip_bytes(self.panel, Path(path).suffix.lower(), **options)
        with replacing(Path(path)) as draft:
            draft.write_bytes(content)

    def nifti(self, like: str | Path | None = None, *, zipped: bool = True) -> bytes:
        """Return the map, enlarged to the grid of the volume and in its own units, as the content of a NIfTI file.

        Args:
            like: a NIfTI file whose affine it gets, for a volume that was given as a tensor; its grid must be that of
                the tensor.
            zipped: as of ``.nii.gz``.

        Raises:
            InvalidInputError: the map is of an image or clip, no affine is known, or ``like`` has another grid.
        """
        size = self.view.shape[:-1]
        affine = self.affine if like is None else read_affine(like, size)
        if affine is None or self.map.ndim != 3:
            raise InvalidInputError(
                f"{self.source}: only the map of a volume from a NIfTI file can be saved as one; for a tensor give the "
                "file with its grid, as like=..."
            )
        return nifti_bytes(resized(self.map, size), affine, zipped=zipped)

    def save_nifti(self, path: str | Path, like: str | Path | None = None) -> None:
        """Save the map as a NIfTI file, ``.nii`` or ``.nii.gz``; see :meth:`nifti`."""
        content = self.nifti(like, zipped=str(path).endswith(".gz"))
        with replacing(Path(path)) as draft:
            draft.write_bytes(content)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the arrays as plain values, for JSON."""
        return {
            "source": self.source,
            "model": self.model,
            "method": self.method,
            "layer": self.layer,
            "target": self.target,
            "label": self.label,
            "class_label": self.class_label or self.label,
            "score": self.score,
            "probability": _finite_or_none(self.probability),
            "versus": self.versus,
            "predicted": self.predicted,
            "predicted_label": self.predicted_label,
            "top": [{"label": label, "probability": probability} for label, probability in self.top],
            "class_specific": self.class_specific,
            "image_size": None if self.image_size is None else list(self.image_size),
            "region": None if self.region is None else list(self.region),
            "view_size": list(self.view.shape[:-1]),
            "map_shape": list(self.map.shape),
            "map_min": _finite_or_none(self.map.min()),
            "map_max": _finite_or_none(self.map.max()),
            "flaw": self.flaw,
            "notes": list(self.notes),
            "parameters": dict(self.parameters),
            "versions": dict(self.versions),
            "backend": self.backend,
        }

    def _repr_png_(self) -> bytes:
        """Show the overlay in a notebook."""
        return png_bytes(self.overlay())


Explanation.view = Deferred("view")  # type: ignore[assignment]


class ImageExplanations(dict[str | tuple[str, str], Explanation]):
    """The explanations of one image.

    Keys are the specifications of the methods, such as ``"grad-cam"``; with several targets, (method, label) for
    methods whose map depends on the target. :meth:`get` finds an explanation by method and target in both cases.
    """

    def get(self, method: str | tuple[str, str], target: str | int | None = None) -> Explanation | None:  # type: ignore[override]
        """Return the explanation of a method, or None if there is none.

        Args:
            method: a key, or the specification of a method.
            target: label or class index of the target; a map that is the same for every class fits all targets.
        """
        if target is None:
            return super().get(method)
        found = [e for e in self.values() if e.method == method]
        return next((e for e in found if not e.class_specific or target in (e.label, e.target)), None)

    def __missing__(self, key: object) -> Explanation:
        """Refuse a key that is not there.

        Raises:
            UnknownNameError: the message suggests the nearest keys.
        """
        raise UnknownNameError("explanation", str(key), map(str, self))

    def __repr__(self) -> str:
        """Return the keys; the maps are arrays too long to print."""
        return f"{type(self).__name__}({', '.join(map(repr, self))})"

    def sheet(self, **options: Any) -> Image.Image:
        """Return the image and all its maps side by side; see :func:`sheet`."""
        return sheet(list(self.values()), **options)

    def _repr_png_(self) -> bytes:
        """Show the sheet in a notebook."""
        return png_bytes(self.sheet())


class Explanations(list[ImageExplanations]):
    """The explanations of several images, in order.

    For a single image, its keys can be used directly: ``explain(model, "cat.jpg")["abn"]`` is
    ``explain(model, "cat.jpg")[0]["abn"]``; ``in``, ``get`` and ``keys`` do the same.
    """

    @property
    def only(self) -> ImageExplanations:
        """The explanations of the single image.

        Raises:
            InvalidInputError: there is no image, or more than one.
        """
        if len(self) != 1:
            raise InvalidInputError(f"there are {len(self)} images; choose one first, as in result[0]['grad-cam']")
        return super().__getitem__(0)

    @overload  # type: ignore[override]
    def __getitem__(self, key: int) -> ImageExplanations: ...
    @overload
    def __getitem__(self, key: slice) -> list[ImageExplanations]: ...
    @overload
    def __getitem__(self, key: str | tuple[str, str]) -> Explanation: ...
    def __getitem__(self, key: Any) -> Any:
        """Return the explanations of an image by position, or of the single image by key.

        Raises:
            InvalidInputError: a key was given, but there are several images.
        """
        return self.only[key] if isinstance(key, (str, tuple)) else super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        """Return whether the single image has this key, or whether an image's explanations are in the list."""
        return key in self.only if isinstance(key, (str, tuple)) else super().__contains__(key)

    def get(self, method: str | tuple[str, str], target: str | int | None = None) -> Explanation | None:
        """Return the explanation of a method for the single image; see :meth:`ImageExplanations.get`."""
        return self.only.get(method, target)

    def tensors(self, method: str | None = None, target: str | int | None = None) -> Tensor:
        """Return the maps of all images, with their history, of ``explain(..., create_graph=True)``.

        Args:
            method: specification of the method; may be left out if there is one.
            target: label or class index, if images have several targets.

        Returns:
            (N, h, w), in the method's own units, on the network's device.

        Raises:
            InvalidInputError: the maps were made without ``create_graph``, an image has no such map, several methods
                were asked, or the images have maps of different sizes.
        """
        methods = list(dict.fromkeys(e.method for image in self for e in image.values()))
        if method is None and len(methods) != 1:
            raise InvalidInputError(f"name one of the methods: {', '.join(methods) or 'there are none'}")
        found = [image.get(method or methods[0], target) for image in self]
        if not found or None in found:
            raise InvalidInputError(f"not every image has one map of {method or methods[0]}; name method and target")
        tensors = [e.tensor for e in found if e is not None and e.tensor is not None]
        if len(tensors) < len(found):
            raise InvalidInputError("the maps have no history; make them with explain(..., create_graph=True)")
        if len({t.shape for t in tensors}) > 1:
            raise InvalidInputError("the images have maps of different sizes; give images of one size")
        return torch.stack(tensors)

    def keys(self) -> KeysView[str | tuple[str, str]]:
        """Return the keys of the single image."""
        return self.only.keys()

    def _repr_png_(self) -> bytes | None:
        """Show the sheets of the first images in a notebook, one below the other; the text says how many there are."""
        sheets = [one.sheet() for one in self[:SHOWN] if one]
        return png_bytes(stacked(sheets)) if sheets else None

    def __repr__(self) -> str:
        """Return the number of images and the keys of each; the maps are too long to print."""
        return f"{type(self).__name__} of {len(self)} images: {list(self)!r}"


def sheet(explanations: Iterable[Explanation], **options: Any) -> Image.Image:
    """Draw an image and several maps of it side by side, at most six a row; of volumes and clips, two.

    Maps of several targets by one method are drawn on one scale, except those of a probability.

    Args:
        explanations: of one image, at least one.
        options: ``colormap``, ``opacity`` and ``contour``, see :func:`xai_abn.rendering.overlay`.

    Raises:
        InvalidInputError: no explanation, or explanations of several images.
    """
    records: Sequence[Explanation] = list(explanations)
    if not records:
        raise InvalidInputError("a sheet needs at least one explanation")
    first = records[0]
    if any(e.source != first.source or e.view.shape != first.view.shape for e in records):
        raise InvalidInputError("a sheet shows one image; the explanations are of several")
    answer = next((e.answer for e in records if (e.target, e.versus) == (e.predicted, None)), first.predicted_label)
    values = all(np.isnan(e.probability) for e in records)  # a score is no prediction of a class
    shown = ", ".join(dict.fromkeys(e.answer for e in records)) if values else f"predicted: {answer}"
    image = Panel(first.panel.view, first.model, shown)
    return draw_sheet([image, *(e.panel for e in records)], **options)


def _box_of(region: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
    left, top, right, bottom = (round(value) for value in region)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _finite_or_none(value: float | np.floating) -> float | None:
    return float(value) if np.isfinite(value) else None
