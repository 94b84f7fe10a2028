"""Drawings: heatmaps over images, with heading and color bar, and sheets of several side by side.

A volume or clip is drawn as some of its slices, or as all of them one after another.
"""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from xai_abn.errors import InvalidInputError, UnknownNameError, UnusableMapError
from xai_abn.files import package_folder
from xai_abn.heatmaps import DisplayScale, display_scale, flaw_of, heatmap_of, positive_part, resized

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
#: Share of the map in the blend of map and image where the map is strongest; elsewhere it is in proportion to the map.
STRONGEST = 0.75
#: Colors of positive and negative values.
_POSITIVE, _NEGATIVE = (202, 0, 32), (5, 103, 190)
#: Bytes of a PNG file in front of its texts: signature and header.
_PNG_HEADER = 33
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
        scale: name of the scale of the map; panels of a sheet with the same name are drawn on one scale.
        limits: the smallest and the largest value that the map is drawn with; None: those of the map.
    """

    view: np.ndarray
    title: str
    subtitle: str = ""
    map: np.ndarray | None = None
    scale: str = ""
    limits: tuple[float, float] | None = None


def overlay(
    panel: Panel, *, colormap: str = DEFAULT_COLORMAP, opacity: float | None = None, contour: float | None = None
) -> Image.Image:
    """Draw a map over its image, with heading and color bar.

    A flat or non-finite map is not drawn: the image stays bare, and the drawing says so. Of a volume or clip, evenly
    spaced slices are drawn with their numbers, counted from 0, all on one scale of colors.

    Args:
        panel: what to draw.
        colormap: one of ``COLORMAPS``.
        opacity: share of the map in the blend, in [0, 1], the same everywhere: 1 shows the map alone, 0 the image.
            Default: in proportion to the map, so that the image is untouched where the map is weak.
        contour: also draw a line around the parts above this share of the range; see
            :meth:`xai_abn.explanation.Explanation.mask`.

    Raises:
        UnknownNameError: unknown color map.
        InvalidInputError: ``opacity`` outside [0, 1], or ``contour`` not above 0 and at most 1.
    """
    return _Drawing(colormap, opacity, contour).overlay(panel, _scale_of(panel))


@dataclass(frozen=True)
class _Drawing:
    """How maps are drawn; see :func:`overlay`."""

    colormap: str
    opacity: float | None
    contour: float | None

    def __post_init__(self) -> None:
        check_drawing(self.colormap, self.opacity, self.contour)

    def overlay(self, panel: Panel, shown: DisplayScale | None) -> Image.Image:
        """Return a panel with its map as it is drawn."""
        inside, marked = self._parts(panel, shown)
        if panel.view.ndim == 3:
            return self._page(panel, self._tiles(panel, shown, inside, [0], _WIDTH)[0], shown, marked)
        chosen = [int((part + 0.5) * len(panel.view) / SLICES) for part in range(SLICES)]
        chosen = chosen if len(panel.view) > SLICES else list(range(len(panel.view)))
        tiles = self._tiles(panel, shown, inside, chosen, _WIDTH // 2)
        return self._page(panel, _side_by_side(tiles, chosen), shown, marked)

    def pages(self, panel: Panel, shown: DisplayScale | None) -> list[Image.Image]:
        """Return a page for each slice of a volume or frame of a clip."""
        inside, marked = self._parts(panel, shown)
        tiles = self._tiles(panel, shown, inside, range(len(panel.view)), _WIDTH)
        titled = [replace(panel, title=f"{panel.title}  [{number}]") for number in range(len(tiles))]
        return [self._page(one, tile, shown, marked) for one, tile in zip(titled, tiles, strict=True)]

    def _parts(self, panel: Panel, shown: DisplayScale | None) -> tuple[np.ndarray | None, float | None]:
        """Return where the map is inside the contour, as bool of the size of the view, and the value there; or None."""
        if self.contour is None or shown is None or panel.map is None:
            return None, None
        return _above(panel.map, panel.view.shape[:-1], self.contour)

    def _tiles(
        self,
        panel: Panel,
        shown: DisplayScale | None,
        inside: np.ndarray | None,
        numbers: Sequence[int],
        width: int,
    ) -> list[np.ndarray]:
        """Return the drawings of some slices, or of the only image, each enlarged to about a width."""
        views = panel.view.reshape(-1, *panel.view.shape[-3:])[list(numbers)]
        if shown is not None:
            values = shown.values.reshape(-1, *views.shape[1:3])[list(numbers)]
            views = _colored(views, replace(shown, values=values), self.colormap, self.opacity)
        tiles = [_enlarged(view, width) for view in views]
        if inside is None:
            return tiles
        parts = inside.reshape(-1, *views.shape[1:3])[list(numbers)]
        return [_outlined(tile, _enlarged(part, width)) for tile, part in zip(tiles, parts, strict=True)]

    def _page(self, panel: Panel, pixels: np.ndarray, shown: DisplayScale | None, marked: float | None) -> Image.Image:
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
            page.paste(Image.fromarray(self._bar(shown, width, marked)), below)
            _write_ends(draw, shown, below, width)
        return page

    def _bar(self, shown: DisplayScale, width: int, marked: float | None) -> np.ndarray:
        """Return the colors of a map on white, from its low end to its high one, with a line at the contour."""
        ramp = np.repeat(np.linspace(-1 if shown.signed else 0, 1, width, dtype=np.float32)[None], 10, axis=0)
        paper = np.full((*ramp.shape, 3), 255, np.uint8)
        bar = _colored(paper, replace(shown, values=ramp), self.colormap, self.opacity)
        if marked is None:
            return bar
        column = round((marked - shown.low) / (shown.high - shown.low) * (width - 1))
        return _outlined(bar, np.broadcast_to(np.arange(width) >= column, bar.shape[:2]))


def clip_bytes(
    panel: Panel,
    ending: str,
    *,
    colormap: str = DEFAULT_COLORMAP,
    opacity: float | None = None,
    contour: float | None = None,
) -> bytes:
    """Return all slices of a volume or frames of a clip, one after another, as the content of a GIF or MP4 file.

    Args:
        panel: what to draw.
        ending: ``".gif"`` or ``".mp4"``.
        colormap: see :func:`overlay`.
        opacity: see :func:`overlay`.
        contour: see :func:`overlay`.

    Raises:
        InvalidInputError: the panel shows an image, or another ending.
    """
    if panel.view.ndim != 4 or ending not in (".gif", ".mp4"):
        raise InvalidInputError(f"a clip is made of a volume or clip, as .gif or .mp4, got {ending or 'no ending'}")
    pages = _Drawing(colormap, opacity, contour).pages(panel, _scale_of(panel))
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


def _scale_of(panel: Panel, limits: tuple[float, float] | None = None) -> DisplayScale | None:
    """Return the map of a panel as it is drawn; None without a map and for one with a flaw."""
    if panel.map is None or flaw_of(panel.map):
        return None
    return display_scale(panel.map, panel.view.shape[:-1], limits or panel.limits)


def _enlarged(pixels: np.ndarray, width: int) -> np.ndarray:
    """Return an image or mask enlarged pixel by pixel to about a width, or as it is."""
    times = max(1, round(width / pixels.shape[1]))
    if times == 1:
        return pixels
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def _side_by_side(tiles: Sequence[np.ndarray], numbers: Sequence[int]) -> np.ndarray:
    """Return slices (H, W, 3) side by side with their numbers above them, (H', W', 3)."""
    height, width = tiles[0].shape[:2]
    across = min(len(tiles), SLICES_ACROSS)
    page = Image.new("RGB", (across * (width + _GAP) - _GAP, -(-len(tiles) // across) * (height + _LINE)), _PAPER)
    draw = ImageDraw.Draw(page)
    for place, (pixels, number) in enumerate(zip(tiles, numbers, strict=True)):
        left, top = place % across * (width + _GAP), place // across * (height + _LINE)
        write_line(draw, (left + 2, top + 3), f"[{number}]", width - 2, 12, _PALE)
        page.paste(Image.fromarray(pixels), (left, top + _LINE))
    return np.asarray(page)


def sheet(
    panels: Sequence[Panel],
    *,
    colormap: str = DEFAULT_COLORMAP,
    opacity: float | None = None,
    contour: float | None = None,
) -> Image.Image:
    """Draw several panels side by side, at most six a row; of volumes and clips, which are wide, two.

    Args:
        panels: at least one.
        colormap: see :func:`overlay`.
        opacity: see :func:`overlay`.
        contour: see :func:`overlay`.

    Raises:
        InvalidInputError: there is no panel.
    """
    if not panels:
        raise InvalidInputError("a sheet needs at least one panel, got none")
    drawing = _Drawing(colormap, opacity, contour)
    scales = [_scale_of(panel) for panel in panels]
    for name in {panel.scale for panel in panels} - {""}:
        same = [scale for panel, scale in zip(panels, scales, strict=True) if panel.scale == name and scale]
        if len(same) > 1:
            limits = min(scale.low for scale in same), max(scale.high for scale in same)
            scales = [_scale_of(p, limits) if p.scale == name else s for p, s in zip(panels, scales, strict=True)]
    columns = [drawing.overlay(panel, scale) for panel, scale in zip(panels, scales, strict=True)]
    width, height = max(c.width for c in columns), max(c.height for c in columns)
    rows = -(-len(columns) // (ROW if panels[0].view.ndim == 3 else 2))
    across = -(-len(columns) // rows)  # rows of equal length leave the fewest holes
    page = Image.new("RGB", (across * width, rows * height), _PAPER)
    for number, column in enumerate(columns):
        page.paste(column, (number % across * width, number // across * height))
    return page


def stacked(drawings: Sequence[Image.Image]) -> Image.Image:
    """Return drawings, at least one, one below the other."""
    page = Image.new("RGB", (max(d.width for d in drawings), sum(d.height for d in drawings)), _PAPER)
    top = 0
    for drawing in drawings:
        page.paste(drawing, (0, top))
        top += drawing.height
    return page


def png_bytes(image: Image.Image, texts: Mapping[str, str] | None = None) -> bytes:
    """Return an image, RGB or gray, as the content of a PNG file, with texts by their keys.

    OpenCV takes a ninth of the time of Pillow at its default level, a tenth more bytes, and leaves Python to other
    threads.
    """
    pixels = np.asarray(image)
    encoded, content = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels)
    assert encoded
    chunks = [b"iTXt" + key.encode() + bytes(5) + text.encode() for key, text in (texts or {}).items()]
    between = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    made = content.tobytes()
    return made[:_PNG_HEADER] + b"".join(between) + made[_PNG_HEADER:]


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
    view: np.ndarray,
    map_: np.ndarray,
    colormap: str = DEFAULT_COLORMAP,
    opacity: float | None = None,
    limits: tuple[float, float] | None = None,
) -> np.ndarray:
    """Return an image (H, W, 3) uint8 with a map (h, w) over it in color, or bare if the map has a flaw.

    The arrays of a volume or clip have one more axis in front.

    A map with negative values is red where it is positive and blue where it is negative, and stronger further from 0.
    With a colormap other than the default, 0 has the middle color. For ``opacity`` see :func:`overlay`, for ``limits``
    :class:`Panel`.

    Raises:
        UnknownNameError: unknown color map.
        InvalidInputError: ``opacity`` outside [0, 1].
    """
    check_drawing(colormap, opacity)
    return view if flaw_of(map_) else _colored(view, display_scale(map_, view.shape[:-1], limits), colormap, opacity)


def check_drawing(colormap: str, opacity: float | None, contour: float | None = None) -> None:
    """Refuse options that :func:`overlay` does not accept; it says which errors are raised."""
    if colormap not in COLORMAPS:
        raise UnknownNameError("colormap", colormap, COLORMAPS)
    if opacity is not None and not 0 <= opacity <= 1:
        raise InvalidInputError(f"opacity must be from 0 to 1, got {opacity}")
    if contour is not None and not 0 < contour <= 1:
        raise InvalidInputError(f"contour must be above 0 and at most 1, got {contour}")


def _colored(view: np.ndarray, shown: DisplayScale, colormap: str, opacity: float | None) -> np.ndarray:
    if not shown.signed:
        return blend_heatmap(view, shown.values, colormap, opacity)
    strength = np.abs(shown.values)
    if colormap != DEFAULT_COLORMAP:
        colors = _colors((shown.values + 1) / 2, colormap)
    else:
        colors = np.where(shown.values[..., None] > 0, np.array(_POSITIVE), np.array(_NEGATIVE))
        if opacity is not None:  # white at 0
            colors = 255 + (colors - 255) * strength[..., None]
    return _mixed(view, colors, strength, opacity)


def blend_heatmap(
    view: np.ndarray, heatmap: np.ndarray, colormap: str = DEFAULT_COLORMAP, opacity: float | None = None
) -> np.ndarray:
    """Return an image (H, W, 3) uint8 with a heatmap (H, W) in [0, 1] over it in color; see :func:`overlay`."""
    return _mixed(view, _colors(heatmap, colormap), heatmap, opacity)


def _mixed(view: np.ndarray, colors: np.ndarray, strength: np.ndarray, opacity: float | None) -> np.ndarray:
    """Mix an image with colors (..., 3) by one opacity, or where that is None by the strength (...) in [0, 1]."""
    share = np.float32(opacity) if opacity is not None else np.float32(STRONGEST) * strength[..., None]
    mixed = np.subtract(colors, view, dtype=np.float32)
    mixed *= share
    mixed += view
    return np.asarray(np.rint(mixed), np.uint8)


def _colors(values: np.ndarray, colormap: str) -> np.ndarray:
    """Return values (..., W) in [0, 1] as RGB (..., W, 3) uint8."""
    rows = np.round(values * 255).astype(np.uint8).reshape(-1, values.shape[-1])
    rgb = cv2.cvtColor(cv2.applyColorMap(rows, COLORMAPS[colormap]), cv2.COLOR_BGR2RGB)
    return rgb.reshape(*values.shape, 3)


def _above(map_: np.ndarray, size: tuple[int, ...], share: float) -> tuple[np.ndarray, float | None]:
    """Return where a map is at least a share of its range, as bool of a size, and the value that this is.

    Nowhere and None if the map has no positive value.
    """
    positive = positive_part(map_)
    try:
        heatmap = heatmap_of(positive, size)
    except UnusableMapError:
        return np.zeros(size, bool), None
    values = resized(positive, size)
    low, high = float(np.min(values)), float(np.max(values))
    return heatmap >= share, low + share * (high - low)


def _outlined(pixels: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return pixels (H, W, 3) with a white line on the inner border of parts (H, W) bool, and a black one outside."""
    thick = max(1, round(min(pixels.shape[:2]) / 224))
    parts, around = inside.astype(np.uint8), np.ones((3, 3), np.uint8)
    inner, outer = cv2.erode(parts, around, iterations=thick), cv2.dilate(parts, around, iterations=thick)
    lined: np.ndarray = pixels.copy()
    lined[parts > inner] = 255
    lined[outer > parts] = 0
    return lined


def _write_ends(draw: ImageDraw.ImageDraw, shown: DisplayScale, corner: tuple[int, int], width: int) -> None:
    """Write below a color bar what its ends mean, with their values in the units of the map."""
    (left, top), font = corner, _font(12)
    low, high = ("negative", "positive") if shown.signed else ("low", "high")
    ends = {0.0: f"{low} ({shown.low:.3g})", 1.0: f"{high} ({shown.high:.3g})"} | ({0.5: "0"} if shown.signed else {})
    for place, text in ends.items():
        draw.text((left + place * (width - draw.textlength(text, font)), top + 13), text, _PALE, font)


@lru_cache
def _font(size: int, text: str = "") -> ImageFont.FreeTypeFont:
    """Return a font with the letters of a text: DejaVu Sans, which has those of most alphabets, or an installed one."""
    own = str(Path(package_folder("matplotlib"), "mpl-data", "fonts", "ttf", "DejaVuSans.ttf"))
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
    if not text:
        return ""
    from matplotlib.ft2font import FT2Font

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
