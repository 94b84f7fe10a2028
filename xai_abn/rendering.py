"""Drawings: heatmaps over images, with heading and color bar, and sheets of several side by side."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from xai_abn.errors import InvalidInputError, UnknownNameError
from xai_abn.heatmaps import flaw_of, heatmap_of

#: Color maps by name, and OpenCV's constant. The first five are perceptually uniform.
COLORMAPS = {
    "viridis": cv2.COLORMAP_VIRIDIS,
    "inferno": cv2.COLORMAP_INFERNO,
    "magma": cv2.COLORMAP_MAGMA,
    "plasma": cv2.COLORMAP_PLASMA,
    "cividis": cv2.COLORMAP_CIVIDIS,
    "turbo": cv2.COLORMAP_TURBO,
    "jet": cv2.COLORMAP_JET,
}
DEFAULT_COLORMAP = "viridis"
#: Share of the map in the blend of map and image, in [0, 1].
DEFAULT_OPACITY = 0.6
#: Columns of a sheet before it continues below.
ROW = 6

_PAPER, _INK, _PALE, _WARNING = (255, 255, 255), (24, 24, 27), (113, 113, 122), (180, 40, 40)
_MARGIN, _LINE = 14, 22
#: Small images are enlarged, pixel by pixel, to about this width, so that their headings fit.
_WIDTH = 256


@dataclass(frozen=True, eq=False)
class Panel:
    """What one drawing shows.

    Attributes:
        view: (H, W, 3) uint8 RGB, the image.
        title: the first line of the heading.
        subtitle: the second line, or empty.
        map: (h, w), in its own units, or None to show the image alone.
    """

    view: np.ndarray
    title: str
    subtitle: str = ""
    map: np.ndarray | None = None


def overlay(panel: Panel, *, colormap: str = DEFAULT_COLORMAP, opacity: float = DEFAULT_OPACITY) -> Image.Image:
    """Draw a map over its image, with heading and color bar.

    A flat or non-finite map is not drawn: the image stays bare, and the drawing says so.

    Args:
        panel: what to draw.
        colormap: one of ``COLORMAPS``.
        opacity: share of the map in the blend, in [0, 1].

    Raises:
        UnknownNameError: unknown color map.
        InvalidInputError: ``opacity`` outside [0, 1].
    """
    pixels = panel.view if panel.map is None else blend(panel.view, panel.map, colormap, opacity)
    enlarged = max(1, round(_WIDTH / pixels.shape[1]))
    pixels = pixels.repeat(enlarged, axis=0).repeat(enlarged, axis=1)
    height, width = pixels.shape[:2]
    lines = [(panel.title, 17, _INK), (panel.subtitle, 14, _PALE)][: 2 if panel.subtitle else 1]
    top = _MARGIN // 2 + _LINE * len(lines) + 6
    page = Image.new("RGB", (width + 2 * _MARGIN, top + height + 44), _PAPER)
    draw = ImageDraw.Draw(page)
    for row, (text, size, fill) in enumerate(lines):
        write_line(draw, (_MARGIN, _MARGIN // 2 + row * _LINE), text, width, size, fill)
    page.paste(Image.fromarray(pixels), (_MARGIN, top))
    if panel.map is not None:
        _color_bar(page, draw, panel.map, (_MARGIN, top + height + 8), width, colormap)
    return page


def sheet(
    panels: Sequence[Panel], *, colormap: str = DEFAULT_COLORMAP, opacity: float = DEFAULT_OPACITY
) -> Image.Image:
    """Draw several panels side by side, six a row.

    Args:
        panels: at least one.
        colormap: see :func:`overlay`.
        opacity: see :func:`overlay`.

    Raises:
        InvalidInputError: there is no panel.
    """
    if not panels:
        raise InvalidInputError("a sheet needs at least one panel, got none")
    columns = [overlay(panel, colormap=colormap, opacity=opacity) for panel in panels]
    width, height = max(c.width for c in columns), max(c.height for c in columns)
    across = min(len(columns), ROW)
    page = Image.new("RGB", (across * width, -(-len(columns) // across) * height), _PAPER)
    for number, column in enumerate(columns):
        page.paste(column, (number % across * width, number // across * height))
    return page


def png_bytes(image: Image.Image) -> bytes:
    """Return an image as the content of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def blend(
    view: np.ndarray, map_: np.ndarray, colormap: str = DEFAULT_COLORMAP, opacity: float = DEFAULT_OPACITY
) -> np.ndarray:
    """Return an image (H, W, 3) uint8 with a map (h, w) over it in color, or bare if the map has a flaw.

    Raises:
        UnknownNameError: unknown color map.
        InvalidInputError: ``opacity`` outside [0, 1].
    """
    if colormap not in COLORMAPS:
        raise UnknownNameError("color map", colormap, COLORMAPS)
    if not 0 <= opacity <= 1:
        raise InvalidInputError(f"opacity must lie in [0, 1], got {opacity}")
    if flaw_of(map_):
        return view
    return blend_heatmap(view, heatmap_of(map_, view.shape[:2]), colormap, opacity)


def blend_heatmap(
    view: np.ndarray, heatmap: np.ndarray, colormap: str = DEFAULT_COLORMAP, opacity: float = DEFAULT_OPACITY
) -> np.ndarray:
    """Return an image (H, W, 3) uint8 with a heatmap (H, W) in [0, 1] over it in color."""
    return np.round(view * (1 - opacity) + _colors(heatmap, colormap) * opacity).astype(np.uint8)


def _colors(values: np.ndarray, colormap: str) -> np.ndarray:
    """Return values (H, W) in [0, 1] as RGB (H, W, 3) uint8."""
    bgr = cv2.applyColorMap(np.round(values * 255).astype(np.uint8), COLORMAPS[colormap])
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def _color_bar(
    page: Image.Image,
    draw: ImageDraw.ImageDraw,
    map_: np.ndarray,
    corner: tuple[int, int],
    width: int,
    colormap: str,
) -> None:
    """Draw the colors of a map with its smallest and largest value, or the reason why there are none."""
    left, top = corner
    flaw = flaw_of(map_)
    if flaw:
        write_line(draw, corner, f"the map is {flaw}: nothing to show", width, 14, _WARNING)
        return
    ramp = np.repeat(np.linspace(0, 1, width, dtype=np.float32)[None], 10, axis=0)
    page.paste(Image.fromarray(_colors(ramp, colormap)), (left, top))
    font = _font(12)
    low, high = f"{map_.min():.3g}", f"{map_.max():.3g}"
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
    """Write one line, shortened with an ellipsis if it is too long."""
    font = _font(size)
    if draw.textlength(text, font) > width:
        while text and draw.textlength(text + "…", font) > width:
            text = text[:-1]
        text += "…"
    draw.text(corner, text, fill, font)
