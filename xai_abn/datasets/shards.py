"""Pictures to train on in tar files, as WebDataset lays them out; read in place, at random, without the package."""

from __future__ import annotations

import glob
import itertools
import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

import torch

from xai_abn.datasets.picture_split import Parts, picture_data
from xai_abn.datasets.training_data import ReadOptions, TrainingData, digest, training_data
from xai_abn.errors import DatasetError, ImageLoadError
from xai_abn.images.loading import EXTENSIONS, LoadedImage, decode_image

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
#: A tar file ends with at least so many zero bytes.
_END = 1024
#: Beginnings of words in the names of shards; the first that is there counts.
_PARTS = {"train": "train", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class _Members:
    """Pictures inside of tar files: (which file, where it begins, how long it is, its name)."""

    files: tuple[str, ...]
    places: tuple[tuple[int, int, int, str], ...]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> LoadedImage:
        number, start, length, name = self.places[index]
        try:
            with open(self.files[number], "rb") as file:
                file.seek(start)
                content = file.read(length)
        except OSError as error:
            raise ImageLoadError(f"{self.files[number]}: {error.strerror or error}") from error
        return decode_image(content, f"{self.files[number]}/{name}")

    def fingerprint(self) -> str:
        return digest(repr([Path(file).name for file in self.files]).encode(), repr(self.places).encode())


@training_data.register("wds")
def read_shards(place: str, options: ReadOptions = ReadOptions()) -> TrainingData:
    """Read tar files that hold, for each key, a picture ``key.jpg`` (or ``.png`` ...) and its class ``key.cls``.

    The files are indexed once, then pictures are read in place in any order, so that a run can be resumed.

    Args:
        place: a folder of ``.tar`` files, or a pattern with ``*``, ``{000..009}`` and ``{a,b}``. Files in whose name a
            word begins with ``val`` or ``test``, and none with ``train``, are for that, the others for training. Names
            of the classes are the lines of ``classes.txt`` beside the first file; else they are called by their
            numbers. Members whose name begins with a dot are passed over.
        options: see :class:`ReadOptions`.

    Raises:
        DatasetError: no such file, a compressed, damaged or cut one, a key twice or with a dot in it, a picture
            without a class or the other way round, a class that is no number.
    """
    shards = _expanded(place)
    parts: Parts = {}
    for part in dict.fromkeys(map(_part, shards)):
        mine = tuple(shard for shard in shards if _part(shard) == part)
        found = [(i, *sample) for i, shard in enumerate(mine) for sample in _indexed(shard)]
        places = tuple((i, start, length, name) for i, start, length, name, _ in found)
        parts[part] = _Members(mine, places), torch.tensor([number for *_, number in found], dtype=torch.long)
    return picture_data(f"wds:{place}", _labels(Path(shards[0]).parent / "classes.txt", parts), parts, options)


def _labels(path: Path, parts: Parts) -> tuple[str, ...]:
    if path.is_file():
        try:
            return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"{path}: not a readable UTF-8 text file ({error})") from error
    highest = max(number for _, targets in parts.values() for number in [-1, *targets.tolist()])
    return tuple(str(number) for number in range(highest + 1))


def _part(shard: str) -> str:
    """Return what a shard is for, by the words of its name."""
    words = re.split(r"[^a-z]+", Path(shard).stem.lower())
    return next((part for start, part in _PARTS.items() if any(word.startswith(start) for word in words)), "train")


def _expanded(place: str) -> list[str]:
    """Return the files that a folder holds or a pattern means, sorted."""
    if Path(place).is_dir():
        place = f"{glob.escape(place)}/*.tar"
    files = []
    for pattern in _alternatives(place):
        found = glob.glob(pattern)
        if not found:
            raise DatasetError(f"wds:{pattern}: no such file")
        files += found
    return sorted(set(files))


def _alternatives(pattern: str) -> list[str]:
    """Return what the braces of a pattern stand for, as a shell does."""
    pieces = _BRACES.split(pattern)
    choices = [_choices(piece) if i % 2 else [piece] for i, piece in enumerate(pieces)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _choices(inside: str) -> list[str]:
    match = _RANGE.fullmatch(inside)
    if match is None:
        return inside.split(",")
    width = len(match[1])
    return [f"{number:0{width}d}" for number in range(int(match[1]), int(match[2]) + 1)]


def _indexed(shard: str) -> list[tuple[int, int, str, int]]:
    """Return where a shard's pictures begin, how long they are, their names and their classes."""
    pictures: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, tarfile.TarInfo] = {}
    others: dict[str, str] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in (m for m in tar if m.isfile()):
                folder, _, name = member.name.rpartition("/")
                if name.startswith("."):
                    continue
                stem, _, ending = name.partition(".")
                key = f"{folder}/{stem}".strip("/")
                if f".{ending.lower()}" not in EXTENSIONS and ending != "cls":
                    if Path(name).suffix.lower() in EXTENSIONS:  # a mask, say, or a key with a dot in it
                        others[key] = member.name
                    continue
                of_kind = labels if ending == "cls" else pictures
                if of_kind.setdefault(key, member) is not member:
                    raise DatasetError(f"{shard}: the key of {member.name} is there twice")
            classes = {key: _number(tar, member, shard) for key, member in labels.items()}
        with open(shard, "rb") as file:
            file.seek(-_END, os.SEEK_END)
            if any(file.read()):
                raise tarfile.ReadError("it ends without an end mark, so it is cut short")
    except (OSError, tarfile.TarError) as error:
        raise DatasetError(f"{shard}: not a readable tar file, or compressed ({error})") from error
    lost = sorted(set(others) - set(pictures))
    if lost:
        raise DatasetError(f"{shard}: {others[lost[0]]}: a key ends at the first dot; leave dots out of the names")
    alone = sorted(set(pictures) ^ set(classes))
    if alone:
        raise DatasetError(f"{shard}: {alone[0]} has no {'class' if alone[0] in pictures else 'picture'}")
    return [(m.offset_data, m.size, m.name, classes[key]) for key, m in pictures.items()]


def _number(tar: tarfile.TarFile, member: tarfile.TarInfo, shard: str) -> int:
    file = tar.extractfile(member)
    assert file is not None  # of a plain file
    content = file.read(20)
    try:
        return int(content)
    except ValueError as error:
        raise DatasetError(f"{shard}: {member.name} holds {content!r}, no class number") from error
