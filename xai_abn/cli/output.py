"""Writing of overlays, sheets and maps into a folder, without replacing files of others."""

from __future__ import annotations

import io
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xai_abn.cli.options import ClipFormat, ImageFormat
from xai_abn.coco import DESCRIPTION, annotations_of, coco_document
from xai_abn.errors import OutputError
from xai_abn.explanation import Explanation, sheet
from xai_abn.files import digest, refuse_foreign, replacing
from xai_abn.images.volumes import NIFTI, is_own_nifti, nifti_bytes
from xai_abn.rendering import CLIP_MARK, DEFAULT_COLORMAP, check_drawing, clip_bytes, png_bytes

#: Text key of a PNG, and start of the comment of a JPEG, that marks an image as made by xai-abn. The records of the
#: maps follow.
IMAGE_KEY = "xai-abn"
#: Name of the file with annotations in COCO's format.
ANNOTATIONS = "annotations.json"
#: Bytes that the comment of a JPEG can hold, and the quality of its pixels, at which text stays sharp.
LONGEST_COMMENT, JPEG_QUALITY = 65_533, 90
#: Bytes in the name of a file: file systems take 255, less the ending of a draft.
_LONGEST = 250
#: Bytes behind the array in a ``.npy`` file that mark it as ours; ``numpy.load`` does not read them.
NPY_MARK = b"\nmade by xai-abn\n"


