"""Make images/before-after.webp of the README from what the tutorial "Correct it" leaves in a folder.

    python docs/make_correction.py FOLDER

Left, Grad-CAM of the model with the shortcut on a test image; in the middle, one of the marks on a training image;
right, Grad-CAM of the corrected model on the same test image.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import xai_abn
from xai_abn.rendering import Panel, sheet

IMAGE, MARKED = "data/test/red/000.png", "data/train/green/000.png"


def main() -> None:
    folder = Path(sys.argv[1])
    corrections = xai_abn.Corrections(folder / "corrections")
    before, after = (explained(folder, run) for run in ("run", "corrected"))
    panels = [
        Panel(before.view, "before", f"predicted: {before.answer}", before.map),
        marked(folder, corrections, before.view.shape[:2]),
        Panel(after.view, "after", f"predicted: {after.answer}", after.map),
    ]
    page = sheet(panels)
    page.save(Path(__file__).parent / "images" / "before-after.webp", quality=80, method=6)


def explained(folder: Path, run: str) -> xai_abn.Explanation:
    model = xai_abn.load_model(folder / run)
    return xai_abn.explain(model, str(folder / IMAGE), "grad-cam")["grad-cam"]


def marked(folder: Path, corrections: xai_abn.Corrections, size: tuple[int, ...]) -> Panel:
    """Return a training image, enlarged to (height, width), pale where it is not marked."""
    view = np.asarray(Image.open(folder / MARKED).convert("RGB"))
    (mark,) = [c for c in corrections if c.label == "green" and c.name.endswith(Path(MARKED).name)]
    dimmed = np.where(mark.mask[..., None], view, view // 4 + 150)
    large = Image.fromarray(dimmed.astype(np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
    return Panel(np.asarray(large), f"one of {len(corrections)} marks", "look here: the ball")


if __name__ == "__main__":
    main()
