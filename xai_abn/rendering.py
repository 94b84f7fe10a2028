"""Draw maps over pictures: single overlays and sheets that set methods side by side."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from xai_abn.errors import InvalidInputError, UnknownNameError
from xai_abn.explanation import Explanation

#: Colour maps by name, and OpenCV's constant. The first five are perceptually uniform.
COLORMAPS = {
    "viridis": cv2.COLORMAP_VIRIDIS,
    "inferno": cv2.COLORMAP_INFERNO,
    "magma": cv2.COLORMAP_MAGMA,
    "plasma": cv2.COLORMAP_PLASMA,
    "cividis": cv2.COLORMAP_CIVIDIS,
    "turbo": cv2.COLORMAP_TURBO,
    "jet": cv2.COLORMAP_JET,
}
#: The colour map used where none is named.
DEFAULT_COLORMAP = "viridis"
#: Columns of a sheet before it goes on below.
ROW = 6
#: How much the map covers the picture, in [0, 1].
DEFAULT_OPACITY = 0.6

_PAPER, _INK, _PALE, _WARNING = (255, 255, 255), (24, 24, 27), (113, 113, 122), (180, 40, 40)
_MARGIN, _LINE = 14, 22
#: Small pictures are enlarged, pixel by pixel, to about this width, or their headings would have no place.
_WIDTH = 256


def overlay(
    explanation: Explanation,
    *,
    colormap: str = DEFAULT_COLORMAP,
    opacity: float = DEFAULT_OPACITY,
) -> Image.Image:
    """Draw one map over the part of the picture the network saw, with heading and colour bar.

    A flat or non-finite map is not drawn: the picture stays bare and says so.

    Args:
        explanation: what to draw.
        colormap: one of ``COLORMAPS``.
        opacity: how much the map covers the picture, in [0, 1].

    Raises:
        UnknownNameError: unknown colour map.
        InvalidInputError: ``opacity`` outside [0, 1].
    """
    return _column(explanation, blended(explanation, colormap, opacity), _heading(explanation), colormap)


def sheet(
    explanations: Sequence[Explanation],
    *,
    colormap: str = DEFAULT_COLORMAP,
    opacity: float = DEFAULT_OPACITY,
) -> Image.Image:
    """Draw the picture and several maps of it side by side, six a row.

    Args:
        explanations: of one picture, at least one.
        colormap: see :func:`overlay`.
        opacity: see :func:`overlay`.

    Raises:
        InvalidInputError: no explanation, or of several pictures.
    """
    if not explanations:
        raise InvalidInputError("a sheet needs at least one explanation")
    first = explanations[0]
    if any(e.source != first.source or e.view.shape != first.view.shape for e in explanations):
        raise InvalidInputError("a sheet shows one picture; the explanations are of several")
    columns = [_column(first, first.view, [(first.model, "bold"), (f"top-1: {first.predicted_label}", "pale")], None)]
    columns += [_column(e, blended(e, colormap, opacity), _heading(e), colormap) for e in explanations]
    width, height = max(c.width for c in columns), max(c.height for c in columns)
    across = min(len(columns), ROW)
    page = Image.new("RGB", (across * width, -(-len(columns) // across) * height), _PAPER)
    for number, column in enumerate(columns):
        page.paste(column, (number % across * width, number // across * height))
    return page


def png_bytes(image: Image.Image) -> bytes:
    """Return a picture as the content of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def blended(explanation: Explanation, colormap: str = DEFAULT_COLORMAP, opacity: float = DEFAULT_OPACITY) -> np.ndarray:
    """Return the view (H, W, 3) uint8 with the map laid over it, or bare if the map has a flaw; see :func:`overlay`."""
    if colormap not in COLORMAPS:
        raise UnknownNameError("colour map", colormap, COLORMAPS)
    if not 0 <= opacity <= 1:
        raise InvalidInputError(f"opacity must lie in [0, 1], got {opacity}")
    return (
        explanation.view if explanation.flaw else laid_over(explanation.view, explanation.heatmap(), colormap, opacity)
    )


def laid_over(
    view: np.ndarray, values: np.ndarray, colormap: str = DEFAULT_COLORMAP, opacity: float = DEFAULT_OPACITY
) -> np.ndarray:
    """Return a picture (H, W, 3) uint8 with values (H, W) in [0, 1] laid over it in colour."""
    return np.round(view * (1 - opacity) + _colours(values, colormap) * opacity).astype(np.uint8)


def _colours(values: np.ndarray, colormap: str) -> np.ndarray:
    """Turn values (H, W) in [0, 1] into RGB (H, W, 3) uint8."""
    bgr = cv2.applyColorMap(np.round(values * 255).astype(np.uint8), COLORMAPS[colormap])
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def _heading(explanation: Explanation) -> list[tuple[str, str]]:
    first = (explanation.method, "bold")
    if explanation.class_specific:
        return [first, (explanation.answer, "pale")]
    return [first, (f"any class; top-1: {explanation.answer}", "pale")]


def _column(
    explanation: Explanation,
    pixels: np.ndarray,
    heading: list[tuple[str, str]],
    colormap: str | None,
) -> Image.Image:
    """Set heading, picture and colour bar under one another."""
    enlarged = max(1, round(_WIDTH / pixels.shape[1]))
    pixels = pixels.repeat(enlarged, axis=0).repeat(enlarged, axis=1)
    height, width = pixels.shape[:2]
    top = _MARGIN // 2 + _LINE * len(heading) + 6
    page = Image.new("RGB", (width + 2 * _MARGIN, top + height + 44), _PAPER)
    draw = ImageDraw.Draw(page)
    for row, (text, style) in enumerate(heading):
        fill = _INK if style == "bold" else _PALE
        size = 17 if style == "bold" else 14
        write_line(draw, (_MARGIN, _MARGIN // 2 + row * _LINE), text, width, size, fill)
    page.paste(Image.fromarray(pixels), (_MARGIN, top))
    if colormap is not None:
        _colour_bar(page, draw, explanation, (_MARGIN, top + height + 8), width, colormap)
    return page


def _colour_bar(
    page: Image.Image,
    draw: ImageDraw.ImageDraw,
    explanation: Explanation,
    corner: tuple[int, int],
    width: int,
    colormap: str,
) -> None:
    """Draw the colours of the map with its smallest and largest value, or the reason there are none."""
    left, top = corner
    if explanation.flaw:
        write_line(draw, corner, f"the map is {explanation.flaw}: nothing to show", width, 14, _WARNING)
        return
    ramp = np.repeat(np.linspace(0, 1, width, dtype=np.float32)[None], 10, axis=0)
    page.paste(Image.fromarray(_colours(ramp, colormap)), (left, top))
    font = _font(12)
    low, high = f"{explanation.map.min():.3g}", f"{explanation.map.max():.3g}"
    draw.text((left, top + 13), low, _PALE, font)
    draw.text((left + width - draw.textlength(high, font), top + 13), high, _PALE, font)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return a font with the letters of most alphabets; Pillow's own has no accents."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def write_line(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    width: int,
    size: int,
    fill: tuple[int, int, int],
) -> None:
    """Write one line, shortened with an ellipsis where it is too long."""
    font = _font(size)
    if draw.textlength(text, font) > width:
        while text and draw.textlength(text + "…", font) > width:
            text = text[:-1]
        text += "…"
    draw.text(corner, text, fill, font)
