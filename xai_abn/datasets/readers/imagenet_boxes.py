"""ILSVRC images with boxes of their class, listed in a CSV file."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from xai_abn.datasets.imagenet_classes import own_wnids
from xai_abn.datasets.sample import READERS, AnnotatedObject, Dataset, ImageFinder, Sample
from xai_abn.datasets.tables import csv_rows
from xai_abn.errors import DatasetError

#: Columns that the first line must name.
COLUMNS = ("file", "wnid", "boxes")
#: Columns of Kaggle's lists.
KAGGLE = ("ImageId", "PredictionString")

Box = tuple[float, float, float, float]


@READERS.register("imagenet-boxes")
def read_imagenet_boxes(place: str, images: Path | None = None) -> Dataset:
    """Read ILSVRC images with boxes of their class, listed in a CSV file.

    WordNet ids are the class names, as ImageNet's readable names are not unique (two are "crane").

    Args:
        place: a CSV file with the columns ``file``, ``wnid`` and ``boxes``; boxes are ``x1 y1 x2 y2`` (right and
            bottom exclusive), joined by ``;``; or Kaggle's ``LOC_val_solution.csv`` or ``LOC_train_solution.csv``. The
            images are in ``images/`` beside it, beside it directly, or where Kaggle's archive has them.
        images: folder of the images, if it is another.

    Returns:
        The images in the order of the file. Images that are absent, have no box or a damaged line, or are listed twice
        are among the problems.

    Raises:
        DatasetError: there is no such file, or it has other columns.
    """
    file = Path(place)
    kaggle = [file.parent / "ILSVRC" / "Data" / "CLS-LOC" / part for part in ("val", "train")]
    rows = [(line, row, _name(row) or f"{file}, line {line}") for line, row in _rows(file)]
    folders = [images] if images is not None else [file.parent / "images", file.parent, *kaggle]
    finder = ImageFinder(folders, [name for _, _, name in rows])
    times = Counter(name for _, _, name in rows)
    samples, problems = [], []
    for line, row, name in rows:
        path = finder.find(name)
        try:
            if times[name] > 1:
                raise DatasetError(f"{file}, line {line}: {name} is listed twice; join the boxes of an image by ';'")
            wnid, boxes = _fields(row, f"{file}, line {line}")
            if path is None or not boxes:
                raise DatasetError(finder.missing(name) if path is None else "no box")
            samples.append(Sample(str(path), tuple(AnnotatedObject(wnid, box) for box in boxes), wnid))
        except DatasetError as error:
            problems.append((name if path is None else str(path), error.line))
    names = tuple(sorted({str(sample.label) for sample in samples}))
    return Dataset("imagenet-boxes", {"train": samples}, names, own_wnids(names), tuple(problems))


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number of each line and its columns by name; a column or a name that is missing is None."""
    if not file.is_file():
        raise DatasetError(f"{file}: no such file; give a CSV file with the columns {','.join(COLUMNS)}")
    # names in other bytes than UTF-8 are kept as they are, and cost their own images at most
    rows = csv_rows(file, ",".join(COLUMNS), errors="surrogateescape")
    _, columns = next(rows, (1, []))
    if not set(KAGGLE) <= set(columns) and (missing := [c for c in COLUMNS if c not in columns]):
        raise DatasetError(f"{file}, line 1: no column {missing[0]!r}; expected {','.join(COLUMNS)}")
    for line, cells in rows:
        yield line, dict(zip_longest(columns, cells))


def _name(row: dict[str, str]) -> str:
    """Return the name of a line's image, or nothing; Kaggle's training images are in a folder for each class."""
    image, text = (row.get(KAGGLE[0]) or "").strip(), (row.get(COLUMNS[0]) or "").strip()
    folder = f"{image.partition('_')[0]}/" if re.match(r"n\d{8}_", image) else ""
    return f"{folder}{image}.JPEG" if image else text


def _fields(row: dict[str, str], where: str) -> tuple[str, list[Box]]:
    """Return class and boxes of one line.

    Raises:
        DatasetError: the line is damaged.
    """
    if None in row or None in row.values():
        raise DatasetError(f"{where}: too many or too few columns; expected those of the first line")
    if not _name(row):
        raise DatasetError(f"{where}: the file is empty; expected the name of an image")
    wnid, boxes = _of_kaggle(row, where) if KAGGLE[1] in row else (row["wnid"].strip(), row["boxes"])
    if not re.fullmatch(r"n\d{8}", wnid):
        raise DatasetError(f"{where}: wnid is {wnid!r}; expected n and 8 digits, such as n02085620")
    return wnid, [_box(text, where) for text in boxes.split(";") if text.strip()]


def _of_kaggle(row: dict[str, str], where: str) -> tuple[str, str]:
    """Return class and boxes of Kaggle's list, ``wnid x1 y1 x2 y2 wnid x1 ...``."""
    text = row[KAGGLE[1]].strip()
    words = text.split()
    groups = [words[i : i + 5] for i in range(0, len(words), 5)]
    if not groups or len(groups[-1]) != 5 or len({group[0] for group in groups}) != 1:
        raise DatasetError(f"{where}: PredictionString is {text[:40]!r}; expected wnid x1 y1 x2 y2 of one class")
    return groups[0][0], ";".join(" ".join(group[1:]) for group in groups)


def _box(text: str, where: str) -> Box:
    try:
        left, top, right, bottom = (float(word) for word in text.split())
    except ValueError:
        left = top = right = bottom = math.nan
    if not all(map(math.isfinite, (left, top, right, bottom))):
        raise DatasetError(f"{where}: box {text.strip()!r}; expected four numbers x1 y1 x2 y2")
    return left, top, right, bottom
