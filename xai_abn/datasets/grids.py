"""Grids of single-class images: several objects whose places are known without any box."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from PIL import Image, ImageOps

from xai_abn.datasets.sample import AnnotatedObject, Dataset, Sample
from xai_abn.errors import DatasetError
from xai_abn.images.loading import LoadedImage


@dataclass(frozen=True)
class Grid(Sample):
    """Images of different classes set side by side, row by row.

    Attributes:
        tiles: the images.
        cell: side of a cell in pixels.
    """

    tiles: tuple[Sample, ...] = ()
    cell: int = 224

    def load(self) -> LoadedImage:
        """Read the images and set them into the grid, each cropped to its center square.

        Raises:
            ImageLoadError: one of them cannot be read.
        """
        side = round(len(self.tiles) ** 0.5)
        page = Image.new("RGB", (side * self.cell, side * self.cell))
        for place, tile in enumerate(self.tiles):
            fitted = ImageOps.fit(tile.load().image, (self.cell, self.cell), Image.Resampling.BICUBIC)
            page.paste(fitted, (place % side * self.cell, place // side * self.cell))
        return LoadedImage(page, self.source)

    def content(self) -> Iterator[bytes]:
        """Yield the bytes of the tiles."""
        for tile in self.tiles:
            yield from tile.content()


def make_grids(data: Dataset, side: int, cell: int = 224, seed: int = 0) -> Dataset:
    """Set the images of a data set into grids of side x side cells, each of another class.

    Images are shuffled, and each is used at most once. Images left over when no further grid can be filled with
    different classes are not used.

    Args:
        data: each image has a ``label``.
        side: cells per side, at least 2.
        cell: side of a cell in pixels, preferably the network's input size.
        seed: seed of the shuffle.

    Raises:
        DatasetError: images without a class, or too few classes for one grid.

    Source: Boehle et al., CVPR 2021 (GridPG), on all images in place of confidently classified ones.
    """
    if side < 2:
        raise DatasetError(f"a grid needs at least 2 cells per side, got {side}")
    waiting = list(data.samples)
    if any(sample.label is None for sample in waiting):
        raise DatasetError(f"grids need images with one class each; {data.kind} has images without")
    random.Random(seed).shuffle(waiting)
    grids: list[Sample] = []
    while True:
        chosen = list({sample.label: sample for sample in reversed(waiting)}.values())[::-1][: side * side]
        if len(chosen) < side * side:
            break
        waiting = [sample for sample in waiting if sample not in chosen]
        grids.append(_grid(chosen, side, cell, len(grids)))
    if not grids:
        raise DatasetError(f"a {side}x{side} grid needs images of {side * side} classes; {data.kind} has fewer")
    return replace(data, kind=f"{data.kind} in {side}x{side} grids", splits={"test": grids}, image_size=side * cell)


def _grid(tiles: list[Sample], side: int, cell: int, number: int) -> Grid:
    cells = []
    for place, sample in enumerate(tiles):
        left, top = place % side * cell, place // side * cell
        cells.append(AnnotatedObject(str(sample.label), (left, top, left + cell, top + cell)))
    return Grid(f"grid-{number:04d}", tuple(cells), tiles=tuple(tiles), cell=cell)
