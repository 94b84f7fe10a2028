"""Writing of overlays, sheets and maps into a folder, without replacing files of others."""

from __future__ import annotations

import io
import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from xai_abn.errors import OutputError, UnknownNameError
from xai_abn.explanation import Explanation, sheet
from xai_abn.files import replacing
from xai_abn.rendering import COLORMAPS

#: PNG text key that marks an image as made by xai-abn; its value holds the records of the maps.
PNG_KEY = "xai-abn"
#: Bytes behind the array in a ``.npy`` file that mark it as ours; ``numpy.load`` does not read them.
NPY_MARK = b"\nmade by xai-abn\n"


class OutputFolder:
    """A folder for results.

    Args:
        path: created if missing.
        overwrite: also replace files that xai-abn did not create.
        colormap: name of the colormap of the overlays.
        maps: also save raw maps as ``.npy``.

    Raises:
        OutputError: the folder cannot be made or written to.
        UnknownNameError: unknown colormap.
    """

    def __init__(self, path: Path, *, overwrite: bool = False, colormap: str = "viridis", maps: bool = False) -> None:
        if colormap not in COLORMAPS:
            raise UnknownNameError("colormap", colormap, COLORMAPS)
        self.path, self.overwrite, self.colormap, self.maps = path, overwrite, colormap, maps
        self._stems: dict[str, str] = {}
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise OutputError(f"cannot write to output folder {path}: {error.strerror or error}") from error

    def save(self, source: str, explanations: Sequence[Explanation]) -> list[list[Path]]:
        """Save the explanations of one image, and a sheet if there are several.

        Returns:
            For each explanation the files that show it: its overlay, then its map and the sheet if made.

        Raises:
            OutputError: a file cannot be written, or exists and was not created by xai-abn; then none is written.
        """
        stem = self._stem(source)
        files: list[list[Path]] = [[] for _ in explanations]
        several = {e.method for e in explanations if [o.method for o in explanations].count(e.method) > 1}
        contents: dict[Path, bytes] = {}
        for explanation, made in zip(explanations, files, strict=True):
            which = f".{_plain(explanation.label)}" if explanation.method in several else ""
            method = explanation.method.replace(":", "-")  # Windows does not allow a colon
            path = self.path / f"{stem}.{method}{which}.png"
            if path in contents:  # C and C++
                path = path.with_name(f"{stem}.{method}{which}-{explanation.target}.png")
            contents[path] = _png(explanation.overlay(colormap=self.colormap), [explanation])
            made.append(path)
            if self.maps:
                path = path.with_name(path.name.removesuffix(".png") + ".npy")
                contents[path] = _npy(explanation.map)
                made.append(path)
        if len(explanations) > 1:
            path = self.path / f"{stem}.sheet.png"
            contents[path] = _png(sheet(explanations, colormap=self.colormap), explanations)
            for made in files:
                made.append(path)
        for path in contents:
            self._check_ours(path)
        for path, content in contents.items():
            with replacing(path) as draft:
                draft.write_bytes(content)
        return files

    def _stem(self, source: str) -> str:
        """Return a stem for the files of an image; a number is added if another image has the same stem."""
        if source not in self._stems:
            plain = source.replace(":", "-") if source.startswith("example:") else Path(source).stem
            taken, stem, number = set(self._stems.values()), plain, 2
            while stem in taken:
                stem, number = f"{plain}-{number}", number + 1
            self._stems[source] = stem
        return self._stems[source]

    def _check_ours(self, path: Path) -> None:
        if self.overwrite or not os.path.lexists(path):
            return
        try:
            ours = path.is_file() and _is_ours(path)
        except (OSError, SyntaxError, ValueError):
            ours = False
        if not ours:
            raise OutputError(
                f"{path} exists and was not created by xai-abn; choose another --output or give --overwrite"
            )


def is_own_drawing(path: str) -> bool:
    """Return whether a file is a PNG image that xai-abn made."""
    try:
        return path.lower().endswith(".png") and _is_ours(Path(path))
    except (OSError, SyntaxError, ValueError):
        return False


def _plain(label: str) -> str:
    """Return a label as part of a file name."""
    return re.sub(r"[^\w]+", "-", label).strip("-").lower()


def _is_ours(path: Path) -> bool:
    if path.suffix == ".npy":
        return path.read_bytes().endswith(NPY_MARK)
    with Image.open(path, formats=["PNG"]) as image:
        return PNG_KEY in image.info


def _png(image: Image.Image, explanations: Sequence[Explanation]) -> bytes:
    info = PngInfo()
    info.add_itxt(PNG_KEY, json.dumps([e.to_dict() for e in explanations]))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue() + NPY_MARK