class OutputFolder:
    """A folder for results.

    Args:
        path: created if missing.
        overwrite: also replace files that xai-abn did not create.
        drawing: options of :func:`xai_abn.rendering.overlay`.
        maps: also save raw maps as ``.npy``.
        image_format: of overlays and sheets.
        sheets: also make a sheet of an image with a single explanation.
        boxes: share of its range above which parts of a map are surrounded by boxes in the records; None for none.
        masks: share of its range above which a map is white in a mask; None for no masks.
        clip: whether and how to save the slices of a volume or the frames of a clip one after another.
        coco: share of its range above which parts of a map are annotations; None for none.

    Raises:
        OutputError: the folder cannot be made or written to.
        UnknownNameError: unknown colormap.
    """

    def __init__(
        self,
        path: Path,
        *,
        overwrite: bool = False,
        drawing: Mapping[str, Any] | None = None,
        maps: bool = False,
        image_format: ImageFormat = ImageFormat.PNG,
        sheets: bool = False,
        boxes: float | None = None,
        masks: float | None = None,
        clip: ClipFormat | None = None,
        coco: float | None = None,
    ) -> None:
        self._drawing = {"colormap": DEFAULT_COLORMAP, "opacity": None, "contour": None, **(drawing or {})}
        check_drawing(**self._drawing)
        self.path, self.overwrite, self.maps = path, overwrite, maps
        self.format, self.sheets, self._boxes, self._masks, self._coco = image_format, sheets, boxes, masks, coco
        self.clip = clip
        self._stems: dict[str, str] = {}
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise OutputError(f"cannot write to output folder {path}: {error.strerror or error}") from error
        if coco is not None and not self.overwrite:
            refuse_foreign(path / ANNOTATIONS, _is_ours)

    def save(self, source: str, explanations: Sequence[Explanation]) -> list[list[Path]]:
        """Save the explanations of one image, and a sheet if there are several.

        Returns:
            For each explanation the files that show it: its overlay, then its map, its mask and the sheet if made.

        Raises:
            OutputError: a file cannot be written, or exists and was not created by xai-abn; then none is written.
        """
        stem = self.stem(source)
        files: list[list[Path]] = [[] for _ in explanations]
        several = {e.method for e in explanations if [o.method for o in explanations].count(e.method) > 1}
        contents: dict[Path, bytes] = {}
        for explanation, made in zip(explanations, files, strict=True):
            which = f".{_plain(explanation.label)}" if explanation.method in several else ""
            method = explanation.method.replace(":", "-")  # Windows does not allow a colon
            path = self.path / _fitting(f"{stem}.{method}{which}.{self.format.value}")
            if path in contents:  # C and C++
                path = path.with_name(_fitting(f"{stem}.{method}{which}-{explanation.target}.{self.format.value}"))
            contents[path] = self._encoded(explanation.overlay(**self._drawing), [explanation])
            made.append(path)
            for ending, content in self._beside(explanation):
                beside = path.with_name(_fitting(f"{path.stem}{ending}"))
                contents[beside] = content
                made.append(beside)
        if len(explanations) > 1 or self.sheets:
            path = self.path / _fitting(f"{stem}.sheet.{self.format.value}")
            contents[path] = self._encoded(sheet(explanations, **self._drawing), explanations)
            for made in files:
                made.append(path)
        for path in () if self.overwrite else contents:
            refuse_foreign(path, _is_ours)
        for path, content in contents.items():
            with replacing(path) as draft:
                draft.write_bytes(content)
        return files

    def _beside(self, explanation: Explanation) -> Iterator[tuple[str, bytes]]:
        """Yield the endings and contents of what is saved beside an overlay."""
        volume, affine = explanation.map.ndim == 3, explanation.affine
        if self.maps or volume:
            yield ".npy", _npy(explanation.map)
        if affine is not None:
            yield ".nii.gz", explanation.nifti()
        if volume and self.clip is not None:
            ending = f".{self.clip.value}"
            yield ending, clip_bytes(explanation.panel, ending, **self._drawing)
        if self._masks is not None and explanation.has_parts:
            mask = explanation.mask(self._masks).astype(np.uint8)
            if affine is not None:
                yield ".mask.nii.gz", nifti_bytes(mask, affine)
            elif volume:
                yield ".mask.npy", _npy(mask)
            else:
                records = {IMAGE_KEY: json.dumps([explanation.to_dict()])}
                yield ".mask.png", png_bytes(Image.fromarray(mask * 255), records)

    @property
    def settings(self) -> list[object]:
        """What the files of an image depend on, beside its explanations."""
        shares = [self._boxes, self._masks, self._coco, None if self.clip is None else self.clip.value]
        return [*self._drawing.values(), self.format.value, self.sheets, self.maps, *shares]

    def parts_of(self, explanation: Explanation) -> dict[str, Any]:
        """Return what was asked for of the parts of a map, for its record: no part of a map that means nothing."""
        found: dict[str, Any] = {}
        if self._boxes is not None:
            found["boxes"] = [list(box) for box in explanation.boxes(self._boxes)] if explanation.has_parts else []
        if self._coco is not None:
            found["annotations"] = annotations_of(explanation, self._coco)
        return found

    def save_annotations(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write the annotations in the records of all images, if there are to be any.

        Raises:
            OutputError: the file cannot be written.
        """
        if self._coco is not None:
            with replacing(self.path / ANNOTATIONS) as draft:
                draft.write_text(json.dumps(coco_document(map(self._relative, records))), encoding="utf-8")

    def _relative(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return a record with the path of its image as seen from this folder, where readers look for it."""
        source = record["source"]
        seen = os.path.isfile(source) and not os.path.isabs(source)
        return {**record, "source": Path(os.path.relpath(source, self.path)).as_posix() if seen else source}

    def stem(self, source: str) -> str:
        """Return a stem for the files of an image; a number is added if another image has the same stem."""
        if source not in self._stems:
            plain = source.replace(":", "-") if source.startswith("example:") else Path(source).stem
            plain = plain.removesuffix(".nii")  # of scan.nii.gz
            taken, stem, number = set(self._stems.values()), plain, 2
            while stem in taken:
                stem, number = f"{plain}-{number}", number + 1
            self._stems[source] = stem
        return self._stems[source]

    def _encoded(self, image: Image.Image, explanations: Sequence[Explanation]) -> bytes:
        """Return an image as the content of a file that holds the records of its maps."""
        records = json.dumps([e.to_dict() for e in explanations])
        return png_bytes(image, {IMAGE_KEY: records}) if self.format is ImageFormat.PNG else _jpeg(image, records)


def _fitting(name: str) -> str:
    """Return a file name, shortened if the file system does not take it; a digest keeps it apart from others."""
    if len(os.fsencode(name)) <= _LONGEST:
        return name
    end = f"~{digest(os.fsencode(name))[:8]}{Path(name).suffix}"
    return os.fsencode(name)[: _LONGEST - len(end)].decode(errors="ignore") + end


def is_own_drawing(path: str) -> bool:
    """Return whether a file is an image that xai-abn made."""
    try:
        return path.lower().endswith(tuple(f".{kind.value}" for kind in ImageFormat)) and _is_ours(Path(path))
    except (OSError, SyntaxError, ValueError):
        return False


def _plain(label: str) -> str:
    """Return a label as part of a file name."""
    return re.sub(r"[^\w]+", "-", label).strip("-").lower()


def _is_ours(path: Path) -> bool:
    if path.suffix == ".json":
        return f'"description": "{DESCRIPTION}"' in path.read_text(encoding="utf-8")[:200]
    if path.suffix == ".npy":
        return path.read_bytes().endswith(NPY_MARK)
    if path.name.endswith(NIFTI):
        return is_own_nifti(path)
    if path.suffix in (".gif", ".mp4"):
        return CLIP_MARK in path.read_bytes()
    with Image.open(path, formats=["PNG", "JPEG"]) as image:
        return IMAGE_KEY in image.info or image.info.get("comment", b"").startswith(f"{IMAGE_KEY} ".encode())


def _jpeg(image: Image.Image, records: str) -> bytes:
    """Return a JPEG with the records as its comment, or with the mark alone where they do not fit."""
    comment = f"{IMAGE_KEY} {records}".encode()
    buffer = io.BytesIO()
    image.save(
        buffer,
        "JPEG",
        quality=JPEG_QUALITY,
        comment=comment if len(comment) <= LONGEST_COMMENT else f"{IMAGE_KEY} ".encode(),
    )
    return buffer.getvalue()


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue() + NPY_MARK
