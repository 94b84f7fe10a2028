"""Photos with objects in COCO's instance format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from xai_abn.datasets.annotated import AnnotatedData, AnnotatedImage, AnnotatedObject, datasets
from xai_abn.datasets.imagenet_classes import wnids_of
from xai_abn.errors import DatasetError

#: The file looked for in a folder.
INSTANCES = "instances.json"
#: The folder of the photos, beside the file.
IMAGES = "images"
#: No coordinate is as large as this; NaN and infinity are refused with it.
LARGEST = 1e9

#: How messages call the types of JSON.
KINDS: dict[type, str] = {int: "a whole number", str: "a text", list: "a list"}
Runs = tuple[int, ...]
Polygons = tuple[tuple[float, ...], ...]


@datasets.register("coco")
def read_coco(path: str) -> AnnotatedData:
    """Read photos annotated in COCO's instance format.

    Args:
        path: a folder with ``instances.json`` and ``images/``, or such a JSON file with ``images/`` beside it.

    Returns:
        The photos that have objects, in the order of the file. Photos that are absent or have no object are
        among the problems.

    Raises:
        DatasetError: nothing there, or the file is damaged, lacks something or contradicts itself.
    """
    file = Path(path) if Path(path).suffix.lower() == ".json" else Path(path) / INSTANCES
    document = _load(file)
    names = _categories(document, file)
    photos = _images(document, file)
    objects: dict[int, list[AnnotatedObject]] = {key: [] for key in photos}
    for index, record in enumerate(_records(document, "annotations", file)):
        where = f"{file}: annotations[{index}]"
        owner, category = _get(record, "image_id", int, where), _get(record, "category_id", int, where)
        if owner not in photos:
            raise DatasetError(f"{where} belongs to image_id {owner}, which is not among the images")
        if category not in names:
            raise DatasetError(f"{where} has category_id {category}, which is not among the categories")
        objects[owner].append(_object(record, names[category], where))
    found = {source: tuple(objects[key]) for key, source in photos.items()}
    problems = {source: "no such file" for source in found if not Path(source).is_file()}
    problems.update({s: "no annotated object" for s, things in found.items() if s not in problems and not things})
    images = tuple(AnnotatedImage(s, things) for s, things in found.items() if s not in problems)
    wnids = {name: wnids_of(name) for name in names.values() if wnids_of(name)}
    return AnnotatedData("coco", images, tuple(names.values()), wnids, tuple(problems.items()))


def decode_counts(text: str) -> list[int]:
    """Decode the run lengths that COCO's tool packs into a string.

    Each number is cut into groups of 5 bits, lowest first, each written as one character from ``"0"`` on; a
    sixth bit says that more follow. From the fourth number on, only the difference to the last but one is stored.

    Args:
        text: the string under ``counts``.

    Raises:
        DatasetError: a foreign character, an unfinished number, or a negative length.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise DatasetError(f"compressed run lengths hold {character!r}, which is none of COCO's characters")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift or any(count < 0 for count in counts):
        raise DatasetError("compressed run lengths are damaged: they are cut short or have a negative length")
    return counts


def _load(file: Path) -> dict[str, Any]:
    """Read the JSON file, checking that photos lie beside it."""
    if not file.is_file():
        raise DatasetError(f"{file}: no such file; give a folder with {INSTANCES} and {IMAGES}/, or a .json file")
    if not (file.parent / IMAGES).is_dir():
        raise DatasetError(f"{file.parent / IMAGES}: no such folder; put the photos there, beside {file.name}")
    try:
        document = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{file}: cannot be read as JSON ({error}); expected COCO's instance format") from error
    if not isinstance(document, dict):
        raise DatasetError(f"{file}: expected a JSON object with images, annotations and categories")
    return document


