"""Corrections: where a person says a classifier should look for a class, and where not, as files."""

from __future__ import annotations

import io
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args, overload

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from xai_abn.datasets.readers.coco import INSTANCES
from xai_abn.datasets.sample import read_dataset
from xai_abn.errors import DatasetError, InvalidInputError, OutputError, shown
from xai_abn.files import digest, key_of, replacing
from xai_abn.images.loading import FORMATS, LoadedImage, decode_image, load_image

if TYPE_CHECKING:
    from xai_abn.models.adapter import ModelAdapter

#: What a mark says about its part of the image.
Kind: TypeAlias = Literal["look here", "not here"]
LOOK: Kind = "look here"
AVOID: Kind = "not here"
#: The maps that can be marked apart.
MarkedMap: TypeAlias = Literal["attention-map", "class-map"]
MARKED_MAPS: tuple[MarkedMap, ...] = get_args(MarkedMap)
#: Name and version of the format of a record.
FORMAT: Literal["xai-abn-correction"] = "xai-abn-correction"
VERSION: Literal[2] = 2
#: Folder of the images in a folder of corrections.
IMAGES = "images"
#: Start of the name of a category that marks where not to look, in COCO's format.
_AVOID_PREFIX = f"{AVOID}: "
#: Letters of an image's or a class's name in the name of a file.
_LONGEST = 40


