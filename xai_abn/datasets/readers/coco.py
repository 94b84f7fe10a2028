"""Images with objects in COCO's instance format."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from xai_abn.datasets.imagenet_classes import wnids_of
from xai_abn.datasets.sample import READERS, AnnotatedObject, Dataset, ImageFinder, Outline, Sample
from xai_abn.errors import DatasetError

#: Name of the annotations in a folder.
INSTANCES = "instances.json"
#: Folder of the images.
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


def _as_text(key: object) -> str:
    if isinstance(key, bool) or not isinstance(key, (int, float, str)):
        raise ValueError("a number or a text")
    return str(int(key)) if isinstance(key, float) and key.is_integer() else str(key)


#: Ids are whole numbers; some tools write texts, or numbers with a decimal point.
Id = Annotated[str, BeforeValidator(_as_text)]
Side = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Image(TypedDict):
    id: Id
    file_name: Text
    width: NotRequired[Side | None]
    height: NotRequired[Side | None]


class _Category(TypedDict):
    id: Id
    name: Text


class _Annotation(TypedDict):
    image_id: Id
    category_id: Id
    bbox: tuple[Number, Number, Number, Number]
    iscrowd: NotRequired[Annotated[int, Field(ge=0, le=1)]]
    segmentation: NotRequired[_Segmentation | None]


class _Instances(TypedDict):
    images: list[_Image]
    annotations: list[dict[str, Any]]
    categories: list[_Category]


@READERS.register("coco")
def read_coco(place: str, images: Path | None = None) -> Dataset:
    """Read images annotated in COCO's instance format, laid out as COCO, CVAT, Roboflow or Label Studio do.

    Args:
        place: a JSON file, or a folder with ``instances.json``, ``_annotations.coco.json``, ``result.json``, or one
            file in ``annotations/``.
        images: folder of the images; default: ``images/`` beside the file or above its folder, the folder of the file,
            or one called as the end of the file's name, as ``val2017`` for ``annotations/instances_val2017.json``.

    Returns:
        The images in the order of the file, also those without objects. Images that are absent, or have an annotation
        that cannot be read, are among the problems.

    Raises:
        DatasetError: nothing is there, or the file is damaged, incomplete or contradicts itself.
    """
    file = _annotation_file(Path(place))
    document = _load(file)
    names = {record["id"]: record["name"] for record in document["categories"]}
    if len(names) < len(document["categories"]):
        raise DatasetError(f"{file}: categories repeat an id; each must occur once")
    listed = _by_id(document["images"], file)
    objects: dict[str, list[AnnotatedObject]] = {key: [] for key in listed}
    damaged: dict[str, str] = {}
    for index, annotation in enumerate(document["annotations"]):
        where = f"annotations[{index}]"
        try:
            read = _read_annotation(annotation, where)
            if read["image_id"] not in listed:
                raise DatasetError(f"{where} belongs to image_id {read['image_id']}, which is not among the images")
            if read["category_id"] not in names:
                raise DatasetError(f"{where} has category_id {read['category_id']}, which is not among the categories")
            objects[read["image_id"]].append(_object(read, names[read["category_id"]]))
        except DatasetError as error:
            key = _image_of(annotation)
            if key not in listed:  # no one knows which image it costs
                raise DatasetError(f"{file}: {error}") from error
            damaged.setdefault(key, str(error))
    finder = ImageFinder(_folders(file, images), [record["file_name"] for record in listed.values()])
    samples, problems = [], []
    for key, record in listed.items():
        path = finder.find(record["file_name"])
        if path is None:
            problems.append((record["file_name"], finder.missing(record["file_name"])))
        elif key in damaged:
            problems.append((str(path), damaged[key]))
        else:
            samples.append(Sample(str(path), tuple(objects[key]), size=_size(record)))
    wnids = {name: wnids_of(name) for name in names.values() if wnids_of(name)}
    return Dataset("coco", {"train": samples}, tuple(dict.fromkeys(names.values())), wnids, tuple(problems))


_ANNOTATION = TypeAdapter(_Annotation)


def _image_of(annotation: dict[str, Any]) -> str | None:
    """Return the id of the image that an annotation belongs to, also of a damaged one."""
    try:
        return _as_text(annotation.get("image_id"))
    except ValueError:
        return None


def _read_annotation(annotation: dict[str, Any], where: str) -> _Annotation:
    """Check one annotation.

    Raises:
        DatasetError: it is damaged.
    """
    try:
        return _ANNOTATION.validate_python(annotation)
    except ValidationError:
        try:  # again, for the words of JSON in the message
            return _ANNOTATION.validate_json(json.dumps(annotation))
        except ValidationError as error:
            raise DatasetError(f"{where}.{_describe(error.errors(include_url=False)[0])}") from error


def _annotation_file(place: Path) -> Path:
    """Return the JSON file at a place."""
    if place.suffix.lower() == ".json" and not place.is_dir():
        return place
    found = [place / name for name in (INSTANCES, "_annotations.coco.json", "result.json") if (place / name).is_file()]
    found = found or sorted((place / "annotations").glob("instances*.json"))
    if len(found) == 1:
        return found[0]
    if not place.is_dir():
        raise DatasetError(f"{place}: no such folder; give one with {INSTANCES} and {IMAGES}/, or a .json file")
    problem = f"several files, {', '.join(f.name for f in found)}" if found else f"no {INSTANCES} and no annotations/"
    raise DatasetError(f"{place}: {problem}; give the .json file")


def _folders(file: Path, images: Path | None) -> list[Path]:
    """Return the folders in which the images may be."""
    if images is not None:
        if not images.is_dir():
            raise DatasetError(f"{images}: no such folder of images")
        return [images]
    above, part = file.parent.parent, file.stem.rpartition("_")[2]
    roots = [file.parent, above] if file.parent.name == "annotations" else [file.parent]
    return [folder for root in roots for folder in (root / IMAGES, root, root / part, root / IMAGES / part)]


def _size(record: _Image) -> tuple[int, int] | None:
    """Return the size of an image that the file records, (H, W); tools without one write 0 or nothing."""
    height, width = record.get("height"), record.get("width")
    return (round(height), round(width)) if height and width else None


def _load(file: Path) -> _Instances:
    """Read and check the JSON file."""
    if not file.is_file():
        raise DatasetError(f"{file}: no such file; give a folder with {INSTANCES} and {IMAGES}/, or a .json file")
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


def _by_id(records: list[_Image], file: Path) -> dict[str, _Image]:
    """Return the images by id, refusing ids and names that occur twice."""
    found: dict[str, _Image] = {}
    seen = set()
    for index, record in enumerate(records):
        if record["id"] in found or record["file_name"] in seen:
            raise DatasetError(
                f"{file}: images[{index}] repeats id {record['id']} or file_name {record['file_name']!r}; each must "
                "occur once"
            )
        found[record["id"]] = record
        seen.add(record["file_name"])
    return found


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
