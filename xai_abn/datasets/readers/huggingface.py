"""Hugging Face ``datasets``: from the hub, of a local folder (tar shards too), or written by ``save_to_disk``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import torch

from xai_abn.datasets.sample import READERS, Dataset, Sample, SampleSubset
from xai_abn.datasets.splits import find_splits
from xai_abn.errors import DatasetError, ImageLoadError, InvalidInputError
from xai_abn.files import digest
from xai_abn.images.loading import LoadedImage, decode_image, load_image

#: Number of rows whose content the fingerprint depends on.
_HASHED = 64
#: Compressed archives of more bytes than this hold at most so many times their size.
_LARGE, _MOST_PACKED = 2**26, 50
_SAVED = ("dataset_dict.json", "state.json")
#: Usual names of the column of labels; the last one is WebDataset's.
_LABELS = ("label", "labels", "cls")


@dataclass(frozen=True, eq=False, slots=True)
class _Row(Sample):
    rows: Any = None
    index: int = 0

    def _cell(self) -> Mapping[str, Any]:
        cell: Mapping[str, Any] | None
        (cell,) = self.rows[self.index].values()
        if cell is None:
            raise ImageLoadError(f"{self.source}: no image in this row")
        return cell

    def load(self) -> LoadedImage:
        cell = self._cell()
        return decode_image(cell["bytes"], self.source) if cell["bytes"] is not None else load_image(cell["path"])

    def content(self) -> Iterator[bytes]:
        cell = self._cell()
        if cell["bytes"] is None:
            yield from Sample(cell["path"]).content()
        else:
            yield cell["bytes"]


class _Rows(Sequence[Sample]):
    """The rows of a table; ``rows`` holds the column of images alone, not decoded."""

    def __init__(self, rows: Any, column: str, labels: Sequence[str], source: str) -> None:
        self.rows, self.column, self.labels, self.source = rows, column, labels, source

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        return _Row(f"{self.source}[{index}]", label=self.labels[index], rows=self.rows, index=index)

    def fingerprint(self) -> str:
        """Return a hash of rows spread evenly over the table; reading all of them would take long."""
        some = torch.linspace(0, len(self) - 1, min(_HASHED, len(self))).long().tolist()
        cells = [self.rows[index][self.column] or {} for index in some]
        content = [c.get("bytes") or os.fsencode(Path(c.get("path") or "").name) for c in cells]
        return digest(f"{self.column} {len(self)}".encode(), *content)


@READERS.register("hf")
def read_hugging_face(place: str) -> Dataset:
    """Read a data set with Hugging Face ``datasets``: from the hub, a folder or tar shards.

    Args:
        place: a name on the hub, a folder that ``datasets`` can load (such as WebDataset's tar shards), or one written
            by ``save_to_disk``. ``#COLUMN`` at its end names the column of the labels, or ``#COLUMN.FIELD`` a field of
            it; default: the only column of class labels, or else a column called ``label``, ``labels`` or ``cls``, or
            such a field of a JSON column, as WebDataset's. The images are the first column of images, else of files as
            pandas writes them: bytes, alone or with a path.

    Returns:
        The splits ``train``, ``validation`` (or ``val``, ``valid``) and ``test``; others are skipped with a warning. A
        test split whose labels are hidden (all -1) is left out.

    Raises:
        InvalidInputError: ``datasets`` is not installed.
        DatasetError: the data cannot be loaded, or has no images or labels.
    """
    name, _, wanted = place.partition("#")
    tables = _load(name)
    keys = find_splits(tables, f"hf:{name}")
    features = tables[keys["train"]].features
    image, label = _columns(features, wanted, f"hf:{name}")
    values = {part: _labels(tables[key], image, label, f"hf:{name}/{key}") for part, key in keys.items()}
    values = {part: column for part, column in values.items() if part != "test" or set(column) != {-1}}
    names = getattr(features.get(label), "names", None) or sorted(
        {value for column in values.values() for value in column} - {None}, key=lambda value: (str(type(value)), value)
    )
    text = {value: str(value) for value in names}
    splits: dict[str, Sequence[Sample]] = {}
    problems = []
    for part, column in values.items():
        source = f"hf:{name}/{keys[part]}"
        unknown = next((value for value in column if value is not None and value not in text), None)
        if unknown is not None:
            raise DatasetError(f"{source}: {label!r} is {unknown!r}, which is not a class of the train split")
        rows = _Rows(_undecoded(tables[keys[part]], image), image, [text.get(value, "") for value in column], source)
        kept = [index for index, value in enumerate(column) if value is not None]
        splits[part] = rows if len(kept) == len(rows) else SampleSubset(rows, kept)
        problems += [(rows[i].source, f"no {label!r} in this row") for i, value in enumerate(column) if value is None]
    return Dataset("hf", splits, tuple(text.values()), problems=tuple(problems))


def _labels(table: Any, image: str, label: str, source: str) -> list[Any]:
    """Return the labels of a split: class names if it has them, else numbers or text; -1 if hidden, None if missing.

    Names are used because splits may number the same classes in different orders.
    """
    column, _, field = (label, "", "") if label in table.features else label.partition(".")
    for wanted in (image, column):
        if wanted not in table.features:
            raise DatasetError(f"{source}: no column {wanted!r}, which the train split has")
    values = [value and value.get(field) if field else value for value in table[column]]
    values = [value.decode(errors="replace") if isinstance(value, bytes) else value for value in values]
    odd = next((value for value in values if not isinstance(value, (int, str, NoneType))), None)
    if odd is not None:
        raise DatasetError(f"{source}: {label!r} holds {type(odd).__name__}s, not classes; name another column")
    names = getattr(table.features.get(label), "names", None)
    return [value if names is None or value in (-1, None) else names[value] for value in values]


def _load(name: str) -> Mapping[str, Any]:
    """Return the tables by the names of their splits."""
    try:
        import datasets
    except ImportError as error:
        raise InvalidInputError("hf: data needs datasets: pip install 'xai-abn[datasets]'") from error
    if Path(name).is_file() or set(name) & set("{}*?") or name.endswith((".tar", ".tar.gz", ".tgz", ".parquet")):
        raise DatasetError(f"hf:{name}: expected a folder or a name on the hub; give the folder that holds the files")
    _refuse_bombs(Path(name))
    saved = any((Path(name) / file).is_file() for file in _SAVED)
    try:
        found = datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
    except Exception as error:  # the library's many kinds, and those of the network and of the file formats
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DatasetError(f"hf:{name}: cannot be loaded ({reason})") from error
    return found if isinstance(found, dict) else {"train": found}


def _refuse_bombs(folder: Path) -> None:
    """Refuse small archives of large content, which ``datasets`` would read into memory member by member.

    The end of a gzip file says how many bytes it was made of, up to 4 GiB.
    """
    for path in folder.glob("**/*.*gz"):
        packed = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, packed - 4))
            content = int.from_bytes(file.read(), "little")
        if content > max(_LARGE, _MOST_PACKED * packed):
            raise DatasetError(
                f"{path}: {packed:,} bytes hold {content:,}, which images do not; unpack it and see what is in it"
            )


def _columns(features: Mapping[str, Any], wanted: str, source: str) -> tuple[str, str]:
    """Return the names of the columns of images and of labels."""
    from datasets import ClassLabel, Image

    images = [name for name, kind in features.items() if isinstance(kind, Image)]
    images = images or [name for name, kind in features.items() if _holds_files(kind)]
    classes = [name for name, kind in features.items() if isinstance(kind, ClassLabel)]
    tables = {name: kind for name, kind in features.items() if isinstance(kind, dict) and name not in images}
    fields = [f"{name}.{field}" for name, kind in tables.items() for field in kind]
    usual = [name for label in _LABELS for name in (*features, *fields) if name.rpartition(".")[2] == label]
    labels = [wanted] if wanted else classes if len(classes) == 1 else usual
    if not images:
        raise DatasetError(f"{source}: no column of images; its columns are {', '.join(features)}")
    alike = [name for name in labels if name.rpartition(".")[2] == labels[0].rpartition(".")[2]]
    if len(alike) > 1:  # img.001.cls and img.002.cls are columns 001.cls and 002.cls of one row, img
        raise DatasetError(
            f"{source}: the labels may be in {', '.join(alike[:4])}; add one as #COLUMN, or, if these are images of "
            "a shard, replace the dots in their names: what follows the first dot names a column"
        )
    if not labels or labels[0] not in (*features, *fields):
        known = ", ".join((*features, *fields))
        raise DatasetError(f"{source}: no column of labels found; add #COLUMN, one of {known}")
    return images[0], labels[0]


def _holds_files(kind: Any) -> bool:
    """Return whether a column holds the bytes of files, alone or with a path, as pandas writes images."""
    return set(kind) == {"bytes", "path"} if isinstance(kind, dict) else "binary" in getattr(kind, "dtype", "")


def _undecoded(table: Any, column: str) -> Any:
    from datasets import Image

    return table.select_columns([column]).cast_column(column, Image(decode=False))
