"""Pictures to train on from Hugging Face ``datasets``: the hub's, a local folder's, or what ``save_to_disk`` wrote."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xai_abn.datasets.picture_split import Parts, picture_data
from xai_abn.datasets.split_names import sorted_splits
from xai_abn.datasets.training_data import ReadOptions, TrainingData, digest, training_data
from xai_abn.errors import DatasetError, ImageLoadError, InvalidInputError
from xai_abn.images.loading import LoadedImage, decode_image, load_image

#: Of how many rows the fingerprint knows what they hold.
_HASHED = 64
_SAVED = ("dataset_dict.json", "state.json")


@dataclass(frozen=True)
class _Rows:
    """Pictures in a column of a table; ``rows`` holds it alone, not decoded."""

    rows: Any
    column: str
    source: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> LoadedImage:
        cell, source = self.rows[index][self.column], f"{self.source}[{index}]"
        if cell is None:
            raise ImageLoadError(f"{source}: no picture in this row")
        return decode_image(cell["bytes"], source) if cell["bytes"] is not None else load_image(cell["path"])

    def fingerprint(self) -> str:
        """Return a hash of some rows, evenly over all; reading all would take long."""
        some = torch.linspace(0, len(self) - 1, min(_HASHED, len(self))).long().tolist()
        cells = [self.rows[index][self.column] or {} for index in some]
        held = [c.get("bytes") or os.fsencode(Path(c.get("path") or "").name) for c in cells]
        return digest(f"{self.column} {len(self)}".encode(), *held)


@training_data.register("hf")
def read_hugging_face(place: str, options: ReadOptions = ReadOptions()) -> TrainingData:
    """Read a data set of Hugging Face.

    Args:
        place: a name on the hub, a folder that ``datasets`` can load, or one written by ``save_to_disk``; with
            ``#COLUMN`` behind it, the column of the labels, which else is the only column of class labels, or one
            called ``label`` or ``labels``. The pictures are the first column of images.
        options: see :class:`ReadOptions`.

    Returns:
        The splits ``train``, ``validation`` (or ``val``, ``valid``) and ``test``; others are passed over, with a
        warning. A ``test`` whose labels are all -1, which is how the hub hides them, is left out.

    Raises:
        InvalidInputError: ``datasets`` is not installed.
        DatasetError: it cannot be loaded, or has no pictures or labels.
    """
    name, _, wanted = place.partition("#")
    tables = _loaded(name)
    keys = sorted_splits(tables, f"hf:{name}")
    features = tables[keys["train"]].features
    image, label = _columns(features, wanted, f"hf:{name}")
    values = {part: _labels(tables[key], image, label, f"hf:{name}/{key}") for part, key in keys.items()}
    values = {part: column for part, column in values.items() if part != "test" or set(column) != {-1}}
    names = getattr(features[label], "names", None) or sorted(
        {value for column in values.values() for value in column}, key=lambda value: (str(type(value)), value)
    )
    number = {value: i for i, value in enumerate(names)}
    parts: Parts = {}
    for part, column in values.items():
        key = keys[part]
        unknown = next((value for value in column if value not in number), None)
        if unknown is not None:
            raise DatasetError(f"hf:{name}/{key}: {label!r} is {unknown!r}, which is no class of the split train")
        targets = torch.tensor([number[value] for value in column])
        parts[part] = _Rows(_undecoded(tables[key], image), image, f"hf:{name}/{key}"), targets
    return picture_data(f"hf:{place}", tuple(map(str, names)), parts, options)


def _labels(table: Any, image: str, label: str, source: str) -> list[Any]:
    """Return a split's labels: names of classes where it has them, else numbers or words; -1 where it hides them.

    Splits may number the same classes in different orders.
    """
    for wanted in (image, label):
        if wanted not in table.features:
            raise DatasetError(f"{source}: no column {wanted!r}, which the split train has")
    column = list(table[label])
    if None in column:
        raise DatasetError(f"{source}: {column.count(None)} rows have no {label!r}")
    odd = next((value for value in column if not isinstance(value, (int, str))), None)
    if odd is not None:
        raise DatasetError(
            f"{source}: {label!r} holds {type(odd).__name__}s, which are no classes; name another column"
        )
    names = getattr(table.features[label], "names", None)
    return [value if names is None or value == -1 else names[value] for value in column]


def _loaded(name: str) -> Mapping[str, Any]:
    """Return the tables by the names of their splits."""
    try:
        import datasets
    except ImportError as error:
        raise InvalidInputError("hf: data needs datasets: pip install 'xai-abn[datasets]'") from error
    saved = any((Path(name) / file).is_file() for file in _SAVED)
    try:
        found = datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
    except Exception as error:  # of the library's many kinds, and those of the network and the file formats
        raise DatasetError(f"hf:{name}: cannot be loaded ({' '.join(str(error).split())})") from error
    return found if isinstance(found, dict) else {"train": found}


def _columns(features: Mapping[str, Any], wanted: str, source: str) -> tuple[str, str]:
    """Return the names of the columns of pictures and of labels."""
    from datasets import ClassLabel, Image

    images = [name for name, kind in features.items() if isinstance(kind, Image)]
    classes = [name for name, kind in features.items() if isinstance(kind, ClassLabel)]
    usual = [name for name in ("label", "labels") if name in features]
    labels = [wanted] if wanted else classes if len(classes) == 1 else usual
    if not images:
        raise DatasetError(f"{source}: no column of images; its columns are {', '.join(features)}")
    if not labels or labels[0] not in features:
        raise DatasetError(f"{source}: which column holds the labels? Add #COLUMN; there are {', '.join(features)}")
    return images[0], labels[0]


def _undecoded(table: Any, column: str) -> Any:
    from datasets import Image

    return table.select_columns([column]).cast_column(column, Image(decode=False))
