"""Draw the maps of every method over four photographs: makes docs/gallery.md and docs/images/gallery.

    python docs/make_gallery.py [METHOD ...]

The photographs come with scikit-image and are in the public domain (CC0, the astronaut by NASA). The methods of ABN
explain abn-lite0-masks, all others lite0. Names after the command draw these methods alone. The whole takes about half
an hour on one core, most of it for the methods that predict once or more for each of 1280 channels.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

import xai_abn
from xai_abn import explainers
from xai_abn.errors import UnsupportedModelError
from xai_abn.rendering import blend

DOCS = Path(__file__).parent
IMAGES = DOCS / "images/gallery"
PHOTOGRAPHS = [f"example:{name}" for name in ("cat", "astronaut", "coffee", "rocket")]
#: Options for methods that would take longer than all others together: 2 of the 10 predictions for each channel.
FEWER = {"ss-cam": "ss-cam:samples=2", "is-cam": "is-cam:steps=2"}
TILE, GAP = 224, 6
#: A network for each method that refuses the models that come with the package.
OTHER_MODELS = dict.fromkeys(("attention-rollout", "attention-relevance", "legrad"), "timm:vit_base_patch16_224")
OTHER_MODELS |= dict.fromkeys(("guided-backprop", "guided-grad-cam", "deep-lift"), "torchvision:resnet18")
PAGE = """\
# Gallery

Every method on the same four photographs, with its default options. Only `ss-cam` and `is-cam` take 2 steps instead of
10, to save time. The name of a method leads to its reference.
[Methods](methods.md) compares costs and limits, and [which method](how-to/which-method.md) helps to choose.

![A cat, an astronaut, a cup of coffee and a rocket](images/gallery/photographs.webp)

*The photographs come with scikit-image and are in the public domain. lite0 predicts {lite0}. abn-lite0-masks, which
the methods of ABN explain, predicts {abn}.*

A map explains the prediction. Yellow marks its strongest part, and the image is untouched where the map is weak. A map
with negative values is red where it speaks for the class and blue where it speaks against it. Each map has its own
scale, except `abn-mask`, which is drawn from 0 to 1: compare places, not strengths. A map that looks right can still be
wrong: see [what a map does not prove](explanation/limits.md).

{sections}
*Made by `python docs/make_gallery.py`.*
"""


def strip(tiles: list[np.ndarray]) -> Image.Image:
    """Return images side by side."""
    page = Image.new("RGB", (len(tiles) * (TILE + GAP) - GAP, TILE), "white")
    for place, tile in enumerate(tiles):
        page.paste(Image.fromarray(tile).resize((TILE, TILE), Image.Resampling.LANCZOS), (place * (TILE + GAP), 0))
    return page


def draw(method: str, model: xai_abn.ModelAdapter) -> None:
    """Save the maps of one method; of one that refuses the model, print why."""
    begun = time.perf_counter()
    try:
        found = [next(iter(one.values())) for one in xai_abn.explain(model, PHOTOGRAPHS, FEWER.get(method, method))]
    except UnsupportedModelError as error:
        print(f"{method:<22} refused: {error}", flush=True)
        return
    strip([blend(one.view, one.map, limits=one.panel.limits) for one in found]).save(
        IMAGES / f"{method}.webp", quality=70, method=6
    )
    print(f"{method:<22} {time.perf_counter() - begun:8.2f} s", flush=True)


def predictions(model: xai_abn.ModelAdapter) -> str:
    """Return the prediction for each photograph, as a sentence has it."""
    found = [
        f"{one['center'].label} ({one['center'].probability:.0%})"
        for one in xai_abn.explain(model, PHOTOGRAPHS, "center")
    ]
    return f"{', '.join(found[:-1])} and {found[-1]}"


def sections() -> str:
    """Return the methods in the order of their reference, each with its maps or with a command that draws them."""
    names = {explainers.get(name): name for name in explainers.names()}
    names = {f"{kind.__module__}.{kind.__name__}": name for kind, name in names.items()}
    lines: list[str] = []
    reference = (DOCS / "reference/api/methods.md").read_text()
    for title, entry in re.findall(r"^## (.+)|^::: (\S+)", reference, re.MULTILINE):
        if title:
            lines += [f"## {title}", ""]
        elif entry in names:
            name = names[entry]
            link = f"**[`{name}`](reference/api/methods.md#{entry})**"
            if (IMAGES / f"{name}.webp").exists():
                lines += [link, "", f"![Maps of {name}](images/gallery/{name}.webp)", ""]
            else:
                lines += [
                    f"{link} refuses these two models. A model that it accepts is downloaded by",
                    "",
                    f"```bash\nxai-abn explain example:cat --model {OTHER_MODELS[name]} --method {name}\n```",
                    "",
                ]
    return re.sub(r"^## .+\n+(?=## |\Z)", "", "\n".join(lines), flags=re.MULTILINE)  # headings without a method


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    lite0, abn = xai_abn.load_model("lite0"), xai_abn.load_model("abn-lite0-masks")
    for method in sys.argv[1:] or explainers.names():
        draw(method, abn if method.startswith("abn") else lite0)
    views = [one["center"].view for one in xai_abn.explain(lite0, PHOTOGRAPHS, "center")]
    strip(views).save(IMAGES / "photographs.webp", quality=80, method=6)
    page = PAGE.format(lite0=predictions(lite0), abn=predictions(abn), sections=sections())
    (DOCS / "gallery.md").write_text(page)


if __name__ == "__main__":
    main()
