"""Logs of runs: JSON lines, and TensorBoard files if wanted."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xai_abn.errors import InvalidInputError, OutputError, RunError


class RunLog:
    """The log of a run, one JSON object in each line; rank 0 alone writes.

    Args:
        path: the log file.
        length: truncate an existing log to this many bytes, as what was written after the last save is discarded; None
            to keep the lines up to ``step``.
        step: last saved step; later steps in TensorBoard files are hidden.
        writes: whether this process writes.
        tensorboard: also write TensorBoard files.

    Attributes:
        length: bytes in the log.

    Raises:
        InvalidInputError: TensorBoard is not installed.
        OutputError: the log cannot be written.
    """

    def __init__(
        self, path: Path, length: int | None = 0, step: int = 0, *, writes: bool = True, tensorboard: bool = False
    ) -> None:
        self.path, self.writes, self.length = path, writes, 0
        self._board: Any = None
        if not writes:
            return
        if length is None:
            length = _length_until(path, step)
        try:
            with self.path.open("ab") as file:
                self.length = file.truncate(min(length, file.tell()))
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error
        if tensorboard:
            self._board = summary_writer()(str(path.parent / "tensorboard"), purge_step=step + 1)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Write a line with its kind (``"step"``, ``"epoch"`` or ``"check"``), the step and the values.

        Raises:
            OutputError: the log cannot be written, such as on a full disk; the last saved state stays.
        """
        if not self.writes:
            return
        rounded = {n: float(f"{v:.6g}") if isinstance(v, float) else v for n, v in values.items()}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"kind": kind, "step": step, **rounded}) + "\n")
                file.flush()
                os.fsync(file.fileno())
                self.length = file.tell()
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Finish the TensorBoard file."""
        if self._board is not None:
            self._board.close()


def summary_writer() -> Any:
    """Return TensorBoard's ``SummaryWriter``.

    Raises:
        InvalidInputError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InvalidInputError("TensorBoard is not installed; pip install 'xai-abn[tensorboard]'") from error
    return SummaryWriter


def read_log(path: Path, kind: str) -> list[dict[str, Any]]:
    """Return the lines of one kind, in order; an incomplete last line is left out.

    Lines of distillations of version 1 have no kind: those with a check are read as of kind ``"check"``.

    Raises:
        RunError: the log is damaged.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    try:
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); resume the run without it, or start another folder") from error
    for line in lines:
        line.setdefault("kind", "check" if "check" in line else "step")
        line.update(line.pop("check", {}))
        if "photos" in line:
            line["images"] = line.pop("photos")
    return [line for line in lines if line["kind"] == kind]


def _length_until(path: Path, step: int) -> int:
    """Return the length in bytes of the complete lines of a log up to a step."""
    length = 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        if not line.endswith(b"\n") or json.loads(line)["step"] > step:
            break
        length += len(line)
    return length
