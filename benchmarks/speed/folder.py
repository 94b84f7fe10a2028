"""How close does ``xai-abn explain`` over a folder come to the speed of the network alone? Images a second, in turns.

    python -m benchmarks.speed.folder IMAGES [--number 400] [--rounds 3]

Each turn explains the first images of a folder with one method and writes the overlays, with and without threads beside
the network: with a method that needs gradients, and with one that does not, by the backend that it chooses and by the
quickest from the start. The bare forwards are those of as many prepared images in batches of eight: by the network, and
by the quickest backend that agrees. Processor time is that of all threads. At the end: what the parts of an image's
work cost one thread, the least of some rounds, which other work on the machine disturbs least.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

import xai_abn
from benchmarks._harness import machine, make_parser, settled, write_json
from xai_abn.cli.explain import _Work
from xai_abn.cli.output import OutputFolder
from xai_abn.explainers import make_explainers
from xai_abn.images.loading import find_images, load_image
from xai_abn.models.predictor import Predictor
from xai_abn.rendering import png_bytes


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("images", help="folder")
    parser.add_argument("--number", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--coming", type=int, default=10_000, help="images of which the predictor is told, to choose")
    parser.add_argument("--model", default="lite0")
    parser.add_argument("--methods", nargs="+", default=["grad-cam", "cam"])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    facts = machine()
    model = xai_abn.load_model(arguments.model)
    files = find_images(arguments.images)[: arguments.number]
    batch = torch.stack([model.preprocess(load_image(file)).tensor for file in files[:8]])
    quickest = settled(model, batch, arguments.coming)
    print(f"predictions: {quickest}", flush=True)
    turns = -(-len(files) // len(batch))
    contenders: dict[str, Callable[[], object]] = {}
    for method in arguments.methods:
        free = make_explainers(model, method)[0].maps_read is not None
        for backend in (None, quickest.backend) if free else (None,):
            for workers in arguments.workers:
                name = f"{method}, {workers} workers" + (f", {backend}" if backend else "")
                contenders[name] = partial(explain, replace(model, backend=backend), files, method, workers)
    plain = Predictor(model, backend="network")
    contenders["bare forwards, network"] = lambda: [plain(batch) for _ in range(turns)]
    contenders["bare forwards, quickest"] = lambda: [quickest(batch) for _ in range(turns)]
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    used: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(arguments.rounds):
        for name, call in contenders.items():
            started, before = time.perf_counter(), time.process_time()
            call()
            rates[name].append(len(files) / (time.perf_counter() - started))
            used[name].append(1000 * (time.process_time() - before) / len(files))
            print(f"round {number + 1}: {name}: {rates[name][-1]:.1f} images/s, {used[name][-1]:.1f} ms", flush=True)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    costs = {name: statistics.median(found) for name, found in used.items()}
    network, best = ("bare forwards, network", "bare forwards, quickest")
    print("| | images/s | of the network | of the quickest | ms of processor time an image | of the quickest |")
    print("|---|---|---|---|---|---|")
    for name, rate in medians.items():
        shares = rate / medians[network], rate / medians[best], costs[best] / costs[name]
        print(f"| {name} | {rate:.1f} | {shares[0]:.2f} | {shares[1]:.2f} | {costs[name]:.1f} | {shares[2]:.2f} |")
    for name, cost in parts(model, files[:8]).items():
        print(f"{name}: {cost:.1f} ms of processor time an image")
    found = {"images": len(files), "predictions": str(quickest), "images/s": medians, "ms of processor time": costs}
    write_json(arguments.output, {**facts, **found})


def parts(model: xai_abn.ModelAdapter, files: list[str], rounds: int = 5) -> dict[str, float]:
    """Return the milliseconds of processor time that parts of an image's work take in this thread."""
    loaded = [load_image(file) for file in files]
    explained = [found["cam"] for found in xai_abn.explain(model, files, "cam")]
    drawn = [explanation.overlay() for explanation in explained]
    calls: dict[str, Callable[[], object]] = {
        "read": lambda: [load_image(file) for file in files],
        "prepare": lambda: [model.preprocess(image) for image in loaded],
        "draw": lambda: [explanation.overlay() for explanation in explained],
        "encode as PNG": lambda: [png_bytes(image) for image in drawn],
    }
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            before = time.thread_time()
            call()
            found[name].append(1000 * (time.thread_time() - before) / len(files))
    return {name: min(times) for name, times in found.items()}


def explain(model: xai_abn.ModelAdapter, files: list[str], method: str, workers: int) -> None:
    """Do what the command does behind its imports."""
    with tempfile.TemporaryDirectory() as folder:
        work = _Work(model, [method], None, ([], None), files, OutputFolder(Path(folder)), workers)
        work.run(resume=False)
        assert not work.failures
        if work.passes is not None:
            print(f"  maps: {work.passes.predictor}")


if __name__ == "__main__":
    main()
