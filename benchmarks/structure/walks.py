"""How many files and calls does a reader follow? Counts for four typical uses of the package, and its size.

    python benchmarks/structure/walks.py [--list]

To count another checkout, put it first on the path: PYTHONPATH=DIR python benchmarks/structure/walks.py
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from PIL import Image
from typer.testing import CliRunner

import xai_abn
from xai_abn.cli.main import app

PACKAGE = Path(xai_abn.__file__).parent
#: What calls go to, by the beginning of the file that is called; the first that fits counts.
GROUPS = {
    "command line": ("cli/",),
    "images and data sets": ("images/", "datasets/"),
    "building and loading a network": (
        "models/zoo", "models/settings", "networks/architectures", "networks/assembly", "networks/build",
        "networks/checkpoint", "networks/dilation", "networks/splitting", "networks/vit_abn", "networks/weights",
    ),
    "running it: modes, hooks, the network's own parts": (
        "models/forward_pass", "models/backends", "models/predictor", "networks/",
    ),
    "what a model is: labels, outputs, targets": ("models/",),
    "methods": ("explainers/",),
    "pipeline and explanations": ("pipeline", "explanation", "threads"),
    "maps and drawings": ("heatmaps", "rendering"),
    "metrics": ("metrics/",),
    "benchmark": ("benchmark/",),
    "training": ("training/",),
    "settings, names, files, seeds": ("",),
}  # fmt: skip
#: A function of the package: file and name.
Function = tuple[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the files and calls, too")
    arguments = parser.parse_args()
    modules = list(PACKAGE.rglob("*.py"))
    lines = sum(len(path.read_text().splitlines()) for path in modules)
    print(f"{PACKAGE}: {len(modules)} files, {lines} lines")
    print("| walk | files | cross-file calls |\n|---|---|---|")
    groups: dict[str, list[int]] = {group: [] for group in GROUPS}
    with tempfile.TemporaryDirectory() as folder:
        for name, walk in walks(Path(folder)).items():
            walk()  # imports everything, so that the code of modules is not counted
            files, calls = follow(walk)
            print(f"| {name} | {len(files)} | {len(calls)} |", flush=True)
            called = Counter(group_of(callee) for _, (callee, _) in calls)
            for group, numbers in groups.items():
                numbers.append(called[group])
            if arguments.list:
                print("\n".join(f"    {a[0]}:{a[1]} -> {b[0]}:{b[1]}" for a, b in sorted(calls)))
    print("\n| calls to | explain | benchmark | load | distillation |\n|---|---|---|---|---|")
    for group, numbers in groups.items():
        print(f"| {group} | " + " | ".join(map(str, numbers)) + " |")


def group_of(file: str) -> str:
    """Return what a call of this file is for."""
    return next(group for group, beginnings in GROUPS.items() if file.startswith(beginnings))


def walks(folder: Path) -> dict[str, Callable[[], Any]]:
    """Return the four uses. Each writes to a new place in the folder whenever it is called."""
    images = folder / "images"
    images.mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (300, 300, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
    model = xai_abn.load_model("abn-lite0")
    return {
        "CLI: explain example:cat with abn": lambda: explain(new_path(folder)),
        "benchmark: deletion of one image": lambda: benchmark(model, images, new_path(folder)),
        "load abn-lite0": lambda: xai_abn.load_model("abn-lite0"),
        "distillation: a run of one step": lambda: distill(images, new_path(folder)),
    }


def new_path(folder: Path) -> Path:
    return folder / f"output-{len(list(folder.iterdir()))}"


def explain(output: Path) -> None:
    result = CliRunner().invoke(app, ["explain", "example:cat", "--method", "abn", "--output", str(output)])
    if result.exit_code:
        raise RuntimeError(result.output) from result.exception


def benchmark(model: Any, images: Path, output: Path) -> None:
    if is_layout_of_1390650():
        data = import_module("xai_abn.data").read_data(f"folder:{images}")
        runs = import_module("xai_abn.evaluation")
        runs.benchmark(model, data, ["abn"], ["deletion"], f"{output}.sqlite", runs.Settings(limit=1))
        return
    from xai_abn.benchmark import BenchmarkSettings
    from xai_abn.benchmark import benchmark as run_benchmark
    from xai_abn.datasets import read_dataset

    data = read_dataset(f"images:{images}")
    run_benchmark(model, data, ["abn"], ["deletion"], f"{output}.sqlite", BenchmarkSettings(limit=1))


def distill(images: Path, output: Path) -> None:
    if is_layout_of_1390650():
        make_settings = import_module("xai_abn.training.distillation.settings").DistillationSettings
        settings = make_settings(images=(str(images),), steps=1, batch_size=2, workers=0)
        import_module("xai_abn.training.distillation.run").run_distillation(output, settings)
        return
    from xai_abn.training import DistillationSettings, run_distillation

    run_distillation(output, DistillationSettings(images=(str(images),), steps=1, batch_size=2, workers=0))


def is_layout_of_1390650() -> bool:
    """Return whether the package is laid out as in commit 1390650, from which the figures before come."""
    return (PACKAGE / "evaluation").is_dir()


def follow(walk: Callable[[], Any]) -> tuple[set[str], set[tuple[Function, Function]]]:
    """Return the files whose functions run, and the distinct calls that go from one file to another.

    A caller is the nearest function of the package on the stack, also through code of other libraries.
    """
    files: set[str] = set()
    calls: set[tuple[Function, Function]] = set()

    def function(frame: FrameType | None) -> Function | None:
        if frame is None or not frame.f_code.co_filename.startswith(str(PACKAGE)):
            return None
        return str(Path(frame.f_code.co_filename).relative_to(PACKAGE)), frame.f_code.co_name

    def record(frame: FrameType, event: str, _: object) -> None:
        callee = function(frame) if event == "call" else None
        if callee is None or callee[1] == "<module>":
            return
        files.add(callee[0])
        above = frame.f_back
        while above is not None and function(above) is None:
            above = above.f_back
        caller = function(above)
        if caller is not None and caller[0] != callee[0]:
            calls.add((caller, callee))

    threading.setprofile(record)
    sys.setprofile(record)
    try:
        walk()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return files, calls


if __name__ == "__main__":
    main()
