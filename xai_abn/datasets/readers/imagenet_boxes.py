"""ILSVRC images with boxes of their class, listed in a CSV file."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from pathlib import Path

from xai_abn.datasets.imagenet_classes import own_wnids
from xai_abn.datasets.sample import READERS, AnnotatedObject, Dataset, ImageFinder, Sample
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
        The images in the order of the file. Images that are absent or have no box are among the problems.

    Raises:
        DatasetError: there is no such file, or a line is damaged; the message gives its number.
    """
    file = Path(place)
    kaggle = [file.parent / "ILSVRC" / "Data" / "CLS-LOC" / part for part in ("val", "train")]
    rows = list(_rows(file))
    folders = [images] if images is not None else [file.parent / "images", file.parent, *kaggle]
    finder = ImageFinder(folders, [str(row.get("file")) for _, row in rows])
    samples, problems = [], []
    seen: dict[str, int] = {}
    for line, row in rows:
        where = f"{file}, line {line}"
        name, wnid, boxes = _fields(row, where)
        if name in seen:
            raise DatasetError(f"{where}: {name} is on line {seen[name]} already; join the boxes of an image by ';'")
        seen[name] = line
        path = finder.find(name)
        if path is None:
            problems.append((name, finder.missing(name)))
        elif not boxes:
            problems.append((str(path), "no box"))
        else:
            samples.append(Sample(str(path), tuple(AnnotatedObject(wnid, box) for box in boxes), wnid))
    names = tuple(sorted({str(sample.label) for sample in samples}))
    return Dataset("imagenet-boxes", {"train": samples}, names, own_wnids(names), tuple(problems))


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number of each line and its columns by name."""
    if not file.is_file():
        raise DatasetError(f"{file}: no such file; give a CSV file with the columns {','.join(COLUMNS)}")
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            kaggle = set(KAGGLE) <= set(reader.fieldnames or ())
            if missing := [c for c in COLUMNS if not kaggle and c not in (reader.fieldnames or ())]:
                raise DatasetError(f"{file}, line 1: no column {missing[0]!r}; expected {','.join(COLUMNS)}")
            for row in reader:
                yield reader.line_num, _from_kaggle(row, f"{file}, line {reader.line_num}") if kaggle else row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{file}: cannot be read as CSV ({error}); expected {','.join(COLUMNS)}") from error


def _from_kaggle(row: dict[str, str], where: str) -> dict[str, str]:
    """Return a line of Kaggle's list, ``wnid x1 y1 x2 y2 wnid x1 ...``, in our columns."""
    name, text = ((row.get(column) or "").strip() for column in KAGGLE)
    words = text.split()
    groups = [words[i : i + 5] for i in range(0, len(words), 5)]
    wnids = {group[0] for group in groups}
    if not groups or len(groups[-1]) != 5 or len(wnids) != 1:
        raise DatasetError(f"{where}: PredictionString is {text[:40]!r}; expected wnid x1 y1 x2 y2 of one class")
    folder = f"{groups[0][0]}/" if "_" in name and name.startswith("n") else ""
    boxes = ";".join(" ".join(group[1:]) for group in groups)
    return {"file": f"{folder}{name}.JPEG", "wnid": groups[0][0], "boxes": boxes}


def _fields(row: dict[str, str], where: str) -> tuple[str, str, list[Box]]:
    """Return file, class and boxes of one line."""
    if None in row or None in row.values():
        raise DatasetError(f"{where}: too many or too few columns; expected those of the first line")
    name, wnid, boxes = (row[column].strip() for column in COLUMNS)
    if not name:
        raise DatasetError(f"{where}: the file is empty; expected the name of an image")
    if not re.fullmatch(r"n\d{8}", wnid):
        raise DatasetError(f"{where}: wnid is {wnid!r}; expected n and 8 digits, such as n02085620")
    return name, wnid, [_box(text, where) for text in boxes.split(";") if text.strip()]


def _box(text: str, where: str) -> Box:
    try:
        left, top, right, bottom = (float(word) for word in text.split())
    except ValueError:
        left = top = right = bottom = math.nan
    if not all(map(math.isfinite, (left, top, right, bottom))):
        raise DatasetError(f"{where}: box {text.strip()!r}; expected four numbers x1 y1 x2 y2")
    return left, top, right, bottom
