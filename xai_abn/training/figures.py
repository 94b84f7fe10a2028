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
_SIDE = 96
_GAP = 12
_LINE = 20
_INK, _RIGHT, _WRONG = (60, 60, 60), (20, 110, 40), (180, 30, 30)
_TRAINING, _VALIDATION = "C0", "C1"
_PANELS: dict[str, tuple[tuple[str, str, str, str], ...]] = {
    "cross-entropy (nats)": (
        ("perception", "training, perception branch", _TRAINING, "-"),
        ("attention", "training, attention branch", _TRAINING, "--"),
        ("validation_loss", "validation, perception branch", _VALIDATION, "-"),
    ),
    "accuracy": (
        ("accuracy", "training, perception branch", _TRAINING, "-"),
        ("validation_accuracy", "validation, perception branch", _VALIDATION, "-"),
        ("validation_attention_accuracy", "validation, attention branch", _VALIDATION, "--"),
    ),
    "mean of the attention map": (
        ("area", "training", _TRAINING, "-"),
        ("validation_area", "validation", _VALIDATION, "-"),
    ),
}
#: A loss this many times the median is drawn on a logarithmic axis, so that it does not flatten the others.
_OUTLIER = 8


def draw_curves(log: Path, path: Path) -> None:
    """Draw losses, accuracies and the mean of the map by epoch; what the log does not hold is left out.

    Raises:
        OutputError: the figure cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    lines = read_log(log, "epoch")
    panels = {
        title: found
        for title, curves in _PANELS.items()
        if (found := [curve for curve in curves if any(curve[0] in line for line in lines)])
    }
    if not panels:
        return
    figure = Figure(figsize=(5.2 * len(panels), 4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(log.parent.name)
    for axis, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        values = np.array([[line.get(name, np.nan) for line in lines] for name, *_ in curves], dtype=float)
        for row, (_, text, color, style) in zip(values, curves, strict=True):
            axis.plot([line["epoch"] for line in lines], row, style, color=color, marker=".", label=text)
        seen = values[np.isfinite(values)]
        if seen.size and seen.min() > 0 and seen.max() > _OUTLIER * np.median(seen):
            axis.set_yscale("log")
        axis.set_title(title)
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend()
    with replacing(path, "figure ") as draft:
        figure.savefig(draft, format="png", dpi=110)


def draw_maps(
    images: Tensor,
    maps: Tensor,
    preprocess: Preprocess,
    path: Path,
    title: str = "",
    answers: Sequence[tuple[str, bool]] = (),
    labels: Sequence[str] = (),
) -> None:
    """Draw images in rows of eight, with rows of their maps as overlays below.

    Args:
        images: (N, 3, H, W), normalized.
        maps: (N, M, h, w), one map for all classes or one for each attribute. Maps in [0, 1] are drawn from 0 to 1, so
            that areas can be compared. Signed ones are cut off at 0, as the released code shows them, and divided by
            the largest value of all.
        preprocess: normalization of the images.
        path: the PNG file.
        title: what is drawn, written on top.
        answers: for each image, text written over it and whether it is right, which makes it green, not red.
        labels: names of the attributes, written over their rows if there is a map for each.

    Raises:
        OutputError: the figure cannot be written.
    """
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
    scale = max(1, _SIDE // images.shape[2])
    height, width = images.shape[2] * scale, images.shape[3] * scale
    views = F.interpolate((images.float().cpu() * std + mean).clamp(0, 1), (height, width), mode="nearest")
    pixels = [(view.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8) for view in views]
    maps = maps[:, :ATTRIBUTES_DRAWN].float().cpu()
    if float(maps.min()) < 0 or float(maps.max()) > 1:
        maps = maps.clamp(min=0) / maps.max().clamp(min=1e-12)
    maps = F.interpolate(maps, (height, width), mode="bilinear").clamp(0, 1)
    named = labels if maps.shape[1] > 1 else ()
    columns, row = min(_COLUMNS, len(pixels)), height + _GAP
    block = _LINE + row + maps.shape[1] * (row + (_LINE if named else 0)) + _GAP
    blocks = -(-len(pixels) // _COLUMNS)
    page = Image.new("RGB", (columns * (width + _GAP) + _GAP, _LINE + 2 * _GAP + blocks * block), "white")
    draw = ImageDraw.Draw(page)
    write_line(draw, (_GAP, _GAP), title, page.width - 2 * _GAP, 14, _INK)
    for number, view in enumerate(pixels):
        left, top = _GAP + number % _COLUMNS * (width + _GAP), _LINE + 2 * _GAP + number // _COLUMNS * block
        if answers:
            text, right = answers[number]
            write_line(draw, (left, top), text, width, 12, _RIGHT if right else _WRONG)
        page.paste(Image.fromarray(view), (left, top + _LINE))
        top += _LINE + row
        for attribute, shown in enumerate(maps[number]):
            if named:
                if number % _COLUMNS == 0:
                    write_line(draw, (left, top), named[attribute], page.width - 2 * _GAP, 12, _INK)
                top += _LINE
            page.paste(Image.fromarray(blend_heatmap(view, shown.numpy())), (left, top))
            top += row
    with replacing(path, "figure ") as draft:
        page.save(draft, "PNG")
