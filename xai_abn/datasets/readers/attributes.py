"""Images with attributes, of which an image may have several, listed in a table, as in CelebA."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xai_abn.datasets.sample import READERS, Dataset, Sample, SampleSubset
from xai_abn.datasets.splits import divide_by_group, split_for, split_within
from xai_abn.datasets.tables import csv_rows
from xai_abn.errors import DatasetError

#: Folders in which the files of a table may lie, from its own: as in CelebA's archives, and as on Kaggle.
_FOLDERS = (
    *("", "images", "img_align_celeba", "img_align_celeba/img_align_celeba", "../img_align_celeba"),
    *("../Img/img_align_celeba", "../Img", "../images"),
)
#: Names of the column of files.
_FILE = ("file", "image_id")
#: Names of the column of splits.
_SPLIT = ("split", "partition", "subset", "set")
#: Words of columns that are refused, since they may be splits.
_LIKE_SPLIT = ("fold", "phase", "usage")
_PARTITION = {"0": "train", "1": "validation", "2": "test"}
#: Files of CelebA beside the table, without their ending, and the folders they may be in.
_PARTS, _PEOPLE, _BESIDE = "list_eval_partition", "identity_CelebA", ("", "../Eval", "../Anno", "../eval", "../anno")
_VALUES = {"1": 1, "1.0": 1, "0": 0, "0.0": 0, "-1": -1, "-1.0": -1}
#: Training shifts an image by up to this share of its side.
MAX_SHIFT = 1 / 16


@dataclass(frozen=True)
class _Table:
    """A parsed table.

    Attributes:
        source: path of the table.
        labels: names of the attributes.
        files: file of each row.
        rows: attribute values of each row, as text.
        lines: line number of each row.
        damaged: (file, reason) of rows that cannot be read.
        parts: split of each row, if given.
        people: identity of each row, if given.
    """

    source: str
    labels: tuple[str, ...]
    files: list[str]
    rows: list[list[str]]
    lines: list[int]
    damaged: list[tuple[str, str]]
    parts: list[str] | None = None
    people: list[str] | None = None


@READERS.register("attributes")
def read_attributes(place: str, images: Path | None = None) -> Dataset:
    """Read images with attributes from a CSV file, or CelebA's own lists.

    Args:
        place: a CSV file with a column ``file`` (beside the CSV, or in a folder ``images`` there), optional columns
            ``split`` (train, validation, test) or ``partition`` (0, 1, 2) and ``identity``, and a column of 1 and 0, or
            1 and -1, for each attribute; or CelebA's own ``list_attr_celeba``, as ``.txt`` or as ``.csv``, with
            ``identity_CelebA`` and ``list_eval_partition`` beside it or in CelebA's folders if they are there.
        images: folder of the images, if it is another.

    Returns:
        The images, whose group is the identity. Splits are those of the table. If it names identities but no splits,
        80 % of the people are for training, 10 % for validation and 10 % for test, by a hash of their identity. Images
        that are absent, or whose row has a value too few or is there twice, are among the problems.

    Raises:
        DatasetError: the table is missing or damaged, or a column has values that are not those of an attribute.
    """
    path = Path(place)
    if not path.is_file():
        raise DatasetError(f"{place}: no such file")
    table = _read_celeba(path) if path.suffix == ".txt" else _read_csv(path)
    if not table.labels or not (table.files or table.damaged):
        raise DatasetError(f"{place}: no {'attributes' if table.files else 'images'} in it")
    folders = [images] if images is not None else [path.parent / folder for folder in _FOLDERS]
    names, files = _values(table), _paths(table, folders)
    reasons = _reasons(table, files, folders)
    kept = [row for row in range(len(files)) if row not in reasons]
    people: Sequence[str | None] = table.people or [None] * len(files)
    samples = [Sample(files[row], attributes=names[row], group=people[row]) for row in kept]
    splits: dict[str, Sequence[Sample]] = {"train": samples}
    if table.parts is not None:
        of_kept = [table.parts[row] for row in kept]
        parts = {part: [i for i, p in enumerate(of_kept) if p == part] for part in dict.fromkeys(of_kept)}
        splits = {part: SampleSubset(samples, indices) for part, indices in parts.items()}
    elif table.people is not None and samples:
        splits = divide_by_group(samples, ["validation", "test"], 0.1, table.source)
    problems = (*table.damaged, *((files[row] or table.files[row], reason) for row, reason in reasons.items()))
    return Dataset("attributes", splits, table.labels, problems=problems, max_shift=MAX_SHIFT)


def _read_csv(path: Path) -> _Table:
    numbered = list(csv_rows(path, "a column 'file' and one for each attribute"))
    header = numbered[0][1] if numbered else []
    name = next((name for name in _FILE if name in header), None)
    if name is None:
        raise DatasetError(f"{path}: no column 'file'; its columns are {', '.join(header) or 'none'}")
    if "" in header:
        raise DatasetError(
            f"{path}: column {header.index('') + 1} has no name; name it, or remove it if it is only an index"
        )
    if len(set(header)) < len(header):
        raise DatasetError(f"{path}: two columns have the same name: {_first_duplicate(header)!r}")
    numbered, damaged = _of_length(numbered[1:], len(header), str(path), "columns", header.index(name))
    columns = {title: [row[i] for _, row in numbered] for i, title in enumerate(header)}
    files, people = columns.pop(name), columns.pop("identity", None)
    given = [columns.pop(title) for title in list(columns) if title.lower() in _SPLIT]
    doubtful = [t for t in columns if split_within(t) or {*re.split(r"[^a-z]+", t.lower())} & {*_SPLIT, *_LIKE_SPLIT}]
    if doubtful:
        raise DatasetError(
            f"{path}: the column {doubtful[0]!r} looks like a split and not like an attribute; call it 'split', with "
            "train, validation and test, or rename or remove it"
        )
    if len(given) > 1:
        raise DatasetError(f"{path}: it has several of the columns {', '.join(_SPLIT)}; keep the one of the splits")
    parts = given[0] if given else _column_beside(path, _PARTS, files)
    people = people if people is not None else _column_beside(path, _PEOPLE, files)
    lines = [line for line, _ in numbered]
    if people is not None and "" in people:
        raise DatasetError(f"{path}, line {lines[people.index('')]}: the identity is missing")
    if parts is not None:
        words, parts = parts, _splits(parts)
        if "" in parts:
            at = parts.index("")
            raise DatasetError(f"{path}, line {lines[at]}: split {words[at]!r} is none of train, validation, test")
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return _Table(str(path), tuple(columns), files, rows or [[] for _ in files], lines, damaged, parts, people)


def _of_length(
    numbered: list[tuple[int, list[str]]], number: int, source: str, what: str, file: int
) -> tuple[list[tuple[int, list[str]]], list[tuple[str, str]]]:
    """Return the rows with as many cells as there should be, and (file, reason) of the others."""
    odd = [(line, row) for line, row in numbered if len(row) != number]
    damaged = [
        ((row[file : file + 1] or [source])[0], f"{source}, line {line}: {len(row)} values for {number} {what}")
        for line, row in odd
    ]
    return [(line, row) for line, row in numbered if len(row) == number], damaged


def _read_celeba(path: Path) -> _Table:
    lines = _lines(path)
    if len(lines) < 2 or lines[0] != [str(len(lines) - 2)]:
        announced = " ".join(lines[0]) if lines else "nothing"
        raise DatasetError(
            f"{path}: it has {max(len(lines) - 2, 0)} images, but the first line says {announced}; download it again"
        )
    labels = tuple(lines[1])
    numbered, damaged = _of_length([*enumerate(lines[2:], start=3)], len(labels) + 1, str(path), "columns", 0)
    rows = [row for _, row in numbered]
    files = [row[0] for row in rows]
    parts = _column_beside(path, _PARTS, files)
    if parts is not None:
        words, parts = parts, _splits(parts)
        if "" in parts:
            raise DatasetError(f"{path.parent}: {_PARTS} has the part {words[parts.index('')]!r}, none of 0, 1, 2")
    people = _column_beside(path, _PEOPLE, files)
    return _Table(str(path), labels, files, [r[1:] for r in rows], [n for n, _ in numbered], damaged, parts, people)


def _splits(values: Sequence[str]) -> list[str]:
    """Return the split that each value names, as a word or as CelebA's number; an empty text for any other."""
    return [_PARTITION.get(value.removesuffix(".0")) or split_for(value) or "" for value in values]


