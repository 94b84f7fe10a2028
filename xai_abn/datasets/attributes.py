"""Pictures with attributes that may hold at once, listed in a table, as CelebA has them."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from xai_abn.datasets.picture_split import MEAN, STD, PictureFiles, PictureSplit, in_memory, recorded_name
from xai_abn.datasets.split_names import split_for
from xai_abn.datasets.training_data import INTERPOLATION, ReadOptions, Split, TrainingData, training_data
from xai_abn.errors import DatasetError
from xai_abn.images.preprocess import Preprocess

#: Pictures that take no more bytes than this at their final size are read once and kept.
MEMORY = 2**30
#: Where the files of a table may lie, beside it.
_FOLDERS = ("", "images", "img_align_celeba")
_FILE = ("file", "image_id")
_PARTITION = {"0": "train", "1": "validation", "2": "test"}
_VALUES = {"1": 1, "1.0": 1, "0": 0, "0.0": 0, "-1": -1, "-1.0": -1}


@dataclass(frozen=True)
class _Table:
    """Columns of equal lengths; ``rows`` are the attributes' cells, ``lines`` where they stand."""

    source: str
    labels: tuple[str, ...]
    files: list[str]
    rows: list[list[str]]
    lines: list[int]
    parts: list[str] | None = None
    people: list[str] | None = None


