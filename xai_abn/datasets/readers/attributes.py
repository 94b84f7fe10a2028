"""Images with attributes, of which an image may have several, listed in a table, as in CelebA."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xai_abn.datasets.sample import READERS, Dataset, Sample, SampleSubset
from xai_abn.datasets.splits import divide_by_group, split_for, split_within
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
        parts: split of each row, if given.
        people: identity of each row, if given.
    """

    source: str
    labels: tuple[str, ...]
    files: list[str]
    rows: list[list[str]]
    lines: list[int]
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
        80 % of the people are for training, 10 % for validation and 10 % for test, by a hash of their identity.

    Raises:
        DatasetError: the table is missing or damaged, a value is no attribute, a file is absent or listed twice.
    """
    path = Path(place)
    if not path.is_file():
        raise DatasetError(f"{place}: no such file")
    table = _read_celeba(path) if path.suffix == ".txt" else _read_csv(path)
    if not table.files or not table.labels:
        raise DatasetError(f"{place}: no {'attributes' if table.files else 'images'} in it")
    people: Sequence[str | None] = table.people or [None] * len(table.files)
    folders = [images] if images is not None else [path.parent / folder for folder in _FOLDERS]
    rows = zip(_paths(table, folders), _values(table), people, strict=True)
    samples = [Sample(file, attributes=names, group=person) for file, names, person in rows]
    splits: dict[str, Sequence[Sample]] = {"train": samples}
    if table.parts is not None:
        parts = {part: [i for i, p in enumerate(table.parts) if p == part] for part in dict.fromkeys(table.parts)}
        splits = {part: SampleSubset(samples, indices) for part, indices in parts.items()}
    elif table.people is not None:
        splits = divide_by_group(samples, ["validation", "test"], 0.1, table.source)
    return Dataset("attributes", splits, table.labels, max_shift=MAX_SHIFT)


def _read_csv(path: Path) -> _Table:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            numbered = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: not a readable CSV file ({error})") from error
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
    for line, row in numbered[1:]:
        if len(row) != len(header):
            raise DatasetError(f"{path}, line {line}: {len(row)} values for {len(header)} columns")
    columns = {title: [row[i] for _, row in numbered[1:]] for i, title in enumerate(header)}
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
    lines = [line for line, _ in numbered[1:]]
    if people is not None and "" in people:
        raise DatasetError(f"{path}, line {lines[people.index('')]}: the identity is missing")
    if parts is not None:
        words, parts = parts, _splits(parts)
        if "" in parts:
            at = parts.index("")
            raise DatasetError(f"{path}, line {lines[at]}: split {words[at]!r} is none of train, validation, test")
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return _Table(str(path), tuple(columns), files, rows, lines, parts, people)


def _read_celeba(path: Path) -> _Table:
    lines = _lines(path)
    if len(lines) < 2 or lines[0] != [str(len(lines) - 2)]:
        announced = " ".join(lines[0]) if lines else "nothing"
        raise DatasetError(
            f"{path}: it has {max(len(lines) - 2, 0)} images, but the first line says {announced}; download it again"
        )
    labels, rows = tuple(lines[1]), lines[2:]
    for number, row in enumerate(rows, start=3):
        if len(row) != len(labels) + 1:
            raise DatasetError(f"{path}, line {number}: {len(row) - 1} values for {len(labels)} attributes")
    files = [row[0] for row in rows]
    parts = _column_beside(path, _PARTS, files)
    if parts is not None:
        words, parts = parts, _splits(parts)
        if "" in parts:
            raise DatasetError(f"{path.parent}: {_PARTS} has the part {words[parts.index('')]!r}, none of 0, 1, 2")
    people = _column_beside(path, _PEOPLE, files)
    numbers = list(range(3, len(rows) + 3))
    return _Table(str(path), labels, files, [row[1:] for row in rows], numbers, parts, people)


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
    """Return the names of the attributes that each image has."""
    seen: set[int] = set()
    names = []
    for cells, line in zip(table.rows, table.lines, strict=True):
        numbers = [_VALUES.get(cell) for cell in cells]
        if None in numbers:
            at = numbers.index(None)
            problem = f"is {cells[at]!r}" if cells[at] else "is missing"
            raise DatasetError(
                f"{table.source}, line {line}: {table.labels[at]!r} {problem}; attributes are 1 and 0, or 1 and -1"
            )
        seen.update(number for number in numbers if number is not None)
        names.append(tuple(label for label, number in zip(table.labels, numbers, strict=True) if number == 1))
    if {0, -1} <= seen:
        raise DatasetError(f"{table.source}: it has both 0 and -1; write the absence of an attribute as one of them")
    return names


def _paths(table: _Table, folders: Sequence[Path]) -> list[str]:
    """Return the paths of the files."""
    found = [next((p for f in folders if os.path.isfile(p := os.path.join(f, file))), "") for file in table.files]
    if "" in found:
        raise DatasetError(
            f"{table.source}: {found.count('')} files are listed but absent, such as {table.files[found.index('')]}; "
            f"looked for in {', '.join(os.path.normpath(f) for f in folders)}"
        )
    paths = [os.path.normpath(path) for path in found]
    if len(set(paths)) < len(paths):
        raise DatasetError(f"{table.source}: a file is listed twice: {_first_duplicate(paths)}")
    return found


def _first_duplicate(names: Sequence[str]) -> str:
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