def _column_beside(table: Path, name: str, files: Sequence[str]) -> list[str] | None:
    """Return the value of each file in a list of CelebA near a table, or None if there is no such list.

    The list has lines ``file value``, or is a CSV file with two columns.
    """
    places = (table.parent / folder / f"{name}{ending}" for folder in _BESIDE for ending in (".txt", ".csv"))
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return None
    lines = [" ".join(line).replace(",", " ").split() for line in _lines(path)]
    values = {line[0]: line[-1] for line in lines if len(line) == 2}
    missing = [file for file in files if file not in values]
    if missing:
        raise DatasetError(f"{path}: no line for {len(missing)} images, such as {missing[0]}")
    return [values[file] for file in files]


def _lines(path: Path) -> list[list[str]]:
    try:
        return [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: not a readable text file ({error})") from error


def _values(table: _Table) -> list[tuple[str, ...]]:
    """Return the names of the attributes that each image has; of a row with an empty cell those that are told.

    Raises:
        DatasetError: a column has other values, so that it is none of an attribute.
    """
    seen: set[int] = set()
    names = []
    for cells, line in zip(table.rows, table.lines, strict=True):
        numbers = [_VALUES.get(cell) for cell in cells]
        at = next((i for i, number in enumerate(numbers) if number is None and cells[i]), None)
        if at is not None:
            raise DatasetError(
                f"{table.source}, line {line}: {table.labels[at]!r} is {cells[at]!r}; attributes are 1 and 0, or 1 and "
                "-1"
            )
        seen.update(number for number in numbers if number is not None)
        names.append(tuple(label for label, number in zip(table.labels, numbers, strict=True) if number == 1))
    if {0, -1} <= seen:
        raise DatasetError(f"{table.source}: it has both 0 and -1; write the absence of an attribute as one of them")
    return names


def _paths(table: _Table, folders: Sequence[Path]) -> list[str]:
    """Return the paths of the files, empty for those that are absent."""
    return [next((p for f in folders if os.path.isfile(p := os.path.join(f, file))), "") for file in table.files]


def _reasons(table: _Table, files: list[str], folders: Sequence[Path]) -> dict[int, str]:
    """Return why rows cannot be used, by their number."""
    absent = f"no such file; looked for it in {', '.join(os.path.normpath(f) for f in folders)}"
    times = Counter(map(os.path.normpath, filter(None, files)))
    reasons: dict[int, str] = {}
    for row, (cells, file, line) in enumerate(zip(table.rows, files, table.lines, strict=True)):
        if not file:
            reasons[row] = absent
        elif times[os.path.normpath(file)] > 1:
            reasons[row] = f"{table.source}, line {line}: the file is listed twice"
        elif "" in cells:
            reasons[row] = f"{table.source}, line {line}: {table.labels[cells.index('')]!r} is missing"
    return reasons


def _first_duplicate(names: Sequence[str]) -> str:
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
