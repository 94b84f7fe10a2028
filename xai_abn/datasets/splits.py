"""Splits: their names in data sets, splits by group, and images held out of unlabeled data."""

from __future__ import annotations

import filecmp
import hashlib
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from xai_abn.datasets.batches import warn_of_conversions
from xai_abn.datasets.sample import READERS, Sample, SampleSubset, read_dataset
from xai_abn.errors import DatasetError, ImageLoadError, InvalidInputError, XaiAbnWarning
from xai_abn.images.loading import EXAMPLE_PREFIX, find_images
from xai_abn.images.preprocess import Preprocess

#: Largest share of unlabeled images that is held out.
LARGEST_SHARE = 0.2
#: Names of splits in data sets, in lower case.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val"),
    "test": ("test", "testing"),
}


#: Data sets with more images than this are not searched for copies of validation and test images in training.
MOST_COMPARED = 200_000


class CopiesWarning(XaiAbnWarning):
    """Given when images to validate or test on are also trained on."""


class UnusedSplitWarning(XaiAbnWarning):
    """Given when splits of a data set are not used."""


def split_for(name: str) -> str | None:
    """Return ``"train"``, ``"validation"`` or ``"test"`` for the name of a split; None for other names."""
    return next((part for part, names in SPLIT_NAMES.items() if name.lower() in names), None)


def split_within(name: str) -> str | None:
    """Return the split that a longer name speaks of, such as ``"seg_test"`` or ``"trainA"``, or None."""
    words = re.split(r"[^a-z]+", name.lower())
    plain = (re.sub(r"(?<=[tlgn])(sets?|data|images?|imgs?|[ab])$", "", word) for word in words)
    found = {split_for(word) for word in plain} - {None}
    return found.pop() if len(found) == 1 else None


def find_splits(names: Iterable[str], source: str) -> dict[str, str]:
    """Return the name of each split of a data set by ``"train"``, ``"validation"`` and ``"test"``.

    Other splits give a warning. Names such as ``training_set`` count where all names are of this kind.

    Args:
        names: names of the splits.
        source: the data set, for messages.

    Raises:
        DatasetError: there is no training split, or two names mean the same split.
    """
    names = list(names)
    found: dict[str, str] = {}
    meaning = split_for if any(map(split_for, names)) else split_within
    for name in names:
        part = meaning(name)
        if part is not None and found.setdefault(part, name) != name:
            raise DatasetError(f"{source}: it has both {found[part]} and {name}; keep one of them")
    if "train" not in found:
        raise DatasetError(f"{source}: it has {', '.join(names)}, but no split called train")
    unused = [name for name in names if name not in found.values()]
    if unused:
        listed = f"{', '.join(unused[:5])}{', ...' if unused[5:] else ''}"
        warnings.warn(UnusedSplitWarning(f"{source}: not used beside {found['train']}: {listed}"), stacklevel=3)
    return found


def divide_by_group(
    samples: Sequence[Sample], names: Sequence[str], share: float, source: str
) -> dict[str, Sequence[Sample]]:
    """Divide training samples so that no group is in two splits; a hash of the group's name decides.

    Args:
        samples: each has a group.
        names: names of the splits that take ``share`` of the groups each; ``"train"`` keeps the rest.
        share: in (0, 1); each split gets at least one group.
        source: the data set, for messages.

    Raises:
        DatasetError: there are too few groups.
    """
    groups = sorted({str(s.group) for s in samples}, key=lambda group: hashlib.blake2b(group.encode()).digest())
    count = max(1, int(share * len(groups)))
    if len(groups) <= count * len(names):
        raise DatasetError(
            f"{source}: {len(groups)} groups to train on cannot be divided into {len(names) + 1} splits "
            f"({', '.join(['train', *names])}); give the splits"
        )
    part_of = {group: name for i, name in enumerate(names) for group in groups[i * count : (i + 1) * count]}
    indices: dict[str, list[int]] = {name: [] for name in ("train", *names)}
    for index, sample in enumerate(samples):
        indices[part_of.get(str(sample.group), "train")].append(index)
    return {name: SampleSubset(samples, chosen) for name, chosen in indices.items()}


def hold_out_groups(splits: Mapping[str, Sequence[Sample]], share: float, source: str) -> dict[str, Sequence[Sample]]:
    """Hold groups out for validation if the samples have groups and there is no validation split.

    Raises:
        DatasetError: a group is in two splits, or there are too few groups.
    """
    part_of: dict[str, str] = {}
    for part, samples in splits.items():
        for group in (sample.group for sample in samples):
            if group is not None and part_of.setdefault(group, part) != part:
                raise DatasetError(
                    f"{source}: {group!r} is in {part_of[group]} and in {part}; move it to one of them, or leave out "
                    "the splits or the groups"
                )
    if not part_of or "validation" in splits or not share:
        return dict(splits)
    return {**splits, **divide_by_group(splits["train"], ["validation"], share, source)}


