"""Photos with annotated objects, whatever file they come from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from xai_abn.errors import DatasetError, ImageLoadError
from xai_abn.images.loading import LoadedImage, load_image
from xai_abn.metrics.objects import Objects, box_mask
from xai_abn.registry import Registry

#: A box may reach this many pixels over the photo's edge before it counts as wrong; it is clipped.
EDGE_TOLERANCE = 2.0


@dataclass(frozen=True)
class AnnotatedObject:
    """One object, in pixels of the photo as stored upright.

    Attributes:
        label: the data set's name of its class.
        box: left, top, right, bottom; right and bottom exclusive.
        polygons: outlines as flat x, y, x, y ... sequences; empty where only the box is known.
        runs: COCO's uncompressed run lengths (column by column, background first); else empty.
        difficult: VOC's flag.
        crowd: the annotation covers many objects of the class at once.
    """

    label: str
    box: tuple[float, float, float, float]
    polygons: tuple[tuple[float, ...], ...] = ()
    runs: tuple[int, ...] = ()
    difficult: bool = False
    crowd: bool = False

    def mask(self, size: tuple[int, int]) -> Tensor:
        """Return the object's pixels (H, W) bool on the photo's own grid: its outline, or its filled box.

        A pixel belongs to a polygon if its centre is inside; several polygons are united. Both can differ
        from COCO's own tool by single pixels along the edge. An outline around no pixel centre gives the box.

        Raises:
            DatasetError: the run lengths do not add up to the photo's pixels.
        """
        mask = np.zeros(size, bool)
        if self.runs:
            mask = _unroll(self.runs, size)
        for outline in self.polygons:
            mask |= _fill(outline, size)
        return torch.from_numpy(mask) if mask.any() else box_mask(torch.tensor(self.box), size)


def _unroll(runs: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Return COCO's run lengths as a bool array (H, W)."""
    height, width = size
    if sum(runs) != height * width:
        raise DatasetError(f"run lengths cover {sum(runs)} pixels, the photo has {width}x{height}; mend the annotation")
    values = np.repeat(np.arange(len(runs)) % 2, runs).astype(bool)
    return np.ascontiguousarray(values.reshape(width, height).T)