def _get(record: dict[str, Any], key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Return one value of a record, refusing a missing one or another type."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    wanted = " or ".join(KINDS[k] for k in kinds)
    if key not in record:
        raise DatasetError(f"{where} has no {key!r}; expected {wanted}")
    value = record[key]
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise DatasetError(f"{where}: {key!r} is {_short(value)}; expected {wanted}")
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _records(document: dict[str, Any], key: str, file: Path) -> list[dict[str, Any]]:
    """Return one of the file's lists of records."""
    records: list[dict[str, Any]] = _get(document, key, list, str(file))
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            raise DatasetError(f"{file}: {key}[{index}] is {_short(record)}; expected a JSON object")
    return records


def _by_id(document: dict[str, Any], key: str, text: str, file: Path) -> dict[int, str]:
    """Return id -> name of a list of records, refusing an id or a name that comes twice."""
    named: dict[int, str] = {}
    seen = set()
    for index, record in enumerate(_records(document, key, file)):
        where = f"{file}: {key}[{index}]"
        number, name = _get(record, "id", int, where), _get(record, text, str, where)
        if number in named or name in seen:
            raise DatasetError(f"{where} repeats id {number} or {text} {name!r}; each must come once")
        if not name.strip():
            raise DatasetError(f"{where}: {text!r} is empty; expected a name")
        named[number] = name
        seen.add(name)
    return named


def _categories(document: dict[str, Any], file: Path) -> dict[int, str]:
    return _by_id(document, "categories", "name", file)


def _images(document: dict[str, Any], file: Path) -> dict[int, str]:
    return {
        key: str(file.parent / IMAGES / name) for key, name in _by_id(document, "images", "file_name", file).items()
    }


def _numbers(values: object, where: str) -> tuple[float, ...]:
    """Return a list of finite numbers, refusing anything else."""
    if not isinstance(values, list) or not all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < LARGEST for v in values
    ):
        raise DatasetError(f"{where} is {_short(values)}; expected a list of numbers, each finite")
    return tuple(float(v) for v in values)


def _object(record: dict[str, Any], label: str, where: str) -> AnnotatedObject:
    """Turn one annotation into an object."""
    box = _numbers(_get(record, "bbox", list, where), f"{where}: 'bbox'")
    if len(box) != 4:
        raise DatasetError(f"{where}: 'bbox' has {len(box)} numbers; expected left, top, width, height")
    left, top, width, height = box
    crowd = record.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise DatasetError(f"{where}: 'iscrowd' is {_short(crowd)}; expected 0 or 1")
    polygons, runs = _segmentation(record.get("segmentation"), f"{where}: 'segmentation'")
    return AnnotatedObject(label, (left, top, left + width, top + height), polygons, runs, crowd=bool(crowd))


def _segmentation(value: object, where: str) -> tuple[Polygons, Runs]:
    """Return an outline as polygons, or as run lengths, or neither."""
    if value is None:
        return (), ()
    if isinstance(value, dict):
        return (), _runs(value, where)
    if not isinstance(value, list):
        raise DatasetError(f"{where} is {_short(value)}; expected a list of polygons, run lengths or null")
    polygons = tuple(_numbers(outline, f"{where}[{index}]") for index, outline in enumerate(value))
    for index, outline in enumerate(polygons):
        if len(outline) % 2 or len(outline) < 6:
            raise DatasetError(f"{where}[{index}] has {len(outline)} numbers; expected x, y of at least 3 corners")
    return polygons, ()


def _runs(value: dict[str, Any], where: str) -> Runs:
    """Return run lengths, decoding COCO's compressed string, and check that they fill the photo."""
    counts = _get(value, "counts", (list, str), where)
    size = _numbers(_get(value, "size", list, where), f"{where}: 'size'")
    if isinstance(counts, str):
        try:
            counts = decode_counts(counts)
        except DatasetError as error:
            raise DatasetError(f"{where}: {error}") from error
    if not all(type(count) is int and count >= 0 for count in counts):
        raise DatasetError(f"{where}: 'counts' must be whole numbers from 0 on, or COCO's compressed string")
    if len(size) != 2 or sum(counts) != size[0] * size[1]:
        raise DatasetError(f"{where}: 'counts' cover {sum(counts)} pixels; 'size' is {_short(value['size'])}")
    return tuple(counts)