@training_data.register("attributes")
def read_attributes(place: str, options: ReadOptions = ReadOptions()) -> TrainingData:
    """Read pictures with attributes.

    Args:
        place: a CSV file with a column ``file`` (beside the CSV, or in a folder ``images`` there), if wanted
            ``split`` (train, validation, test) and ``identity``, and a column of 1 and 0, or 1 and -1, for each
            attribute; or CelebA's own ``list_attr_celeba.txt``, with ``identity_CelebA.txt`` and
            ``list_eval_partition.txt`` beside it if they are there.
        options: see :class:`ReadOptions`.

    Returns:
        Targets (N, T), 0 or 1. Where a split is given, it is taken. Else, where identities are, 80 % of the people
        are learnt from, 10 % validated and 10 % tested on, by a hash of their identity; of a split without
        validation ``options.validation`` of the people to learn from become that. Pictures that take up to
        ``MEMORY`` bytes are read once, shifted and flipped in training; others are read when needed, cropped and
        flipped.

    Raises:
        DatasetError: missing, damaged, a value that is no attribute, a file absent or listed twice, a person in two
            splits.
    """
    path = Path(place)
    if not path.is_file():
        raise DatasetError(f"{place}: no such file")
    table = _read_celeba(path) if path.suffix == ".txt" else _read_csv(path)
    if not table.files or not table.labels:
        raise DatasetError(f"{place}: no {'attributes' if table.files else 'pictures'} in it")
    values, paths = _values(table), _located(table, path.parent)
    parts = _parts(table, options.validation)
    look = Preprocess(options.size, 1.0, INTERPOLATION, MEAN, STD)
    pictures = PictureSplit(PictureFiles(tuple(paths)), values, look, options, scale=(0.7, 1.0))
    keeps = 3 * look.size**2 * len(paths) <= MEMORY
    splits: dict[str, Split] = {}
    for part in dict.fromkeys(parts):
        split = pictures.subset(torch.tensor([i for i, p in enumerate(parts) if p == part]))
        splits[part] = in_memory(split, padding=max(1, look.size // 16)) if keeps else split
    if "train" not in splits:
        raise DatasetError(f"{place}: no training pictures")
    return TrainingData(
        recorded_name(f"attributes:{place}"),
        table.labels,
        look,
        splits["train"],
        splits.get("validation"),
        splits.get("test"),
        multi_label=True,
    )


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
            f"{path}: column {header.index('') + 1} has no name; name it, or leave it out (an index, say)"
        )
    if len(set(header)) < len(header):
        raise DatasetError(f"{path}: a column is there twice: {_first_twice(header)!r}")
    for line, row in numbered[1:]:
        if len(row) != len(header):
            raise DatasetError(f"{path}, line {line}: {len(row)} values for {len(header)} columns")
    columns = {title: [row[i] for _, row in numbered[1:]] for i, title in enumerate(header)}
    files, parts, people = columns.pop(name), columns.pop("split", None), columns.pop("identity", None)
    lines = [line for line, _ in numbered[1:]]
    if people is not None and "" in people:
        raise DatasetError(f"{path}, line {lines[people.index('')]}: the identity is missing")
    if parts is not None:
        said, parts = parts, [split_for(part) or "" for part in parts]
        if "" in parts:
            at = parts.index("")
            raise DatasetError(f"{path}, line {lines[at]}: split {said[at]!r} is none of train, validation, test")
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return _Table(str(path), tuple(columns), files, rows, lines, parts, people)


def _read_celeba(path: Path) -> _Table:
    lines = _lines(path)
    if len(lines) < 2 or lines[0] != [str(len(lines) - 2)]:
        said = " ".join(lines[0]) if lines else "nothing"
        raise DatasetError(f"{path}: {max(len(lines) - 2, 0)} pictures, but the first line says {said}; get it anew")
    labels, rows = tuple(lines[1]), lines[2:]
    for number, row in enumerate(rows, start=3):
        if len(row) != len(labels) + 1:
            raise DatasetError(f"{path}, line {number}: {len(row) - 1} values for {len(labels)} attributes")
    files = [row[0] for row in rows]
    parts = _beside(path.with_name("list_eval_partition.txt"), files)
    if parts is not None:
        wrong = next((part for part in parts if part not in _PARTITION), None)
        if wrong is not None:
            raise DatasetError(f"{path.with_name('list_eval_partition.txt')}: part {wrong!r} is none of 0, 1, 2")
        parts = [_PARTITION[part] for part in parts]
    people = _beside(path.with_name("identity_CelebA.txt"), files)
    numbers = list(range(3, len(rows) + 3))
    return _Table(str(path), labels, files, [row[1:] for row in rows], numbers, parts, people)


def _beside(path: Path, files: Sequence[str]) -> list[str] | None:
    """Return what a file of ``file value`` lines says of each file, or None if there is no such file."""
    if not path.is_file():
        return None
    said = {line[0]: line[-1] for line in _lines(path) if len(line) == 2}
    missing = [file for file in files if file not in said]
    if missing:
        raise DatasetError(f"{path}: says nothing of {len(missing)} pictures, such as {missing[0]}")
    return [said[file] for file in files]


def _lines(path: Path) -> list[list[str]]:
    try:
        return [line.split() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: not a readable text file ({error})") from error


def _values(table: _Table) -> Tensor:
    """Return the attributes (N, T), 0 or 1, as float32."""
    numbers = [[_VALUES.get(cell) for cell in row] for row in table.rows]
    for row, cells, line in zip(numbers, table.rows, table.lines, strict=True):
        if None in row:
            at = row.index(None)
            told = f"is {cells[at]!r}" if cells[at] else "is missing"
            raise DatasetError(
                f"{table.source}, line {line}: {table.labels[at]!r} {told}; attributes are 1 and 0, or 1 and -1"
            )
    values = torch.tensor(numbers)
    if bool((values == 0).any()) and bool((values == -1).any()):
        raise DatasetError(f"{table.source}: holds both 0 and -1; write the absence of an attribute as one of them")
    return (values > 0).float()


def _located(table: _Table, root: Path) -> list[str]:
    """Return the files' paths."""
    places = [os.path.join(root, folder) for folder in _FOLDERS]
    found = [next((p for f in places if os.path.isfile(p := os.path.join(f, file))), "") for file in table.files]
    if "" in found:
        raise DatasetError(
            f"{table.source}: {found.count('')} files are listed but absent, such as {table.files[found.index('')]}"
        )
    paths = [os.path.normpath(path) for path in found]
    if len(set(paths)) < len(paths):
        raise DatasetError(f"{table.source}: a file is listed twice: {_first_twice(paths)}")
    return found


def _parts(table: _Table, share: float) -> list[str]:
    """Return the split of each picture."""
    if table.people is None:
        return table.parts or ["train"] * len(table.files)
    if table.parts is None:
        return _people_held_out(table, ["train"] * len(table.files), ["validation", "test"], 0.1)
    seen: dict[str, str] = {}
    for person, part in zip(table.people, table.parts, strict=True):
        if seen.setdefault(person, part) != part:
            raise DatasetError(
                f"{table.source}: identity {person!r} is in {seen[person]} and in {part}; give it to one of them, or "
                "leave out the column of splits or of identities"
            )
    if "validation" in table.parts or not share:
        return table.parts
    return _people_held_out(table, table.parts, ["validation"], share)


def _people_held_out(table: _Table, parts: Sequence[str], names: Sequence[str], share: float) -> list[str]:
    """Return the splits with a share of the people that are learnt from in each of ``names``, by a hash of them."""
    assert table.people is not None  # asked for by the caller
    trained = {person for person, part in zip(table.people, parts, strict=True) if part == "train"}
    people = sorted(trained, key=lambda person: hashlib.blake2b(person.encode()).digest())
    count = max(1, int(share * len(people)))
    if len(people) <= count * len(names):
        told = f"to learn from cannot be split in {len(names) + 1} ({', '.join(['train', *names])})"
        raise DatasetError(f"{table.source}: {len(people)} identities {told}; give the splits")
    held = {person: name for i, name in enumerate(names) for person in people[i * count : (i + 1) * count]}
    return [held.get(person, part) for person, part in zip(table.people, parts, strict=True)]


def _first_twice(names: Sequence[str]) -> str:
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
