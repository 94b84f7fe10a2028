"""Explain one drawn image with every method and print the time of each: makes docs/images/methods.jpg.

    python docs/make_methods.py

The maps of ABN explain abn-lite0, all other methods lite0. A method that does not apply is printed with the reason.
Takes some minutes, because Score-CAM and its variants need one or more predictions per channel of the last layer.
"""

from __future__ import annotations

from make_images import FOLDER, scene

import xai_abn
from xai_abn import explainers
from xai_abn.errors import UnsupportedModelError
from xai_abn.explanation import sheet


def main() -> None:
    image, explanations = scene(), []
    models = {"lite0": xai_abn.load_model("lite0"), "abn-lite0": xai_abn.load_model("abn-lite0")}
    for name in explainers.names():
        model = models["abn-lite0" if name.startswith("abn") else "lite0"]
        try:
            record = xai_abn.explain(model, image, name)[name]
        except UnsupportedModelError as error:
            print(f"{name:<22} skipped: {error}", flush=True)
            continue
        explanations.append(record)
        print(f"{name:<22} {record.seconds:8.2f} s", flush=True)
    page = sheet(explanations)
    page = page.resize((page.width * 2 // 3, page.height * 2 // 3))
    page.save(FOLDER / "methods.jpg", quality=88, optimize=True)
    print(f"{len(explanations)} methods in {FOLDER / 'methods.jpg'}")


if __name__ == "__main__":
    main()
