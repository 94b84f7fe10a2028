"""Grids of single-class photos: several objects whose places are known without any box."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from PIL import Image, ImageOps

from xai_abn.datasets.annotated import AnnotatedData, AnnotatedImage, AnnotatedObject
from xai_abn.errors import DatasetError
from xai_abn.images.loading import LoadedImage, load_image


@dataclass(frozen=True)
class Grid(AnnotatedImage):
    """Photos of different classes set side by side, row by row.

    Attributes:
        tiles: paths of the photos.
        cell: side of a cell in pixels.
    """

    tiles: tuple[str, ...] = ()
    cell: int = 224

    def load(self) -> LoadedImage:
        """Read the photos and set them into the grid, each cropped to its middle square.

        Raises:
            ImageLoadError: one of them cannot be read.
        """
        side = round(len(self.tiles) ** 0.5)
        page = Image.new("RGB", (side * self.cell, side * self.cell))
        for place, path in enumerate(self.tiles):
            tile = ImageOps.fit(load_image(path).image, (self.cell, self.cell), Image.Resampling.BICUBIC)
            page.paste(tile, (place % side * self.cell, place // side * self.cell))
        return LoadedImage(page, self.source)

    @property
    def files(self) -> tuple[str, ...]:
        """The tiles' files."""
        return self.tiles


def make_grids(data: AnnotatedData, side: int, cell: int = 224, seed: int = 0) -> AnnotatedData:
    """Set the photos of a data set into grids of side x side cells, each of another class.

    Photos are shuffled; each is used at most once; what is left over when no grid can be filled with
    different classes is left out.

    Args:
        data: photos with one class each: their ``label``.
        side: cells a side, at least 2.
        cell: side of a cell in pixels, best the network's input size.
        seed: of the shuffle.

    Raises:
        DatasetError: photos without a class, or too few classes for one grid.

    Source: Boehle et al., CVPR 2021 (GridPG), on all photos in place of confidently classified ones.
    """
    if side < 2:
        raise DatasetError(f"a grid needs at least 2 cells a side, got {side}")
    if any(photo.label is None for photo in data.images):
        raise DatasetError(f"grids need photos with one class each; {data.kind} has photos without")
    waiting = list(data.images)
    random.Random(seed).shuffle(waiting)
    grids: list[AnnotatedImage] = []
    while True:
        chosen = list({photo.label: photo for photo in reversed(waiting)}.values())[::-1][: side * side]
        if len(chosen) < side * side:
            break
        waiting = [photo for photo in waiting if photo not in chosen]
        grids.append(_grid(chosen, side, cell, len(grids)))
    if not grids:
        raise DatasetError(f"a {side}x{side} grid needs photos of {side * side} classes; {data.kind} has fewer")
    return replace(data, kind=f"{data.kind} in {side}x{side} grids", images=tuple(grids), picture_size=side * cell)


def _grid(photos: list[AnnotatedImage], side: int, cell: int, number: int) -> Grid:
    cells = []
    for place, photo in enumerate(photos):
        left, top = place % side * cell, place // side * cell
        cells.append(AnnotatedObject(str(photo.label), (left, top, left + cell, top + cell)))
    return Grid(f"grid-{number:04d}", tuple(cells), tiles=tuple(p.source for p in photos), cell=cell)
