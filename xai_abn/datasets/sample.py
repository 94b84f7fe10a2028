"""Data sets and their samples, and the registry of readers."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict
from urllib.parse import unquote

import numpy as np
import torch
from torch import Tensor

from xai_abn.errors import DatasetError, ImageLoadError, InvalidInputError, XaiAbnError, XaiAbnWarning, shown
from xai_abn.images.loading import LoadedImage, from_array, load_image
from xai_abn.images.preprocess import Preprocess
from xai_abn.metrics.objects import Objects, box_mask
from xai_abn.registry import Registry

_log = logging.getLogger(__name__)

#: A box may reach this many pixels beyond the edge of the image; it is clipped.
EDGE_TOLERANCE = 2.0
#: Outlines longer than this many pixels are refused: pycocotools takes about 50 bytes for each, and dies without them.
LONGEST_OUTLINE = 2_000_000
#: Share of an outline that lies at least in the box of its object; boxes may also hold hidden parts.
_SMALLEST_SHARE = 0.5

Region = tuple[float, float, float, float]


class AlikeClassesWarning(XaiAbnWarning):
    """Given when the names of two classes differ only in case."""


class RunLengths(TypedDict):
    """A mask in COCO's run-length encoding.

    Attributes:
        size: height and width of the image.
        counts: run lengths, column by column, background first; or COCO's compressed string.
    """

    size: list[int]
    counts: list[int] | str


#: Polygons, each a flat sequence x, y, x, y, ...; or run lengths.
Outline = tuple[tuple[float, ...], ...] | RunLengths


@dataclass(frozen=True, slots=True)
class AnnotatedObject:
    """One object, in pixels of the upright image.

    Attributes:
        label: name of its class in the data set.
        box: left, top, right, bottom; right and bottom are exclusive.
        outline: polygons or run lengths; empty if only the box is known.
        difficult: VOC's flag.
        crowd: whether the annotation covers many objects of the class at once.
    """

    label: str
    box: Region
    outline: Outline = ()
    difficult: bool = False
    crowd: bool = False

    def mask(self, size: tuple[int, int]) -> Tensor:
        """Return the object's pixels as a bool tensor (H, W) in an image of that size.

        Outlines are drawn by pycocotools. Without an outline, or if the outline has no pixel, the box is filled.

        Raises:
            DatasetError: the run lengths belong to an image of another size, or polygons are too long to be drawn.
        """
        mask = _draw(self.outline, size) if self.outline else np.zeros(size, bool)
        return torch.from_numpy(mask) if mask.any() else box_mask(torch.tensor(self.box), size)


def _draw(outline: Outline, size: tuple[int, int]) -> np.ndarray:
    """Return the pixels of an outline, (H, W) bool."""
    from pycocotools import mask as coco

    if not isinstance(outline, dict):
        _check_length(outline)
        runs = coco.merge(coco.frPyObjects([list(polygon) for polygon in outline], *size))
        return np.asarray(coco.decode(runs), bool)
    height, width = size
    if tuple(outline["size"]) != size:
        raise DatasetError(f"the mask is {outline['size'][1]}x{outline['size'][0]}, the image {width}x{height} pixels")
    counts = outline["counts"]
    try:
        if isinstance(counts, list) and not all(0 <= count <= height * width for count in counts):
            raise OverflowError  # earlier versions of numpy would wrap it
        runs = coco.frPyObjects(outline, *size) if isinstance(counts, list) else outline
        mask = coco.decode(runs)
    except (OverflowError, ValueError) as error:
        raise DatasetError(f"the run lengths of the mask cover more than {width}x{height} pixels") from error
    try:  # decode leaves pixels undefined that no run covers, and refuses runs that are too long
        coco.decode({"size": [height * width - 1, 1], "counts": runs["counts"]})
    except ValueError:
        return np.asarray(mask, bool)
    raise DatasetError(f"the run lengths of the mask cover fewer than {width}x{height} pixels")


def _check_length(polygons: Sequence[Sequence[float]]) -> None:
    """Refuse polygons that are long, or far away, in pixels."""
    length = 0.0
    for polygon in polygons:
        corners = np.asarray(polygon, float).reshape(-1, 2)
        with np.errstate(over="ignore"):
            ways = np.diff(corners, axis=0, prepend=0, append=corners[:1])  # from the corner of the image, and back
            length += float(np.abs(ways).max(axis=1).sum())
    if not length <= LONGEST_OUTLINE:
        raise DatasetError(f"the outline is {length:.2g} pixels long, more than {LONGEST_OUTLINE:,}; give it in pixels")


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and what is known about it. A reader of images that are not files overrides the first two methods.

    Attributes:
        source: path of the image, or a name for messages.
        objects: annotated objects.
        label: class of the whole image.
        attributes: names of the attributes that the image has; None if the data set has classes.
        group: what must not be divided among splits, such as a person.
        size: (H, W) of the image that was annotated, if the annotation says so.
        upright: whether the annotation is of the image as it is shown, turned by its EXIF orientation; otherwise of the
            stored pixels, and the image is not turned.
    """

    source: str
    objects: tuple[AnnotatedObject, ...] = ()
    label: str | None = None
    attributes: tuple[str, ...] | None = None
    group: str | None = None
    size: tuple[int, int] | None = None
    upright: bool = True

    def load(self) -> LoadedImage:
        """Read the image.

        Raises:
            ImageLoadError: the image cannot be read.
        """
        return load_image(self.source, upright=self.upright)

    def content(self) -> Iterator[bytes]:
        """Yield the bytes that the image is made from.

        Raises:
            ImageLoadError: there is no such file.
        """
        try:
            yield Path(self.source).read_bytes()
        except OSError as error:
            raise ImageLoadError(f"{self.source}: {error.strerror or error}") from error

    @property
    def classes(self) -> tuple[str, ...]:
        """Every class present, each once, in order of appearance."""
        labels = [self.label] if self.label is not None else []
        return tuple(dict.fromkeys([*labels, *(o.label for o in self.objects)]))

    def digest(self) -> str:
        """Return a hash of the image's bytes and of its annotations. Benchmark runs store it.

        Raises:
            ImageLoadError: there is no such file.
        """
        # The text is that of run format 1: another text would measure every image of an existing run again.
        things = [
            f"AnnotatedObject(label={thing.label!r}, box={thing.box!r}, "
            + (f"outline={json.dumps(thing.outline)}, " if thing.outline else "polygons=(), runs=(), ")
            + f"difficult={thing.difficult!r}, crowd={thing.crowd!r})"
            for thing in self.objects
        ]
        text = f"({self.label!r}, ({', '.join(things)}{',' if len(things) == 1 else ''}))"
        found = hashlib.sha256((text if self.upright else f"{text} as stored").encode())
        for content in self.content():
            found.update(content)
        return found.hexdigest()[:32]

    def check(self, size: tuple[int, int]) -> None:
        """Refuse annotations that do not fit an image of (H, W) pixels.

        Raises:
            DatasetError: the annotation is of an image of another size, a box is empty or outside the image, or an
                outline has another size or place or is too long; the message names the object.
        """
        height, width = size
        if self.size is not None and self.size != size:
            turned = self.size == (width, height) and self.upright
            what_to_do = "annotate the image as it is, or put the annotated one in its place"
            if turned:
                what_to_do = "if it was annotated as stored, without its EXIF orientation, give --exif ignore"
            raise DatasetError(
                f"{self.source}: the annotation is of {self.size[1]}x{self.size[0]} pixels, the image has "
                f"{width}x{height}; {what_to_do}"
            )
        if self.objects and all(0 < max(thing.box) <= 1 for thing in self.objects):
            raise DatasetError(
                f"{self.source}: all boxes lie within 0 to 1 and look like shares of the image; give them in pixels"
            )
        for thing in self.objects:
            left, top, right, bottom = thing.box
            where = f"{self.source}: box {left:g} {top:g} {right:g} {bottom:g} of {thing.label!r}"
            if not all(np.isfinite(thing.box)) or right <= left or bottom <= top:
                raise DatasetError(f"{where} has no area; correct the annotation or leave the object out")
            edge = EDGE_TOLERANCE
            if left < -edge or top < -edge or right > width + edge or bottom > height + edge:
                raise DatasetError(f"{where} reaches outside the image ({width}x{height} pixels)")
            try:
                if isinstance(thing.outline, dict):
                    thing.mask(size)
                else:
                    _check_length(thing.outline)
            except DatasetError as error:
                raise DatasetError(f"{where}: {error}") from error
            polygons = thing.outline and not isinstance(thing.outline, dict)
            if polygons and _share_inside(thing, size) < _SMALLEST_SHARE:
                raise DatasetError(f"{where}: its outline lies elsewhere; was only one of them scaled with the image?")

    def on_grid(
        self,
        image: tuple[int, int],
        region: Region,
        grid: tuple[int, int],
        classes: Sequence[str] | None = None,
    ) -> Objects | None:
        """Return the objects as a network sees them.

        Args:
            image: (H, W) of the image.
            region: left, top, right, bottom of the visible part, in pixels of the image.
            grid: (H, W) of the pixel grid onto which the region is resized.
            classes: keep only objects of these classes; default: all.

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
            mask = _mask_on_grid(thing, image, region, grid) if thing.outline else box_mask(box, grid)
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


def _mask_on_grid(thing: AnnotatedObject, image: tuple[int, int], region: Region, grid: tuple[int, int]) -> Tensor:
    """Return an outlined object's mask on the grid, by nearest neighbor.

    An outline so small that no grid pixel samples it marks the grid pixels it lies in.
    """
    left, top, right, bottom = region
    rows = ((torch.arange(grid[0]) + 0.5) * (bottom - top) / grid[0] + top).floor().long().clamp(0, image[0] - 1)
    columns = ((torch.arange(grid[1]) + 0.5) * (right - left) / grid[1] + left).floor().long().clamp(0, image[1] - 1)
    outline = thing.mask(image)
    mask = outline[rows][:, columns]
    if not bool(mask.any()):
        y, x = outline.nonzero(as_tuple=True)
        row = ((y + 0.5 - top) * grid[0] / (bottom - top)).floor().long()
        column = ((x + 0.5 - left) * grid[1] / (right - left)).floor().long()
        inside = (row >= 0) & (row < grid[0]) & (column >= 0) & (column < grid[1])
        mask[row[inside], column[inside]] = True
    return mask


@dataclass(frozen=True, eq=False, slots=True)
class _ArraySample(Sample):
    pixels: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8), repr=False)

    def load(self) -> LoadedImage:
        return from_array(self.pixels, self.source)

    def content(self) -> Iterator[bytes]:
        yield self.pixels.tobytes()


def _share_inside(thing: AnnotatedObject, size: tuple[int, int]) -> float:
    """Return the share of the rectangle around an object's polygons that lies in its box, as far as in the image."""
    corners = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in thing.outline])
    limits = np.array([size[1], size[0]])
    low, high = (np.clip(ends, 0, limits) for ends in (corners.min(axis=0) - 0.5, corners.max(axis=0) + 0.5))
    left, top, right, bottom = thing.box
    inside = np.minimum(high, (right + EDGE_TOLERANCE, bottom + EDGE_TOLERANCE)) - np.maximum(
        low, (left - EDGE_TOLERANCE, top - EDGE_TOLERANCE)
    )
    area = float(np.prod(high - low))
    return float(np.prod(np.maximum(inside, 0))) / area if area else 0.0