def _fill(outline: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """Return the pixels (H, W) bool whose centre is inside one closed outline (even-odd rule)."""
    height, width = size
    crossings = np.zeros((height, width + 1), np.int32)
    points = np.array(outline, float).reshape(-1, 2)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        first, end = (int(np.clip(np.ceil(y - 0.5), 0, height)) for y in (min(y0, y1), max(y0, y1)))
        if first < end:
            rows = np.arange(first, end)
            x = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            crossings[rows, np.clip(np.ceil(x - 0.5), 0, width).astype(int)] += 1
    return crossings.cumsum(axis=1)[:, :width] % 2 == 1


@dataclass(frozen=True)
class AnnotatedImage:
    """One photo and what is known about it.

    Attributes:
        source: path of the photo.
        objects: annotated objects; empty where none are annotated.
        label: class of the whole photo, where the data set has one.
    """

    source: str
    objects: tuple[AnnotatedObject, ...] = ()
    label: str | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Every class present, each once, in order of appearance."""
        labels = [self.label] if self.label is not None else []
        return tuple(dict.fromkeys([*labels, *(o.label for o in self.objects)]))

    def load(self) -> LoadedImage:
        """Read the photo.

        Raises:
            ImageLoadError: it cannot be read.
        """
        return load_image(self.source)

    def digest(self) -> str:
        """Return a hash of the photo's file and of its annotations.

        Raises:
            ImageLoadError: there is no such file.
        """
        content = hashlib.sha256(repr((self.label, self.objects)).encode())
        for path in self.files:
            try:
                content.update(Path(path).read_bytes())
            except OSError as error:
                raise ImageLoadError(f"{path}: {error.strerror or error}") from error
        return content.hexdigest()[:32]

    @property
    def files(self) -> tuple[str, ...]:
        """The files that the photo is made from."""
        return (self.source,)

    def check(self, size: tuple[int, int]) -> None:
        """Refuse boxes that are empty or not on a photo of (H, W) pixels, and run lengths of another size.

        Raises:
            DatasetError: the message names the object.
        """
        height, width = size
        for thing in self.objects:
            left, top, right, bottom = thing.box
            where = f"{self.source}: box {left:g} {top:g} {right:g} {bottom:g} of {thing.label!r}"
            if not all(np.isfinite(thing.box)) or right <= left or bottom <= top:
                raise DatasetError(f"{where} has no area; mend the annotation or leave the object out")
            edge = EDGE_TOLERANCE
            if left < -edge or top < -edge or right > width + edge or bottom > height + edge:
                raise DatasetError(f"{where} reaches outside the photo ({width}x{height} pixels)")
            if thing.runs and sum(thing.runs) != height * width:
                raise DatasetError(
                    f"{where}: its run lengths cover {sum(thing.runs)} pixels, the photo has {width}x{height}"
                )

    def on_grid(
        self,
        photo: tuple[int, int],
        region: tuple[float, float, float, float],
        grid: tuple[int, int],
        classes: Sequence[str] | None = None,
    ) -> Objects | None:
        """Return the objects as a network saw them.

        Args:
            photo: (H, W) of the photo.
            region: left, top, right, bottom of the part seen, in pixels of the photo.
            grid: (H, W) of the pixel grid that the region is put on.
            classes: keep only objects of these; default all.

        Returns:
            The objects with at least one pixel inside the region, or None if there is none.
        """
        left, top, right, bottom = region
        scale = torch.tensor([grid[1] / (right - left), grid[0] / (bottom - top)] * 2)
        masks, boxes, kept = [], [], []
        for thing in self.objects:
            if classes is not None and thing.label not in classes:
                continue
            box = (torch.tensor(thing.box) - torch.tensor([left, top, left, top])) * scale
            if box[2] <= 0 or box[3] <= 0 or box[0] >= grid[1] or box[1] >= grid[0]:
                continue
            mask = _seen(thing, photo, region, grid, box)
            if not bool(mask.any()):
                continue
            masks.append(mask)
            boxes.append(box)
            kept.append(thing)
        if not kept:
            return None
        difficult = torch.tensor([t.difficult for t in kept])
        single = torch.tensor([not t.crowd for t in kept])
        return Objects(torch.stack(masks), torch.stack(boxes), difficult, single)


def _seen(
    thing: AnnotatedObject,
    photo: tuple[int, int],
    region: tuple[float, float, float, float],
    grid: tuple[int, int],
    box: Tensor,
) -> Tensor:
    """Return one object's mask on the grid: its outline moved by nearest neighbour, or its box.

    An outline too small to be met by a grid pixel marks those it lies in; one outside the region gives no pixel.
    """
    if not thing.polygons and not thing.runs:
        return box_mask(box, grid)
    left, top, right, bottom = region
    rows = ((torch.arange(grid[0]) + 0.5) * (bottom - top) / grid[0] + top).floor().long().clamp(0, photo[0] - 1)
    columns = ((torch.arange(grid[1]) + 0.5) * (right - left) / grid[1] + left).floor().long().clamp(0, photo[1] - 1)
    outline = thing.mask(photo)
    mask = outline[rows][:, columns]
    if not bool(mask.any()):
        y, x = outline.nonzero(as_tuple=True)
        row = ((y + 0.5 - top) * grid[0] / (bottom - top)).floor().long()
        column = ((x + 0.5 - left) * grid[1] / (right - left)).floor().long()
        inside = (row >= 0) & (row < grid[0]) & (column >= 0) & (column < grid[1])
        mask[row[inside], column[inside]] = True
    return mask


@dataclass(frozen=True)
class AnnotatedData:
    """A set of annotated photos.

    Attributes:
        kind: how it is named on the command line, such as ``"coco"``.
        images: the photos, in a fixed order.
        class_names: every class of the set.
        wnids: for classes that correspond to ImageNet-1k classes, their WordNet ids; classes that have no
            counterpart are left out.
        problems: (source, reason) of photos that are listed but cannot be used.
        picture_size: side in pixels at which a network must see the pictures, as grids of photos; else its own.
    """

    kind: str
    images: tuple[AnnotatedImage, ...]
    class_names: tuple[str, ...]
    wnids: dict[str, tuple[str, ...]] = field(default_factory=dict)
    problems: tuple[tuple[str, str], ...] = ()
    picture_size: int | None = None


#: Readers of data sets by the word before the colon in ``--data``: path -> AnnotatedData.
datasets: Registry = Registry("data set", "xai_abn.datasets")


def read_data(spec: str) -> AnnotatedData:
    """Read annotated photos.

    Args:
        spec: ``KIND:PATH``, such as ``coco:DIR``, ``voc:DIR``, ``imagenet-boxes:CSV`` or ``folder:DIR``.

    Raises:
        DatasetError: no such kind, nothing there, damaged annotations, or no photos.
    """
    kind, colon, path = spec.partition(":")
    if not colon or not path:
        raise DatasetError(f"data must be KIND:PATH with KIND one of {', '.join(datasets)}, got {spec!r}")
    data: AnnotatedData = datasets.get(kind)(path)
    if not data.images:
        reasons = f"; {len(data.problems)} are listed but unusable, as {data.problems[0][1]}" if data.problems else ""
        raise DatasetError(f"{spec}: no photos{reasons}")
    return data