class _ImageRecord(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    digest: str = Field(pattern="^[0-9a-f]{32}$")
    name: str = Field(min_length=1, max_length=1000)
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    file: str = Field(pattern=r"^images/[0-9a-f]{32}\.[a-z0-9]{1,5}$")


class _ModelRecord(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(max_length=1000)
    classes: int = Field(ge=1)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal["xai-abn-correction"]
    format_version: Literal[2]
    image: _ImageRecord
    model: _ModelRecord | None
    target: int | None = Field(ge=0)
    label: str = Field(min_length=1, max_length=1000)
    kind: Kind
    on: MarkedMap | None
    mask: str = Field(pattern=r"^[^/\\]+\.png$", max_length=255)
    time: str = Field(max_length=40)


@dataclass(frozen=True)
class Correction:
    """One mark of an image for one class, on one map or on none in particular.

    Attributes:
        path: its record, a JSON file; the mask is beside it.
        kind: ``"look here"`` or ``"not here"``.
        on: the map that was marked, ``"attention-map"`` or ``"class-map"``; None for a mark that holds for every map.
        label: name of the class.
        target: index of the class in the model; None if the mark was made without a model.
        name: what the image was called.
        image_digest: hash of the image, see :func:`image_digest`.
        size: (height, width) of the image.
        model: name of the model that was corrected, or None.
        classes: number of classes of that model, or None.
        time: when it was saved, ISO 8601 in UTC.
    """

    path: Path
    kind: Kind
    on: MarkedMap | None
    label: str
    target: int | None
    name: str
    image_digest: str
    size: tuple[int, int]
    model: str | None
    classes: int | None
    time: str
    _image: str = field(repr=False)
    _mask: str = field(repr=False)

    @property
    def mask(self) -> np.ndarray:
        """The marked pixels, (height, width) bool of the whole image.

        Raises:
            DatasetError: the file is missing or damaged, has another size than the image, or marks nothing or all.
        """
        path = self.path.parent / self._mask
        try:
            with Image.open(path, formats=["PNG"]) as image:
                mask = np.asarray(image.convert("L")) >= 128
        except Exception as error:  # decoders raise errors of many types on damaged files
            raise DatasetError(f"{path}: expected a mask as PNG ({error}); mark the image again") from error
        _check_mask(mask, self.size, str(path), DatasetError)
        return mask

    def holds_for(self, on: MarkedMap | None) -> bool:
        """Return whether the mark is meant for a map, or given None for any: one on no map in particular always is."""
        return on is None or self.on in (on, None)

    def load(self) -> LoadedImage:
        """Return the image as it was corrected.

        Raises:
            ImageLoadError: the file is missing or damaged.
            DatasetError: it is another image.
        """
        loaded = load_image(self.path.parent / self._image)
        self.check(loaded)
        return loaded

    def check(self, image: LoadedImage) -> None:
        """Refuse another image than the one that was corrected.

        Raises:
            DatasetError: it has another size or other pixels.
        """
        size = (image.image.height, image.image.width)
        if size != self.size:
            raise DatasetError(
                f"{self.path}: the correction is for {self.name} of {self.size[1]}x{self.size[0]} pixels, "
                f"{image.source} has {size[1]}x{size[0]}; give the image that was corrected"
            )
        if image_digest(image) != self.image_digest:
            raise DatasetError(
                f"{self.path}: the correction is for {self.name}, and {image.source} is another image or was changed; "
                "give the image that was corrected"
            )

    def target_in(self, model: ModelAdapter) -> int:
        """Return the index of the class in a model: of the same label, or without labels of the same index.

        Raises:
            DatasetError: the model has no such class.
        """
        labels = [label.casefold() for label in model.labels or ()]
        if self.label.casefold() in labels:
            same = [index for index, label in enumerate(labels) if label == self.label.casefold()]
            return self.target if self.target in same else same[0]
        if not labels and self.target is not None and self.classes == model.number_of_classes:
            return self.target
        made = f"for {self.model}" if self.model else "without a model"
        raise DatasetError(
            f"{self.path}: the correction was made {made} and is for the class {self.label!r}, which {model.name} does "
            "not have; use a model with this class or leave the correction out"
        )


class Corrections(Sequence[Correction]):
    """A folder of corrections: for each one JSON record and one PNG mask, and the images in ``images/``.

    Records are read when the folder is opened, masks and images when they are asked for. A record that cannot be read
    is left out and named in ``problems``. There is one correction for an image, class, kind and map; another replaces
    it.

    Args:
        folder: made when the first correction is added.

    Attributes:
        folder: the folder.
        problems: (file, reason) of records that cannot be used.

    Raises:
        DatasetError: the folder is a file, or cannot be read.

    Examples:
        >>> import numpy as np, tempfile, xai_abn
        >>> corrections = xai_abn.Corrections(tempfile.mkdtemp())
        >>> mask = np.zeros((300, 451), bool)
        >>> mask[20:250, 140:330] = True
        >>> corrections.add("example:cat", mask, "tabby").kind
        'look here'
        >>> [c.label for c in corrections]
        ['tabby']
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.problems: tuple[tuple[str, str], ...] = ()
        self._by_path: dict[Path, Correction] = {}
        if self.folder.exists() and not self.folder.is_dir():
            raise DatasetError(f"{folder}: a file; give a folder of corrections")
        try:
            files = sorted(self.folder.glob("*.json")) if self.folder.is_dir() else []
            contents = [(file, file.read_bytes()) for file in files if file.name != INSTANCES]
        except OSError as error:
            raise DatasetError(f"{error.filename or folder}: cannot be read ({error.strerror or error})") from error
        problems = []
        for file, content in contents:
            try:
                self._by_path[file] = _read(file, content)
            except DatasetError as error:
                problems.append((str(file), str(error)))
        self.problems = tuple(problems)

    def __len__(self) -> int:
        """Return the number of corrections."""
        return len(self._by_path)

    @overload
    def __getitem__(self, index: int) -> Correction: ...
    @overload
    def __getitem__(self, index: slice) -> list[Correction]: ...
    def __getitem__(self, index: Any) -> Any:
        """Return one correction, or several as a list."""
        return list(self._by_path.values())[index]

    def __iter__(self) -> Iterator[Correction]:
        """Return the corrections in the order of their files."""
        return iter(list(self._by_path.values()))

    def __repr__(self) -> str:
        """Return folder and number."""
        return f"Corrections({str(self.folder)!r}, {len(self)} corrections)"

    def of(self, image: LoadedImage | str | Path) -> list[Correction]:
        """Return the corrections of an image, recognized by its pixels.

        Raises:
            ImageLoadError: the image cannot be read.
        """
        found = image_digest(image if isinstance(image, LoadedImage) else load_image(image))
        return [c for c in self if c.image_digest == found]

    def add(
        self,
        image: LoadedImage | str | Path | bytes,
        mask: np.ndarray,
        label: str | int,
        kind: Kind = LOOK,
        *,
        on: MarkedMap | None = None,
        model: ModelAdapter | None = None,
        name: str | None = None,
    ) -> Correction:
        """Save a correction, in place of an earlier one for the same image, class, kind and map.

        When this returns, mask and record are on the disk, whole.

        Args:
            image: a path, ``"example:NAME"``, a loaded image, or the bytes of an image file.
            mask: (height, width) bool, of the whole image: the marked pixels.
            label: the class: a label, or with a model also an index.
            kind: whether the model should look there, or not.
            on: the map that is marked, ``"attention-map"`` or ``"class-map"``; default: every map.
            model: the model that is corrected, which must have the class.
            name: what to call the image; default: its own name.

        Raises:
            ImageLoadError: the image cannot be read.
            InvalidInputError: the mask has another size than the image, marks nothing or everything, or is marked the
                other way as well; or an unknown kind or map.
            UnknownNameError: the model has no such class.
            OutputError: the folder cannot be written to.
        """
        if kind not in (LOOK, AVOID):
            raise InvalidInputError(f"kind must be {LOOK!r} or {AVOID!r}, got {shown(kind)}")
        marked = _Marked.of(image, label, model, name, on)
        mask = marked.checked(mask)
        self._check_apart(marked, {kind: mask})
        return self._write(marked, mask, kind)

    def mark(
        self,
        image: LoadedImage | str | Path | bytes,
        label: str | int,
        look: np.ndarray | None = None,
        avoid: np.ndarray | None = None,
        *,
        on: MarkedMap | None = None,
        model: ModelAdapter | None = None,
        name: str | None = None,
    ) -> list[Correction]:
        """Save all marks of an image for a class, in place of all earlier ones; without marks these are deleted.

        Only those of the same map are replaced, and with ``on`` those that hold for every map.

        Args:
            image: see :meth:`add`.
            label: the class.
            look: where to look, (height, width) bool, or None.
            avoid: where not to look, likewise.
            on: see :meth:`add`.
            model: the model that is corrected.
            name: what to call the image.

        Returns:
            The corrections that were saved.

        Raises:
            As :meth:`add`; then nothing has changed.
        """
        marked = _Marked.of(image, label, model, name, on)
        given = {kind: marked.checked(m) for kind, m in ((LOOK, look), (AVOID, avoid)) if m is not None}
        if len(given) == 2:
            marked.check_apart(*given.values())
        replaced = [other for other in self._like(marked) if other.on in (marked.on, None)]
        self._check_apart(marked, given, replaced)
        saved = [self._write(marked, mask, kind) for kind, mask in given.items()]
        for other in replaced:
            if other.path not in [one.path for one in saved]:
                self.remove(other)
        return saved

    def _like(self, marked: _Marked) -> list[Correction]:
        """Return the corrections of the same image and class that meet others of the same map."""
        return [
            other
            for other in self
            if (other.image_digest, other.label) == (marked.digest, marked.label) and other.holds_for(marked.on)
        ]

    def _check_apart(
        self, marked: _Marked, given: Mapping[Kind, np.ndarray], replaced: Sequence[Correction] = ()
    ) -> None:
        """Refuse masks that contradict other marks."""
        for other in self._like(marked):
            for kind, mask in given.items():
                if other.kind != kind and other not in replaced:
                    marked.check_apart(mask, other.mask)

    def _write(self, marked: _Marked, mask: np.ndarray, kind: Kind) -> Correction:
        image, model = marked.image.image, marked.model
        of_map = {} if marked.on is None else {"on": marked.on}
        key = key_of(image=marked.digest, label=marked.label, kind=kind, **of_map)[:8]
        parts = (Path(marked.name).stem, marked.label, kind, *of_map.values())
        stem = "-".join([*map(_slug, parts), key])
        record = _Record(
            format=FORMAT,
            format_version=VERSION,
            image=_ImageRecord(
                digest=marked.digest, name=marked.name, width=image.width, height=image.height, file=self._keep(marked)
            ),
            model=None if model is None else _ModelRecord(name=model.name, classes=model.number_of_classes),
            target=marked.target,
            label=marked.label,
            kind=kind,
            on=marked.on,
            mask=f"{stem}.png",
            time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        with replacing(self.folder / record.mask, "correction ") as draft:
            Image.fromarray(mask.astype(np.uint8) * 255).save(draft, "PNG")
        path = self.folder / f"{stem}.json"
        with replacing(path, "correction ") as draft:  # last: a mask without a record is no correction
            draft.write_text(json.dumps(record.model_dump(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        self._by_path[path] = _correction(path, record)
        return self._by_path[path]

    def remove(self, correction: Correction) -> None:
        """Delete a correction; the image stays while another correction is of it.

        Raises:
            OutputError: a file cannot be deleted.
        """
        self._by_path.pop(correction.path, None)
        files = [correction.path, correction.path.parent / correction._mask]
        if all(c.image_digest != correction.image_digest for c in self):
            files.append(correction.path.parent / correction._image)
        try:
            for file in files:
                file.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot delete {error.filename}: {error.strerror or error}") from error

    def check(self, model: ModelAdapter | None = None) -> None:
        """Refuse corrections that cannot be used: read every mask and image, and look for contradictions.

        Args:
            model: also refuse those of classes that this model does not have.

        Raises:
            DatasetError: the first problem found.
            ImageLoadError: an image is missing or damaged.
        """
        if self.problems:
            raise DatasetError(self.problems[0][1])
        marks: dict[tuple[str, str], list[Correction]] = {}
        for correction in self:
            correction.load()
            mask = correction.mask
            if model is not None:
                correction.target_in(model)
            earlier = marks.setdefault((correction.image_digest, correction.label), [])
            for other in earlier:
                meet = other.kind != correction.kind and (other.holds_for(correction.on) or correction.on is None)
                if meet and bool((mask & other.mask).any()):
                    raise DatasetError(
                        f"{correction.path} and {other.path.name} mark the same pixels {LOOK!r} and {AVOID!r} for "
                        f"{correction.label!r}; change or delete one of them"
                    )
            earlier.append(correction)

    def import_coco(
        self,
        place: str | Path,
        *,
        model: ModelAdapter | None = None,
        images: str | Path | None = None,
        labels: Mapping[str, str | int | None] | None = None,
    ) -> int:
        """Add corrections from annotations in COCO's format, and return how many.

        All objects of a class in an image become one mark of where to look for it. A category called ``not here:
        CLASS`` marks where not to look.

        Args:
            place: a JSON file, or a folder with one; see the reader ``coco``.
            model: the model that is corrected, which must have the classes.
            images: folder of the images, if it is not beside the file.
            labels: the class that a category stands for, where it has another name; None leaves the category out.

        Raises:
            DatasetError: the annotations are damaged, or an image is missing.
            UnknownNameError: the model has no class called as a category.
            InvalidInputError: a mark covers the whole image, or contradicts another.
        """
        data = read_dataset(f"coco:{place}", images)
        if data.problems:
            raise DatasetError(": ".join(data.problems[0]))
        count = 0
        for sample in data.samples:
            if not sample.objects:
                continue
            loaded = sample.load()
            size = (loaded.image.height, loaded.image.width)
            sample.check(size)
            masks: dict[tuple[str | int, Kind], np.ndarray] = {}
            for thing in sample.objects:
                kind, name = (
                    (AVOID, thing.label[len(_AVOID_PREFIX) :]) if _is_avoid(thing.label) else (LOOK, thing.label)
                )
                label = (labels or {}).get(name, name)
                if label is not None:
                    mask = masks.setdefault((label, kind), np.zeros(size, bool))
                    mask |= thing.mask(size).numpy()
            for (label, kind), mask in masks.items():
                self.add(sample.source, mask, label, kind, model=model)
                count += 1
        return count

    def export_coco(self, file: str | Path | None = None) -> Path:
        """Write all corrections as one file in COCO's format, with masks as run lengths, and return its path.

        A mark of where not to look is in the category ``not here: CLASS``. Which map was marked is not written: when
        imported, the marks hold for every map.

        Args:
            file: where to; default: ``instances.json`` in the folder, beside ``images/``, where readers look for it.

        Raises:
            DatasetError: a mask cannot be read.
            OutputError: the file cannot be written.
        """
        from pycocotools import mask as coco

        path = self.folder / INSTANCES if file is None else Path(file)
        names = sorted({_category(c) for c in self})
        images: dict[str, dict[str, Any]] = {}
        annotations: list[dict[str, Any]] = []
        for correction in self:
            image = images.setdefault(
                correction.image_digest,
                {
                    "id": len(images) + 1,
                    "file_name": Path(correction._image).name,
                    "width": correction.size[1],
                    "height": correction.size[0],
                },
            )
            runs = coco.encode(np.asfortranarray(correction.mask.astype(np.uint8)))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": names.index(_category(correction)) + 1,
                    "bbox": coco.toBbox(runs).tolist(),
                    "area": int(coco.area(runs)),
                    "segmentation": {"size": list(correction.size), "counts": runs["counts"].decode()},
                    "iscrowd": 0,
                }
            )
        categories = [{"id": index, "name": name} for index, name in enumerate(names, 1)]
        document = {"images": list(images.values()), "annotations": annotations, "categories": categories}
        with replacing(path) as draft:
            draft.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
        return path

    def _keep(self, marked: _Marked) -> str:
        """Keep a copy of the image in the folder, as it was given, and return its name there."""
        content = marked.content
        if content is None:
            buffer = io.BytesIO()
            marked.image.image.save(buffer, "PNG")
            content = buffer.getvalue()
        with Image.open(io.BytesIO(content), formats=[f for f in FORMATS if f in Image.OPEN]) as opened:
            ending = {"JPEG": "jpg", "MPO": "jpg", "JPEG2000": "jp2"}.get(opened.format or "", opened.format or "png")
        name = f"{IMAGES}/{marked.digest}.{ending.lower()}"
        try:
            (self.folder / IMAGES).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make {self.folder / IMAGES}: {error.strerror or error}") from error
        if not (self.folder / name).exists():
            with replacing(self.folder / name, "image ") as draft:
                draft.write_bytes(content)
        return name


@dataclass(frozen=True, eq=False)
class _Marked:
    """What is marked: an image, with the bytes of its file if there is one, and a class."""

    image: LoadedImage
    content: bytes | None
    name: str
    digest: str
    label: str
    target: int | None
    model: ModelAdapter | None
    on: MarkedMap | None

    @classmethod
    def of(
        cls,
        image: LoadedImage | str | Path | bytes,
        label: str | int,
        model: ModelAdapter | None,
        name: str | None,
        on: MarkedMap | None,
    ) -> _Marked:
        if on not in (*MARKED_MAPS, None):
            raise InvalidInputError(f"on must be {' or '.join(map(repr, MARKED_MAPS))}, or None, got {shown(on)}")
        content: bytes | None = None
        if isinstance(image, bytes):
            content, image = image, decode_image(image, name or "image")
        elif not isinstance(image, LoadedImage):
            source, image = str(image), load_image(image)
            content = Path(source).read_bytes() if Path(source).is_file() else None
        target = None if model is None else model.target_index(label, model.number_of_classes)
        label = model.label(target) if model is not None and target is not None else str(label)
        called = Path(name or image.source).name or "image"
        return cls(image, content, called, image_digest(image), label, target, model, on)

    def checked(self, mask: np.ndarray) -> np.ndarray:
        """Return a mask that fits the image and marks a part of it."""
        mask = np.asarray(mask)
        if mask.dtype != bool:
            raise InvalidInputError(f"a mask must be bool, True where the image is marked, got {mask.dtype}")
        size = (self.image.image.height, self.image.image.width)
        _check_mask(mask, size, f"the mask of {self.name}", InvalidInputError)
        return mask

    def check_apart(self, mask: np.ndarray, other: np.ndarray) -> None:
        """Refuse pixels that are marked both ways."""
        if both := int((mask & other).sum()):
            raise InvalidInputError(
                f"{both} pixels of {self.name} are marked both {LOOK!r} and {AVOID!r} for {self.label!r}; a "
                "pixel must have one mark"
            )


def image_digest(image: LoadedImage) -> str:
    """Return the hash of an image by which corrections know it: of its size and its upright 8-bit RGB pixels."""
    return digest(f"{image.image.width}x{image.image.height}".encode(), image.image.tobytes())


def _check_mask(
    mask: np.ndarray, size: tuple[int, int], what: str, error: type[DatasetError | InvalidInputError]
) -> None:
    if mask.shape != size:
        got = "x".join(map(str, mask.shape[::-1]))
        raise error(f"{what} is {got} and the image {size[1]}x{size[0]} pixels; give a mask of the image's size")
    if not mask.any():
        raise error(f"{what} is empty; it must mark a part of the image")
    if mask.all():
        raise error(f"{what} covers the whole image, which says nothing; it must mark a part")


def _read(path: Path, content: bytes) -> Correction:
    """Return the correction that a record describes.

    Raises:
        DatasetError: it is damaged, foreign or newer.
    """
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: expected JSON ({shown(str(error))}); mark the image again") from error
    if isinstance(raw, dict) and raw.get("format") == FORMAT:
        version = raw.get("format_version")
        if isinstance(version, int) and version > VERSION:
            raise DatasetError(f"{path}: written by a newer xai-abn (format {version}); update xai-abn to load it")
        if version == 1 and "on" not in raw:  # which did not know on which map a mark was painted
            raw |= {"format_version": VERSION, "on": None}
    try:
        record = _Record.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the record"
        raise DatasetError(
            f"{path}: expected the record of a correction; {where}: {shown(first['msg'])}; mark the image again"
        ) from error
    return _correction(path, record)


def _correction(path: Path, record: _Record) -> Correction:
    image, model = record.image, record.model
    return Correction(
        path,
        record.kind,
        record.on,
        record.label,
        record.target,
        image.name,
        image.digest,
        (image.height, image.width),
        None if model is None else model.name,
        None if model is None else model.classes,
        record.time,
        image.file,
        record.mask,
    )


def _category(correction: Correction) -> str:
    return correction.label if correction.kind == LOOK else _AVOID_PREFIX + correction.label


def _is_avoid(name: str) -> bool:
    return name.startswith(_AVOID_PREFIX) and len(name) > len(_AVOID_PREFIX)


def _slug(text: str) -> str:
    """Return a text as it may stand in the name of a file: letters, digits and hyphens."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:_LONGEST].strip("-") or "x"
