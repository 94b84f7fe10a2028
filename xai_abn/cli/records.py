"""The file in a folder of explanations that holds the records of all its images, as far as they are done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xai_abn.errors import OutputError
from xai_abn.files import refuse_foreign, replacing

NAME = "records.jsonl"
#: What every line holds.
_STEM, _KEY, _RECORDS = "stem", "key", "explanations"


class RecordFile:
    """``records.jsonl``: a line of JSON for each image, written as soon as its explanations are saved.

    A line has the stem of the image's files, the key of everything that they depend on, and a record for each
    explanation. Lines of images that are explained again are removed at the start.

    Args:
        folder: where the images are saved; it exists.
        keys: key by stem of each image that is to be explained; empty for an image that cannot be known again.
        resume: keep the lines with these keys whose files are there.
        overwrite: also replace a file that xai-abn did not create.

    Attributes:
        done: records by stem of the images whose lines were kept.

    Raises:
        OutputError: the file cannot be written, or was not created by xai-abn.
    """

    def __init__(self, folder: Path, keys: Mapping[str, str], *, resume: bool = False, overwrite: bool = False) -> None:
        self.path, self._keys = folder / NAME, keys
        lines = _read(self.path, overwrite)
        self.done: dict[str, list[dict[str, Any]]] = {}
        others = []
        for line in lines:
            if line[_STEM] not in keys:
                others.append(line)
            elif resume and line[_KEY] and line[_KEY] == keys[line[_STEM]] and _has_files(line):
                self.done[line[_STEM]] = line[_RECORDS]
        kept = [*others, *({_STEM: stem, _KEY: keys[stem], _RECORDS: r} for stem, r in self.done.items())]
        with replacing(self.path) as draft:
            draft.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def add(self, stem: str, records: list[dict[str, Any]]) -> None:
        """Add the line of an image.

        Raises:
            OutputError: the file cannot be written.
        """
        line = json.dumps({_STEM: stem, _KEY: self._keys[stem], _RECORDS: records})
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error


def _read(path: Path, overwrite: bool) -> list[dict[str, Any]]:
    """Return the lines; the last one may be incomplete after a kill, and is left out."""
    lines: list[dict[str, Any]] = []

    def is_ours(file: Path) -> bool:
        lines.extend(map(json.loads, file.read_bytes().split(b"\n")[:-1]))
        return all(isinstance(line, dict) and {_STEM, _KEY, _RECORDS} <= set(line) for line in lines)

    try:
        refuse_foreign(path, is_ours)
    except OutputError:
        if overwrite and path.is_file():
            return []
        raise
    return lines


def _has_files(line: Mapping[str, Any]) -> bool:
    return all(Path(file).is_file() for record in line[_RECORDS] for file in record["files"])
