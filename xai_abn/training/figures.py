"""Figures of training runs: learning curves and attention maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from xai_abn.files import replacing
from xai_abn.images.preprocess import Preprocess
from xai_abn.rendering import blend_heatmap, write_line
from xai_abn.training.log import read_log

#: Number of attributes whose maps are drawn: the first ones.
ATTRIBUTES_DRAWN = 8
_COLUMNS = 8
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


def draw_curves(log: Path, path: Path) -> None:
    """Draw loss and accuracy by epoch.

    Raises:
        OutputError: the figure cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = read_log(log, "epoch")
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    epochs = [line["epoch"] for line in lines]
    for axis, curves in ((left, _LOSSES), (right, _ACCURACIES)):
        for name, text, style in curves:
            if any(name in line for line in lines):
                axis.plot(epochs, [line.get(name, np.nan) for line in lines], f"{style}.", label=text)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    left.set_ylabel("cross-entropy (nats)")
    right.set_ylabel("accuracy")
    with replacing(path, "figure ") as draft:
        figure.savefig(draft, format="png", dpi=110)


def draw_maps(images: Tensor, maps: Tensor, preprocess: Preprocess, path: Path, labels: Sequence[str] = ()) -> None:
    """Draw images in rows of eight, with rows of their maps as overlays below.

    Args:
        images: (N, 3, H, W), normalized.
        maps: (N, M, h, w), one map for all classes or one for each attribute. Maps in [0, 1] are drawn from 0 to 1, so
            that areas can be compared. Signed ones are cut off at 0, as the released code shows them, and divided by
            the largest value of all.
        preprocess: normalization of the images.
        path: the PNG file.
        labels: names of the attributes, written over their rows if there is a map for each.

    Raises:
        OutputError: the figure cannot be written.
    """
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))
    scale = max(1, 96 // images.shape[2])
    size = (images.shape[2] * scale, images.shape[3] * scale)
    views = F.interpolate((images.float().cpu() * std + mean).clamp(0, 1), size, mode="nearest")
    pixels = [(view.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8) for view in views]
    maps = maps[:, :ATTRIBUTES_DRAWN].float().cpu()
    if float(maps.min()) < 0 or float(maps.max()) > 1:
        maps = maps.clamp(min=0) / maps.max().clamp(min=1e-12)
    maps = F.interpolate(maps, size, mode="bilinear").clamp(0, 1)
    rows = []
    for start in range(0, len(pixels), _COLUMNS):
        part = slice(start, start + _COLUMNS)
        blank = [np.full_like(pixels[0], 255)] * (_COLUMNS - len(pixels[part]) if start else 0)
        rows.append(np.concatenate([*pixels[part], *blank], axis=1))
        for number, shown in enumerate(maps.unbind(1)):
            overlays = [blend_heatmap(v, m.numpy()) for v, m in zip(pixels[part], shown[part], strict=True)]
            if labels and maps.shape[1] > 1:
                rows.append(_caption(labels[number], rows[0].shape[1]))
            rows.append(np.concatenate([*overlays, *blank], axis=1))
    with replacing(path, "figure ") as draft:
        Image.fromarray(np.concatenate(rows)).save(draft, "PNG")


def _caption(text: str, width: int) -> np.ndarray:
    """Return a white strip (20, width, 3) with a line of text."""
    strip = Image.new("RGB", (width, 20), "white")
    write_line(ImageDraw.Draw(strip), (4, 3), text, width - 8, 12, (60, 60, 60))
    return np.asarray(strip)
