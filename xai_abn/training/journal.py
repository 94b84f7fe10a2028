"""What a training run writes down: a JSON-lines log, TensorBoard, curves and pictures of its maps."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from xai_abn.errors import InvalidInputError, OutputError
from xai_abn.files import replacing
from xai_abn.images.preprocess import Preprocess
from xai_abn.rendering import blend_heatmap, write_line

#: A run's log, in its folder.
LOG = "log.jsonl"


class Journal:
    """The log of a run, one JSON object a line; rank 0 alone writes.

    Args:
        folder: of the run.
        length: bytes of an earlier log to keep; what a killed run wrote after its last checkpoint is cut off. What
            somebody took away of it is missing from the curves.
        writes: whether this process writes.
        tensorboard: write TensorBoard files, too.
        step: of the last checkpoint; what TensorBoard has of later ones is hidden.

    Raises:
        InvalidInputError: TensorBoard is wanted and not installed.
        OutputError: the log cannot be written.
    """

    def __init__(
        self, folder: Path, length: int = 0, writes: bool = True, tensorboard: bool = False, step: int = 0
    ) -> None:
        self.path = folder / LOG
        self.writes = writes
        self._board: Any = None
        if not writes:
            return
        try:
            with self.path.open("ab") as file:
                file.truncate(min(length, self.path.stat().st_size))
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error
        if tensorboard:
            self._board = event_writer()(str(folder / "tensorboard"), purge_step=step + 1)

    @property
    def length(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size if self.writes else 0

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Write a line: what it is (``"step"`` or ``"epoch"``), when, and the values.

        Raises:
            OutputError: the disk is full or the log is gone; the run's last checkpoint is whole.
        """
        if not self.writes:
            return
        line = json.dumps({"kind": kind, "step": step, **{k: _short(v) for k, v in values.items()}}) + "\n"
        try:
            with self.path.open("a") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from error
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Finish the TensorBoard file."""
        if self._board is not None:
            self._board.close()


def event_writer() -> Any:
    """Return TensorBoard's ``SummaryWriter``.

    Raises:
        InvalidInputError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InvalidInputError("TensorBoard is not installed; pip install 'xai-abn[tensorboard]'") from error
    return SummaryWriter


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.6g}")


def read_log(path: Path, kind: str) -> list[dict[str, Any]]:
    """Return the lines of one kind, in order."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def draw_curves(log: Path, picture: Path) -> None:
    """Draw loss and accuracy by epoch.

    Raises:
        OutputError: the picture cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = read_log(log, "epoch")
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    epochs = [line["epoch"] for line in lines]
    for axis, names in ((left, _LOSSES), (right, _ACCURACIES)):
        for name, text, style in names:
            values = [line.get(name) for line in lines]
            if any(value is not None for value in values):
                axis.plot(epochs, [np.nan if v is None else v for v in values], f"{style}.", label=text)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    left.set_ylabel("cross-entropy (nats)")
    right.set_ylabel("accuracy")
    with replacing(picture, "picture ") as draft:
        figure.savefig(draft, format="png", dpi=110)


_LOSSES = (
    ("perception", "training, perception branch", "C0-"),
    ("attention", "training, attention branch", "C1-"),
    ("validation_loss", "validation, perception branch", "C0--"),
    ("area", "mean of the map", "C2:"),
)
_ACCURACIES = (
    ("accuracy", "training, perception branch", "C0-"),
    ("validation_accuracy", "validation, perception branch", "C0--"),
    ("validation_attention_accuracy", "validation, attention branch", "C1--"),
)


#: Of how many attributes the maps are drawn: the first.
ATTRIBUTES_DRAWN = 8


def draw_maps(images: Tensor, maps: Tensor, look: Preprocess, path: Path, labels: Sequence[str] = ()) -> None:
    """Draw pictures, each above its maps laid over it, eight in a row.

    Args:
        images: (N, 3, H, W) as the network gets them.
        maps: (N, M, h, w), one map for all classes or one an attribute, in [0, 1] and drawn from 0 to 1: how much of a
            picture is lit can be compared. Signed ones are cut off at 0, as the released code shows them, and divided
            by the largest value of all.
        look: how they were normalised.
        path: of the PNG.
        labels: of the attributes, written over their rows; not where one map is for all.

    Raises:
        OutputError: it cannot be written.
    """
    scale = max(1, 96 // images.shape[2])
    plain = images.float().cpu() * torch.tensor(look.std).view(3, 1, 1) + torch.tensor(look.mean).view(3, 1, 1)
    side = (images.shape[2] * scale, images.shape[3] * scale)
    views = torch.nn.functional.interpolate(plain.clamp(0, 1), side, mode="nearest")
    maps = maps[:, :ATTRIBUTES_DRAWN].float().cpu()
    if float(maps.min()) < 0 or float(maps.max()) > 1:
        maps = maps.clamp(min=0) / maps.max().clamp(min=1e-12)
    large = torch.nn.functional.interpolate(maps, side, mode="bilinear").clamp(0, 1)
    rows = []
    for start in range(0, len(views), 8):
        row = [(v.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8) for v in views[start : start + 8]]
        empty = [np.full_like(row[0], 255)] * (8 - len(row) if start else 0)
        laid = [
            [blend_heatmap(v, m.numpy()) for v, m in zip(row, one[start : start + 8], strict=True)]
            for one in large.unbind(1)
        ]
        lines = [np.concatenate([*line, *empty], axis=1) for line in (row, *laid)]
        rows.append(lines[0])
        for number, line in enumerate(lines[1:]):
            if labels and len(laid) > 1:
                rows.append(_caption(labels[number], line.shape[1]))
            rows.append(line)
    with replacing(path, "picture ") as draft:
        Image.fromarray(np.concatenate(rows)).save(draft, "PNG")


def _caption(text: str, width: int) -> np.ndarray:
    """Return a white strip (20, width, 3) with a line of text."""
    strip = Image.new("RGB", (width, 20), "white")
    write_line(ImageDraw.Draw(strip), (4, 3), text, width - 8, 12, (60, 60, 60))
    return np.asarray(strip)
