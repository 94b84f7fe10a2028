"""Show every method on one picture, drawn here, and print what each took: makes docs/images/methods.jpg.

    python docs/make_methods.py

CAM methods and those of the input explain lite0, ABN's maps abn-lite0. A method that does not apply is named with its
reason. Takes some minutes: Score-CAM's kin predict every channel of the last layer once or more.
"""

from __future__ import annotations

from make_pictures import FOLDER, scene

import xai_abn
from xai_abn import explainers
from xai_abn.errors import UnsupportedModelError
from xai_abn.rendering import sheet


def main() -> None:
    picture, found = scene(), []
    models = {"lite0": xai_abn.load_model("lite0"), "abn-lite0": xai_abn.load_model("abn-lite0")}
    for name in explainers.names():
        model = models["abn-lite0" if name.startswith("abn") else "lite0"]
        try:
            record = xai_abn.explain(model, picture, name)[name]
        except UnsupportedModelError as error:
            print(f"{name:<22} left out: {error}", flush=True)
            continue
        found.append(record)
        print(f"{name:<22} {record.seconds:8.2f} s", flush=True)
    page = sheet(found)
    page = page.resize((page.width * 2 // 3, page.height * 2 // 3))
    page.save(FOLDER / "methods.jpg", quality=88, optimize=True)
    print(f"{len(found)} methods on {FOLDER / 'methods.jpg'}")


if __name__ == "__main__":
    main()
