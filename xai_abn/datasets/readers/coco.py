"""Images with objects in COCO's instance format."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, StrictInt, Tag, TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from xai_abn.datasets.imagenet_classes import wnids_of
from xai_abn.datasets.sample import READERS, AnnotatedObject, Dataset, Outline, Sample
from xai_abn.errors import DatasetError

#: Name of the annotations in a folder.
INSTANCES = "instances.json"
#: Folder of the images, beside the annotations.
IMAGES = "images"


def _check_text(text: str) -> str:
    if not text.strip():
        raise ValueError("a name that is not blank")
    return text


def _check_corners(polygon: list[float]) -> list[float]:
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError("x, y of at least 3 corners")
    return polygon


def _check_compressed(counts: str) -> str:
    # the highest of the 6 bits of a character says that the number goes on; pycocotools would read on past the end
    if not re.fullmatch(r"([0-o]*[0-O])?", counts):
        raise ValueError("COCO's compressed run lengths")
    return counts


def _check_runs(runs: _RunLengths) -> _RunLengths:
    (height, width), counts = runs["size"], runs["counts"]
    if isinstance(counts, list) and sum(counts) != height * width:
        raise ValueError(f"run lengths that cover {width}x{height} pixels")
    return runs


Number = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Text = Annotated[str, AfterValidator(_check_text), Field(strict=True)]
Count = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
Compressed = Annotated[str, AfterValidator(_check_compressed), Field(strict=True)]


class _RunLengths(TypedDict):
    size: tuple[Count, Count]
    counts: Annotated[
        Annotated[list[Count], Tag("lengths")] | Annotated[Compressed, Tag("compressed")],
        Discriminator(lambda value: "compressed" if isinstance(value, str) else "lengths"),
    ]


_Segmentation = Annotated[
    Annotated[list[Annotated[list[Number], AfterValidator(_check_corners)]], Tag("polygons")]
    | Annotated[_RunLengths, AfterValidator(_check_runs), Tag("runs")],
    Discriminator(lambda value: "runs" if isinstance(value, dict) else "polygons"),
]
#: The tags above, which pydantic puts into the places of errors.
_TAGS = ("lengths", "compressed", "polygons", "runs")


class _Image(TypedDict):
    id: StrictInt
    file_name: Text


class _Category(TypedDict):
    id: StrictInt
    name: Text


class _Annotation(TypedDict):
    image_id: StrictInt
    category_id: StrictInt
    bbox: tuple[Number, Number, Number, Number]
    iscrowd: NotRequired[Annotated[int, Field(ge=0, le=1)]]
    segmentation: NotRequired[_Segmentation | None]


class _Instances(TypedDict):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


@READERS.register("coco")
def read_coco(place: str) -> Dataset:
    """Read images annotated in COCO's instance format.

    Args:
        place: a folder with ``instances.json`` and ``images/``, or such a JSON file with ``images/`` beside it.

    Returns:
        The images that have objects, in the order of the file. Images that are absent or have no object are among the
        problems.

    Raises:
        DatasetError: nothing is there, or the file is damaged, incomplete or contradicts itself.
    """
    file = Path(place) if Path(place).suffix.lower() == ".json" else Path(place) / INSTANCES
    document = _load(file)
    names = _by_id(document["categories"], "categories", "name", file)
    images = _by_id(document["images"], "images", "file_name", file)
    objects: dict[int, list[AnnotatedObject]] = {key: [] for key in images}
    for index, record in enumerate(document["annotations"]):
        where = f"{file}: annotations[{index}]"
        if record["image_id"] not in images:
            raise DatasetError(f"{where} belongs to image_id {record['image_id']}, which is not among the images")
        if record["category_id"] not in names:
            raise DatasetError(f"{where} has category_id {record['category_id']}, which is not among the categories")
        objects[record["image_id"]].append(_object(record, names[record["category_id"]]))
    samples, problems = [], []
    for key, name in images.items():
        path = file.parent / IMAGES / name
        if not path.is_file():
            problems.append((str(path), "no such file"))
        elif not objects[key]:
            problems.append((str(path), "no annotated object"))
        else:
            samples.append(Sample(str(path), tuple(objects[key])))
    wnids = {name: wnids_of(name) for name in names.values() if wnids_of(name)}
    return Dataset("coco", {"train": samples}, tuple(names.values()), wnids, tuple(problems))


def _load(file: Path) -> _Instances:
    """Read and check the JSON file."""
    if not file.is_file():
        raise DatasetError(f"{file}: no such file; give a folder with {INSTANCES} and {IMAGES}/, or a .json file")
    if not (file.parent / IMAGES).is_dir():
        raise DatasetError(f"{file.parent / IMAGES}: no such folder; put the images there, beside {file.name}")
    try:
        return TypeAdapter(_Instances).validate_json(file.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read ({error.strerror or error})") from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise DatasetError(f"{file}: {_describe(problem)}") from error


def _describe(problem: Any) -> str:
    """Return where in the document the first problem is, what was expected there, and what came."""
    if problem["type"] == "json_invalid":
        return f"cannot be read as JSON ({problem['msg']}); expected COCO's instance format"
    where = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in problem["loc"] if key not in _TAGS)
    where = where.removeprefix(".") or "the document"
    if problem["type"] == "missing":
        return f"{where} is missing; expected COCO's instance format"
    expected = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    text = repr(problem["input"])
    return f"{where}: expected {expected}, got {text if len(text) <= 40 else f'{text[:37]}...'}"


def _by_id(records: list[Any], kind: str, text: str, file: Path) -> dict[int, str]:
    """Return the names of records by id, refusing ids and names that occur twice."""
    named: dict[int, str] = {}
    seen = set()
    for index, record in enumerate(records):
        if record["id"] in named or record[text] in seen:
            raise DatasetError(
                f"{file}: {kind}[{index}] repeats id {record['id']} or {text} {record[text]!r}; each must occur once"
            )
        named[record["id"]] = record[text]
        seen.add(record[text])
    return named


def _object(record: _Annotation, label: str) -> AnnotatedObject:
    left, top, width, height = record["bbox"]
    segmentation = record.get("segmentation")
    outline: Outline = ()
    if isinstance(segmentation, dict):
        outline = {"size": list(segmentation["size"]), "counts": segmentation["counts"]}
    elif segmentation:
        outline = tuple(map(tuple, segmentation))
    return AnnotatedObject(
        label, (left, top, left + width, top + height), outline, crowd=bool(record.get("iscrowd", 0))
    )
