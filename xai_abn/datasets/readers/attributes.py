"""Images with attributes, of which an image may have several, listed in a table, as in CelebA."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xai_abn.datasets.sample import READERS, Dataset, Sample, SampleSubset
from xai_abn.datasets.splits import divide_by_group, split_for
from xai_abn.errors import DatasetError

#: Folders in which the files of a table may lie, beside it.
_FOLDERS = ("", "images", "img_align_celeba")
#: Names of the column of files.
_FILE = ("file", "image_id")
_PARTITION = {"0": "train", "1": "validation", "2": "test"}
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
def read_attributes(place: str) -> Dataset:
    """Read images with attributes from a CSV file, or CelebA's own lists.

    Args:
        place: a CSV file with a column ``file`` (beside the CSV, or in a folder ``images`` there), optional columns
            ``split`` (train, validation, test) and ``identity``, and a column of 1 and 0, or 1 and -1, for each
            attribute; or CelebA's own ``list_attr_celeba.txt``, with ``identity_CelebA.txt`` and
            ``list_eval_partition.txt`` beside it if they are there.

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
    rows = zip(_paths(table, path.parent), _values(table), people, strict=True)
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
    files, parts, people = columns.pop(name), columns.pop("split", None), columns.pop("identity", None)
    lines = [line for line, _ in numbered[1:]]
    if people is not None and "" in people:
        raise DatasetError(f"{path}, line {lines[people.index('')]}: the identity is missing")
    if parts is not None:
        given, parts = parts, [split_for(part) or "" for part in parts]
        if "" in parts:
            at = parts.index("")
            raise DatasetError(f"{path}, line {lines[at]}: split {given[at]!r} is none of train, validation, test")
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
    parts = _column_beside(path.with_name("list_eval_partition.txt"), files)
    if parts is not None:
        wrong = next((part for part in parts if part not in _PARTITION), None)
        if wrong is not None:
            raise DatasetError(f"{path.with_name('list_eval_partition.txt')}: part {wrong!r} is none of 0, 1, 2")
        parts = [_PARTITION[part] for part in parts]
    people = _column_beside(path.with_name("identity_CelebA.txt"), files)
    numbers = list(range(3, len(rows) + 3))
    return _Table(str(path), labels, files, [row[1:] for row in rows], numbers, parts, people)


def _column_beside(path: Path, files: Sequence[str]) -> list[str] | None:
    """Return the value of each file in a text file of ``file value`` lines, or None if there is no such file."""
    if not path.is_file():
        return None
    values = {line[0]: line[-1] for line in _lines(path) if len(line) == 2}
    missing = [file for file in files if file not in values]
    if missing:
        raise DatasetError(f"{path}: no line for {len(missing)} images, such as {missing[0]}")
    return [values[file] for file in files]


def _lines(path: Path) -> list[list[str]]:
    try:
        return [line.split() for line in path.read_text().splitlines() if line.strip()]
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


def _paths(table: _Table, root: Path) -> list[str]:
    """Return the paths of the files."""
    folders = [os.path.join(root, folder) for folder in _FOLDERS]
    found = [next((p for f in folders if os.path.isfile(p := os.path.join(f, file))), "") for file in table.files]
    if "" in found:
        raise DatasetError(
            f"{table.source}: {found.count('')} files are listed but absent, such as {table.files[found.index('')]}"
        )
    paths = [os.path.normpath(path) for path in found]
    if len(set(paths)) < len(paths):
        raise DatasetError(f"{table.source}: a file is listed twice: {_first_duplicate(paths)}")
    return found


def _first_duplicate(names: Sequence[str]) -> str:
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
