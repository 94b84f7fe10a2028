"""Make the images of the README, of the first tutorial and of docs/explanation/abn.md.

    python docs/make_images.py

portrait.jpg: maps of three classes over the portrait of Grace Hopper by the United States Navy, which is in the public
domain and comes with matplotlib. first-image.webp and first-sheet.webp: maps over a photograph that comes with
scikit-image (CC0). street.jpg: a drawn scene with several objects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.cbook import get_sample_data
from PIL import Image, ImageDraw, ImageFilter

import xai_abn
from xai_abn.explanation import sheet
from xai_abn.rendering import stacked

FOLDER = Path(__file__).parent / "images"
SIDE = 448
_ZOOM = 3  # drawn larger, then reduced, for smooth edges


def scene() -> Image.Image:
    """Return a street corner (448, 448): a traffic light on the left, a station clock on the right."""
    side = SIDE * _ZOOM
    sky = np.linspace((150, 185, 215), (225, 228, 222), side).astype(np.uint8)[:, None].repeat(side, axis=1)
    page = Image.fromarray(sky)
    draw = ImageDraw.Draw(page)
    for left, top, right, shade in (
        (0, 250, 130, 150),
        (110, 200, 210, 172),
        (200, 270, 330, 160),
        (320, 225, 448, 178),
    ):
        draw.rectangle(_zoom(left, top, right, 400), fill=(shade, shade - 8, shade - 18))
        for x in range(left + 12, right - 14, 26):
            for y in range(top + 14, 385, 34):
                draw.rectangle(_zoom(x, y, x + 11, y + 18), fill=(shade - 45, shade - 35, shade - 25))
    page = page.filter(ImageFilter.GaussianBlur(4 * _ZOOM))
    draw = ImageDraw.Draw(page)
    draw.rectangle(_zoom(0, 398, SIDE, SIDE), fill=(92, 92, 96))
    traffic_light(draw, 105, 60)
    clock(draw, 325, 165, 78)
    grain = np.random.default_rng(0).normal(0, 5, (SIDE, SIDE, 3))
    small = np.asarray(page.resize((SIDE, SIDE), Image.Resampling.LANCZOS), float)
    return Image.fromarray(np.clip(small + grain, 0, 255).astype(np.uint8))


def traffic_light(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    draw.rectangle(_zoom(x - 7, y + 150, x + 7, 430), fill=(58, 60, 62))
    draw.rounded_rectangle(
        _zoom(x - 38, y, x + 38, y + 190), 12 * _ZOOM, fill=(28, 30, 30), outline=(70, 72, 70), width=9
    )
    for i, color in enumerate(((245, 50, 40), (84, 66, 20), (18, 66, 34))):
        cy = y + 37 + 58 * i
        draw.ellipse(_zoom(x - 24, cy - 24, x + 24, cy + 24), fill=color, outline=(10, 10, 10), width=6)
        draw.pieslice(_zoom(x - 32, cy - 34, x + 32, cy + 20), 190, 350, fill=(20, 21, 21))
        draw.ellipse(_zoom(x - 24, cy - 20, x + 24, cy + 26), fill=color)
        draw.ellipse(_zoom(x - 12, cy - 10, x + 2, cy + 4), fill=tuple(min(255, c + 45) for c in color))


def clock(draw: ImageDraw.ImageDraw, x: int, y: int, r: int) -> None:
    draw.rectangle(_zoom(x - 6, y + r, x + 6, 430), fill=(48, 50, 54))
    draw.ellipse(_zoom(x - r - 9, y - r - 9, x + r + 9, y + r + 9), fill=(40, 42, 46))
    draw.ellipse(_zoom(x - r, y - r, x + r, y + r), fill=(246, 246, 240))
    for minute in range(60):
        angle = math.radians(6 * minute)
        inner = r * (0.80 if minute % 5 == 0 else 0.90)
        ends = [(x + d * math.sin(angle), y - d * math.cos(angle)) for d in (inner, r * 0.96)]
        draw.line([tuple(_ZOOM * v for v in e) for e in ends], fill=(20, 20, 20), width=9 if minute % 5 == 0 else 4)
    for angle, length, width in ((305, 0.55, 17), (60, 0.80, 11)):
        end = (x + r * length * math.sin(math.radians(angle)), y - r * length * math.cos(math.radians(angle)))
        draw.line([(_ZOOM * x, _ZOOM * y), tuple(_ZOOM * v for v in end)], fill=(18, 18, 18), width=width)
    draw.ellipse(_zoom(x - 6, y - 6, x + 6, y + 6), fill=(18, 18, 18))


def _zoom(*values: float) -> list[float]:
    return [_ZOOM * v for v in values]


def portrait() -> Image.Image:
    """Return the maps of two classes that the network sees and of one that it does not, each drawn alone."""
    with get_sample_data("grace_hopper.jpg") as file:
        image = Image.open(file).convert("RGB")
    model = xai_abn.load_model("abn-lite0-masks")
    rows = []
    for method in ("abn-mask", "grad-cam"):
        found = xai_abn.explain(model, image, method, [["mortarboard", "Windsor tie", "airliner"]])[0]
        rows.append(side_by_side([record.overlay() for record in found.values()]))
    return stacked(rows)


def side_by_side(drawings: Sequence[Image.Image]) -> Image.Image:
    page = Image.new("RGB", (sum(d.width for d in drawings), max(d.height for d in drawings)), "white")
    left = 0
    for drawing in drawings:
        page.paste(drawing, (left, 0))
        left += drawing.width
    return page


def street() -> Image.Image:
    """Return the attention map of abn-lite0 for the scene beside CAM and Grad-CAM."""
    result = xai_abn.explain(xai_abn.load_model("abn-lite0"), scene(), ["abn", "cam", "grad-cam"])[0]
    return sheet(list(result.values()))


def first() -> tuple[Image.Image, Image.Image]:
    """Return what the first tutorial shows: a map, and a sheet of several."""
    methods = ["abn-mask", "abn", "grad-cam", "center"]
    found = xai_abn.explain(xai_abn.load_model(), "example:cat", methods)[0]
    return found["abn-mask"].overlay(), found.sheet()


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, image in (("portrait", portrait()), ("street", street())):
        image.thumbnail((1440, 1440), Image.Resampling.LANCZOS)
        image.save(FOLDER / f"{name}.jpg", quality=88, optimize=True)
    for name, image in zip(("first-image", "first-sheet"), first(), strict=True):
        image.thumbnail((1440, 1440), Image.Resampling.LANCZOS)
        image.save(FOLDER / f"{name}.webp", quality=75, method=6)


if __name__ == "__main__":
    main()