class ImageFinder:
    """Finds the files that annotations name, in the folders where tools put them.

    Args:
        folders: where to look, in order.
        names: every name that the annotations hold, so that a name without its folders is only used if it is unique.
    """

    def __init__(self, folders: Sequence[Path], names: Sequence[str] = ()) -> None:
        self.folders = list(dict.fromkeys(folders))
        self._bare = Counter(_bare(name) for name in names)

    def find(self, name: str) -> Path | None:
        """Return the file with a name as it is, with its %-codes replaced, or without its folders; else None."""
        variants = [name, unquote(name)]
        if self._bare[_bare(name)] <= 1:
            variants += [_bare(name), unquote(_bare(name))]
        places = (folder / variant for variant in dict.fromkeys(variants) for folder in self.folders)
        return next((place for place in places if _is_file(place)), None)

    def missing(self, name: str) -> str:
        """Return where a name was looked for, for messages."""
        return f"no such file; looked for it in {', '.join(map(str, self.folders))}"


def _bare(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name longer than the file system takes, or with a null byte
        return False


class ArraySamples(Sequence[Sample]):
    """Labeled images of one size in memory.

    Args:
        name: for messages; sample i is called ``name[i]``.
        pixels: (N, H, W, 3) uint8.
        labels: N class names.
    """

    def __init__(self, name: str, pixels: np.ndarray, labels: Sequence[str]) -> None:
        self.name, self.pixels, self.labels = name, pixels, labels

    def __len__(self) -> int:
        """Return N."""
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        """Return one sample."""
        return _ArraySample(f"{self.name}[{index}]", label=self.labels[index], pixels=self.pixels[index])


class SampleSubset(Sequence[Sample]):
    """Some samples of a sequence.

    Args:
        whole: the sequence; a subset of a subset refers to the sequence behind both.
        indices: indices of the samples.
    """

    def __init__(self, whole: Sequence[Sample], indices: Sequence[int]) -> None:
        self.whole: Sequence[Sample] = whole
        self.indices: Sequence[int] = indices
        if isinstance(whole, SampleSubset):
            self.whole, self.indices = whole.whole, [whole.indices[i] for i in indices]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        """Return one sample."""
        return self.whole[self.indices[index]]


@dataclass(frozen=True)
class Dataset:
    """A data set: what ``train``, ``distill`` and ``benchmark`` read.

    Attributes:
        kind: name of its reader, such as ``"coco"``.
        splits: samples by ``"train"``, ``"validation"`` and ``"test"``, in a fixed order; a data set that is not
            divided has all its samples in ``"train"``. A sequence that reads samples on demand may have a method
            ``fingerprint() -> str`` of its own.
        class_names: every class, or every attribute.
        wnids: WordNet ids of the ImageNet-1k classes that a class corresponds to, for classes that have any.
        problems: (source, reason) of images that are listed but cannot be used.
        image_size: side in pixels at which every network must see the images, as for grids of images.
        preprocess: how networks trained on it see its images; default: ImageNet's mean and standard deviation at the
            size requested.
        max_shift: for data whose images should be seen whole, such as faces: largest shift in training, as a share of
            the side. Such data is kept in memory if it fits, and cropped little otherwise.
    """

    kind: str
    splits: Mapping[str, Sequence[Sample]]
    class_names: tuple[str, ...] = ()
    wnids: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    problems: tuple[tuple[str, str], ...] = ()
    image_size: int | None = None
    preprocess: Preprocess | None = None
    max_shift: float | None = None

    @property
    def samples(self) -> Sequence[Sample]:
        """The samples that a benchmark measures: those of the test split, else validation, else train."""
        return next((self.splits[part] for part in ("test", "validation", "train") if self.splits.get(part)), ())


#: Functions from PLACE, the text behind the colon of ``KIND:PLACE``, to a :class:`Dataset`.
READERS: Registry[Callable[[str], Dataset]] = Registry("data set", "xai_abn.datasets")


def read_dataset(spec: str, images: str | Path | None = None) -> Dataset:
    """Read a data set.

    Args:
        spec: ``KIND:PLACE``, such as ``coco:DIR`` or ``images:DIR``; the kinds are ``READERS.names()``.
        images: folder of the images that the annotations name, for readers that take one as their argument ``images``;
            default: where the tools that write such annotations put them.

    Raises:
        UnknownNameError: there is no such kind.
        InvalidInputError: ``images`` for a reader that does not take it.
        DatasetError: nothing is there, annotations are damaged, or no image can be used.
    """
    kind, colon, place = spec.partition(":")
    if not colon or not place:
        hint = f"; did you mean images:{spec}?" if os.path.isdir(spec) else ""
        names = ", ".join(READERS)
        raise DatasetError(f"data must be KIND:PLACE with KIND one of {names}, got {shown(repr(spec))}{hint}")
    reader: Callable[..., Dataset] = READERS[kind]
    if images is not None and "images" not in inspect.signature(reader).parameters:
        raise InvalidInputError(f"the folder of images is given by PLACE in {kind}:PLACE; leave --images out")
    try:
        data = reader(place) if images is None else reader(place, images=Path(images))
    except XaiAbnError:
        raise
    except OSError as error:  # a folder that may not be read, or a name longer than the file system takes
        where = shown(str(error.filename or place))
        raise DatasetError(f"{where}: cannot be read ({error.strerror or error}); give another place") from error
    if not any(len(samples) for samples in data.splits.values()):
        first = ": ".join(data.problems[0]) if data.problems else ""
        reasons = f"; {len(data.problems)} are listed but unusable, the first {first}" if first else ""
        raise DatasetError(f"{spec}: no images{reasons}")
    _warn_of_case(data.class_names, spec)
    sizes = ", ".join(f"{len(samples)} {split}" for split, samples in data.splits.items())
    _log.info("read %s: %s, %d classes, %d unusable", spec, sizes, len(data.class_names), len(data.problems))
    return data


def _warn_of_case(names: Sequence[str], spec: str) -> None:
    """Warn of classes whose names differ only in case or blanks at their ends."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(name.strip().casefold(), []).append(name)
    several = [" and ".join(map(repr, group)) for group in alike.values() if len(group) > 1]
    if several:
        warnings.warn(
            AlikeClassesWarning(
                f"{spec}: {', '.join(several[:3])} are different classes, but their names differ only in case; make "
                "them one if they are the same"
            ),
            stacklevel=3,
        )
