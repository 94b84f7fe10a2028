"""Drawings: heatmaps over images, with heading and color bar, and sheets of several side by side.

A volume or clip is drawn as some of its slices, or as all of them one after another.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from xai_abn.errors import InvalidInputError, UnknownNameError
from xai_abn.heatmaps import DisplayScale, display_scale, flaw_of

#: Colormaps by name, with OpenCV's constant. The first five are perceptually uniform.
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
#: Colors of positive and negative values.
_POSITIVE, _NEGATIVE = (202, 0, 32), (5, 103, 190)
#: Compression of PNG files. Level 1 takes a fifth of the time of Pillow's default, 6, and makes a sixth more bytes.
_PNG_LEVEL = 1
#: Columns of a sheet before it continues below.
ROW = 6

_PAPER, _INK, _PALE, _WARNING = (255, 255, 255), (24, 24, 27), (113, 113, 122), (180, 40, 40)
_MARGIN, _LINE, _GAP = 14, 22, 4
#: Number of slices of a volume or clip that are drawn, and of them side by side.
SLICES, SLICES_ACROSS = 8, 4
#: Slices or frames a second of a clip, and the text that marks the file as ours.
_RATE, CLIP_MARK = 8, b"made by xai-abn"
#: Small images are enlarged, pixel by pixel, to about this width, so that their headings fit.
_WIDTH = 256


@dataclass(frozen=True, eq=False)
class Panel:
    """What one drawing shows.

    Attributes:
        view: (H, W, 3) uint8 RGB, the image; of a volume or clip (D, H, W, 3), its slices or frames.
        title: the first line of the heading.
        subtitle: the second line, or empty.
        map: (h, w) or (d, h, w), in its own units, or None to show the image alone.
    """

    view: np.ndarray
    title: str
    subtitle: str = ""
    map: np.ndarray | None = None


def overlay(panel: Panel, *, colormap: str = DEFAULT_COLORMAP, opacity: float = DEFAULT_OPACITY) -> Image.Image:
    """Draw a map over its image, with heading and color bar.

    A flat or non-finite map is not drawn: the image stays bare, and the drawing says so. Of a volume or clip, evenly
    spaced slices are drawn with their numbers, counted from 0, all on one scale of colors.

    Args:
        panel: what to draw.
        colormap: one of ``COLORMAPS``.
        opacity: share of the map in the blend, in [0, 1].

    Raises:
        UnknownNameError: unknown color map.
        InvalidInputError: ``opacity`` outside [0, 1].
    """
    _check(colormap, opacity)
    shown = _scale_of(panel)
    if panel.view.ndim == 3:
        pixels = _enlarged(_blended(panel.view, shown, colormap, opacity), _WIDTH)
    else:
        chosen = [int((part + 0.5) * len(panel.view) / SLICES) for part in range(SLICES)]
        chosen = chosen if len(panel.view) > SLICES else list(range(len(panel.view)))
        values = None if shown is None else replace(shown, values=shown.values[chosen])
        pixels = _side_by_side(_blended(panel.view[chosen], values, colormap, opacity), chosen)
    return _page(panel, pixels, shown, colormap)


def clip_bytes(
    panel: Panel, ending: str, *, colormap: str = DEFAULT_COLORMAP, opacity: float = DEFAULT_OPACITY
) -> bytes:
    """Return all slices of a volume or frames of a clip, one after another, as the content of a GIF or MP4 file.

    Args:
        panel: what to draw.
        ending: ``".gif"`` or ``".mp4"``.
        colormap: see :func:`overlay`.
        opacity: see :func:`overlay`.

    Raises:
        InvalidInputError: the panel shows an image, or another ending.
    """
    if panel.view.ndim != 4 or ending not in (".gif", ".mp4"):
        raise InvalidInputError(f"a clip is made of a volume or clip, as .gif or .mp4, got {ending or 'no ending'}")
    _check(colormap, opacity)
    shown = _scale_of(panel)
    pages = []
    for number, view in enumerate(panel.view):
        values = None if shown is None else replace(shown, values=shown.values[number])
        pixels = _enlarged(_blended(view, values, colormap, opacity), _WIDTH)
        pages.append(_page(replace(panel, title=f"{panel.title}  [{number}]"), pixels, shown, colormap))
    return _gif(pages) if ending == ".gif" else _mp4(pages)


def _gif(pages: Sequence[Image.Image]) -> bytes:
    buffer = io.BytesIO()
    pages[0].save(
        buffer, "GIF", save_all=True, append_images=pages[1:], duration=1000 // _RATE, loop=0, comment=CLIP_MARK
    )
    return buffer.getvalue()


def _mp4(pages: Sequence[Image.Image]) -> bytes:
    """Return pages as an MP4 file; a box that players skip, at its end, marks it as ours."""
    width, height = (side - side % 2 for side in pages[0].size)  # of odd sides, players show nothing
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "clip.mp4")
        writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"mp4v"), _RATE, (width, height))
        for page in pages:
            writer.write(cv2.cvtColor(np.asarray(page)[:height, :width], cv2.COLOR_RGB2BGR))
        writer.release()
        content = Path(path).read_bytes()
    return content + (8 + len(CLIP_MARK)).to_bytes(4, "big") + b"free" + CLIP_MARK


def _scale_of(panel: Panel) -> DisplayScale | None:
    """Return the map of a panel as it is drawn; None without a map and for one with a flaw."""
    if panel.map is None or flaw_of(panel.map):
        return None
    return display_scale(panel.map, panel.view.shape[:-1])


def _blended(view: np.ndarray, shown: DisplayScale | None, colormap: str, opacity: float) -> np.ndarray:
    return view if shown is None else _colored(view, shown, colormap, opacity)


def _enlarged(pixels: np.ndarray, width: int) -> np.ndarray:
    """Return an image enlarged pixel by pixel to about a width, or as it is."""
    times = max(1, round(width / pixels.shape[1]))
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def _side_by_side(slices: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
    """Return slices (B, H, W, 3) side by side with their numbers above them, (H', W', 3)."""
    tiles = [_enlarged(pixels, _WIDTH // 2) for pixels in slices]
    height, width = tiles[0].shape[:2]
    across = min(len(tiles), SLICES_ACROSS)
    page = Image.new("RGB", (across * (width + _GAP) - _GAP, -(-len(tiles) // across) * (height + _LINE)), _PAPER)
    draw = ImageDraw.Draw(page)
    for place, (pixels, number) in enumerate(zip(tiles, numbers, strict=True)):
        left, top = place % across * (width + _GAP), place // across * (height + _LINE)
        write_line(draw, (left + 2, top + 3), f"[{number}]", width - 2, 12, _PALE)
        page.paste(Image.fromarray(pixels), (left, top + _LINE))
    return np.asarray(page)


def _page(panel: Panel, pixels: np.ndarray, shown: DisplayScale | None, colormap: str) -> Image.Image:
    """Return a drawing with the heading of a panel above it, and below it the colors, or why there are none."""
    flaw = None if panel.map is None else flaw_of(panel.map)
    height, width = pixels.shape[:2]
    lines = [(panel.title, 17, _INK), (panel.subtitle, 14, _PALE)][: 2 if panel.subtitle else 1]
    top = _MARGIN // 2 + _LINE * len(lines) + 6
    page = Image.new("RGB", (width + 2 * _MARGIN, top + height + 44), _PAPER)
    draw = ImageDraw.Draw(page)
    for row, (text, size, fill) in enumerate(lines):
        write_line(draw, (_MARGIN, _MARGIN // 2 + row * _LINE), text, width, size, fill)
    page.paste(Image.fromarray(pixels), (_MARGIN, top))
    below = (_MARGIN, top + height + 8)
    if flaw:
        write_line(draw, below, f"the map is {flaw}: nothing to show", width, 14, _WARNING)
    elif shown is not None:
        _color_bar(page, draw, shown, below, width, colormap)
    return page


def sheet(
    panels: Sequence[Panel], *, colormap: str = DEFAULT_COLORMAP, opacity: float = DEFAULT_OPACITY
) -> Image.Image:
    """Draw several panels side by side, six a row; of volumes and clips, which are wide, two.

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
    across = min(len(columns), ROW if panels[0].view.ndim == 3 else 2)
    page = Image.new("RGB", (across * width, -(-len(columns) // across) * height), _PAPER)
    for number, column in enumerate(columns):
        page.paste(column, (number % across * width, number // across * height))
    return page


def png_bytes(image: Image.Image, texts: Mapping[str, str] | None = None) -> bytes:
    """Return an image as the content of a PNG file, with texts by their keys."""
    info = PngInfo()
    for key, text in (texts or {}).items():
        info.add_itxt(key, text)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info, compress_level=_PNG_LEVEL)
    return buffer.getvalue()


def with_box(view: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """Return an image (H, W, 3) uint8 with a box (left, top, right, bottom), in shares of its sides, drawn on it."""
    height, width = view.shape[:2]
    image = Image.fromarray(view)
    thick = max(1, round(min(height, width) / 150))
    left, top, right, bottom = (round(v * s) for v, s in zip(box, (width - 1, height - 1) * 2, strict=True))
    corners = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
    draw = ImageDraw.Draw(image)
    draw.rectangle(corners, outline=(0, 0, 0), width=2 * thick)
    draw.rectangle(corners, outline=(255, 255, 255), width=thick)
    return np.asarray(image)


def blend(
    view: np.ndarray, map_: np.ndarray, colormap: str = DEFAULT_COLORMAP, opacity: float = DEFAULT_OPACITY
) -> np.ndarray:
    """Return an image (H, W, 3) uint8 with a map (h, w) over it in color, or bare if the map has a flaw.

    Of a volume or clip, both have one more axis in front.

    A map with negative values is red where it is positive and blue where it is negative, the stronger the further from
    0. With a colormap other than the default, 0 has the middle color.

    Raises:
        UnknownNameError: unknown color map.
        InvalidInputError: ``opacity`` outside [0, 1].
    """
    _check(colormap, opacity)
    return view if flaw_of(map_) else _colored(view, display_scale(map_, view.shape[:-1]), colormap, opacity)


def _check(colormap: str, opacity: float) -> None:
    if colormap not in COLORMAPS:
        raise UnknownNameError("colormap", colormap, COLORMAPS)
    if not 0 <= opacity <= 1:
        raise InvalidInputError(f"opacity must lie in [0, 1], got {opacity}")


def _colored(view: np.ndarray, shown: DisplayScale, colormap: str, opacity: float) -> np.ndarray:
    if shown.signed and colormap == DEFAULT_COLORMAP:
        return _two_colors(view, shown.values, opacity)
    return blend_heatmap(view, (shown.values + 1) / 2 if shown.signed else shown.values, colormap, opacity)


def _two_colors(view: np.ndarray, values: np.ndarray, opacity: float) -> np.ndarray:
    """Return an image (H, W, 3) with values (H, W) in [-1, 1] over it: nothing at 0, red above, blue below."""
    colors = np.where(values[..., None] > 0, np.array(_POSITIVE), np.array(_NEGATIVE))
    share = opacity * np.sqrt(np.abs(values))[..., None]
    result: np.ndarray = np.round(view * (1 - share) + colors * share).astype(np.uint8)
    return result


def blend_heatmap(
    view: np.ndarray, heatmap: np.ndarray, colormap: str = DEFAULT_COLORMAP, opacity: float = DEFAULT_OPACITY
) -> np.ndarray:
    """Return an image (H, W, 3) uint8 with a heatmap (H, W) in [0, 1] over it in color."""
    return np.round(view * (1 - opacity) + _colors(heatmap, colormap) * opacity).astype(np.uint8)


def _colors(values: np.ndarray, colormap: str) -> np.ndarray:
    """Return values (..., W) in [0, 1] as RGB (..., W, 3) uint8."""
    rows = np.round(values * 255).astype(np.uint8).reshape(-1, values.shape[-1])
    rgb = cv2.cvtColor(cv2.applyColorMap(rows, COLORMAPS[colormap]), cv2.COLOR_BGR2RGB)
    return rgb.reshape(*values.shape, 3)


def _color_bar(
    page: Image.Image,
    draw: ImageDraw.ImageDraw,
    shown: DisplayScale,
    corner: tuple[int, int],
    width: int,
    colormap: str,
) -> None:
    """Draw the colors of a map with the values at their ends."""
    left, top = corner
    ramp = np.repeat(np.linspace(-1 if shown.signed else 0, 1, width, dtype=np.float32)[None], 10, axis=0)
    paper = np.full((*ramp.shape, 3), 255, np.uint8)
    bar = _colored(paper, replace(shown, values=ramp), colormap, 1.0)
    page.paste(Image.fromarray(bar), (left, top))
    font = _font(12)
    low, high = f"{shown.low:.3g}", f"{shown.high:.3g}"
    draw.text((left, top + 13), low, _PALE, font)
    if shown.signed:
        draw.text((left + (width - draw.textlength("0", font)) / 2, top + 13), "0", _PALE, font)
    draw.text((left + width - draw.textlength(high, font), top + 13), high, _PALE, font)


@lru_cache
def _font(size: int, text: str = "") -> ImageFont.FreeTypeFont:
    """Return a font with the letters of a text: DejaVu Sans, which has those of most alphabets, or an installed one."""
    own = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
    missing = _missing(own, text)
    if missing:
        from matplotlib.font_manager import fontManager

        regular = [
            f for f in fontManager.ttflist if f.style == "normal" and str(f.weight) in ("400", "normal", "regular")
        ]
        by_missing = sorted((len(_missing(f.fname, missing)), "Sans" not in f.name, f.fname) for f in regular)
        if by_missing and by_missing[0][0] < len(missing):
            own = by_missing[0][2]
    return ImageFont.truetype(own, size)


@lru_cache
def _missing(font: str, text: str) -> str:
    """Return the letters of a text that a font file cannot draw."""
    try:
        known = FT2Font(font).get_charmap()
    except (OSError, RuntimeError):
        return text
    return "".join(letter for letter in dict.fromkeys(text) if ord(letter) not in known and letter.isprintable())


def write_line(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    width: int,
    size: int,
    fill: tuple[int, int, int],
) -> None:
    """Write one line, shortened with an ellipsis if it is too long; line breaks and the like become spaces."""
    # no more letters than pixels, since each is at least a pixel wide
    text = "".join(letter if letter.isprintable() else " " for letter in text[: width + 1])
    font = _font(size, "".join(sorted({letter for letter in text if letter > "\u024f"})))
    if draw.textlength(text, font) > width:
        while text and draw.textlength(text + "…", font) > width:
            text = text[:-1]
        text += "…"
    draw.text(corner, text, fill, font)