def find_samples(sources: Iterable[str | Path], exclude: Sequence[str] = ()) -> list[Sample]:
    """Return the images of folders (searched recursively), files, globs and data sets, in the order given.

    Args:
        sources: paths, globs, ``example:NAME``, or ``KIND:PLACE`` for the training split of a data set; a source
            given twice counts twice.
        exclude: images whose file name contains one of these are left out.

    Raises:
        ImageLoadError: there are no images, or a source does not exist.
        DatasetError: a data set cannot be read.
    """
    sources = list(sources)
    if not sources:
        raise ImageLoadError("no images to train on: give folders, files or globs")
    found: list[Sample] = []
    for source in map(str, sources):
        if ":" in source and source.partition(":")[0] in READERS and not os.path.exists(source):
            found += read_dataset(source).splits.get("train", ())
            continue
        paths = find_images(source)
        if paths == [source] and not source.startswith(EXAMPLE_PREFIX) and not Path(source).exists():
            raise ImageLoadError(f"{source}: no such file or folder")
        found += map(Sample, paths)
    found = [sample for sample in found if not any(part in Path(sample.source).name for part in exclude)]
    if not found:
        raise ImageLoadError(f"no images found in {', '.join(map(str, sources))}")
    return found


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Images held out of training.

    Attributes:
        inputs: (N, 3, H, W), prepared as for any prediction.
        rest: the other samples, at least one; none is a copy of a held-out image.
        unreadable: reasons for drawn images that could not be read; they stay in ``rest``.
    """

    inputs: Tensor
    rest: list[Sample]
    unreadable: list[str]


def hold_out(samples: Sequence[Sample], preprocess: Preprocess, number: int) -> HeldOut:
    """Hold ``number`` images out of training, at least one and at most a fifth of all.

    A hash of folder and file name chooses them, so an image stays held out in later runs, with any seed and wherever
    the folders have moved.

    Args:
        samples: the images; one may occur several times.
        preprocess: prepares the inputs.
        number: at least 1.

    Raises:
        InvalidInputError: fewer than two different images, or ``number`` is below 1.
        ImageLoadError: none of the images can be read.
    """
    distinct = {sample.source: sample for sample in samples}
    if number < 1:
        raise InvalidInputError(f"at least one image must be held out, got {number}")
    number = min(number, max(1, int(LARGEST_SHARE * len(distinct))))
    held: dict[str, Tensor] = {}
    unreadable: list[str] = []
    told: set[str] = set()
    for source in sorted(sorted(distinct), key=_draw_key):
        try:
            prepared = preprocess(distinct[source].load())
            held[source] = prepared.tensor
            warn_of_conversions(dict.fromkeys(prepared.notes, source), told)
        except ImageLoadError as error:
            unreadable.append(str(error))
        if len(held) == number:
            break
    if not held:
        raise ImageLoadError(f"none of the {len(distinct)} images can be read; the first: {unreadable[0]}")
    copies = copies_of(list(held), distinct)
    rest = [sample for sample in samples if sample.source not in held and sample.source not in copies]
    if not rest:
        raise InvalidInputError(
            f"all {len(distinct)} images have the same content: one is held out, none is left to train on"
        )
    return HeldOut(torch.stack(list(held.values())), rest, unreadable)


def _draw_key(path: str) -> str:
    return hashlib.sha256("/".join(Path(path).parts[-2:]).encode(errors="surrogateescape")).hexdigest()


def copies_of(files: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """Return those of the other files that have the content of one of the files, each with that file.

    Only files of equal size are read, and only those whose first bytes are equal are read to the end.
    """
    sizes: dict[int, list[str]] = {}
    for path in filter(os.path.isfile, files):
        sizes.setdefault(os.path.getsize(path), []).append(path)
    sizes.pop(0, None)  # empty files are no images
    starts: dict[int, dict[bytes, list[str]]] = {}
    found = {}
    for path in filter(os.path.isfile, others):
        size = os.path.getsize(path)
        if size in sizes and size not in starts:
            starts[size] = {}
            for same in sizes[size]:
                starts[size].setdefault(_start(same), []).append(same)
        alike = starts[size].get(_start(path), []) if size in sizes else []
        original = next((file for file in alike if filecmp.cmp(path, file, shallow=False)), None)
        if original is not None:
            found[path] = original
    return found


def _start(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(4096)[-1024:]  # behind what all files of a camera or program begin with


def warn_of_copies(splits: Mapping[str, Sequence[Sample]], source: str) -> None:
    """Warn if files to validate or test on have the content of files to train on, which makes results too good."""
    files = {part: [s.source for s in samples if type(s) is Sample] for part, samples in splits.items()}
    if sum(map(len, files.values())) > MOST_COMPARED:
        return
    for part in ("validation", "test"):
        copies = copies_of(files.get("train", ()), files.get(part, ()))
        if copies:
            first = next(iter(copies))
            warnings.warn(
                CopiesWarning(
                    f"{source}: {len(copies)} of {len(files[part])} {part} images are copies of training images, such "
                    f"as {first} of {copies[first]}; {part} results are too good by them"
                ),
                stacklevel=3,
            )
