"""Why do corrections do little where the background tells the class, and what would do more?

    python -m benchmarks.corrections.ground --coco coco_multi --grounds church golf --work /tmp/work --output FILE

Each line of the results is one measurement on ground-95:

- ``probe``: a linear classifier, fitted to images in which the background says nothing, tells the object or the
  background from the mean of the frozen features inside the object's mask, or outside.
- ``cells``: a network trained and tested on the features of the object's cells alone; the others are 0.
- ``cut out``: trained and tested on objects on gray.
- ``untied``: trained on images in which the background says nothing.
- ``stages``: KL on Grad-CAM and its control on three frozen stages, whose features see less around a place.
- ``trained``: the same where the five stages are trained further as well.
- ``more``: KL on Grad-CAM with other weights, numbers of marks, and epochs.
- ``moved``: further training on copies in which marked objects lie on other backgrounds, and its control.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from benchmarks._features import Features
from benchmarks._harness import make_parser
from benchmarks.corrections.run import BATCH, FURTHER, SIZES, Bench, Front, features
from benchmarks.corrections.scenes import Scenes, pasted
from xai_abn.datasets import TrainingData

DATA = "ground-95"
#: Copies of each marked object on other backgrounds.
COPIES = 8


def main() -> None:
    """Compute all measurements."""
    parser = make_parser(__doc__)
    parser.add_argument("--coco", type=Path, required=True, help="folder with images/ and instances.json")
    parser.add_argument("--grounds", type=Path, nargs=2, required=True, help="two folders of images")
    parser.add_argument("--work", type=Path, required=True, help="folder for networks and corrections")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sizes", type=int, nargs=2, default=SIZES, help="number of training and test images")
    parser.add_argument("--cells", type=int, help="measure at most so much of each seed, for a try")
    parser.add_argument("--epochs", type=int, help="fewer, for a try")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    def write(what: str, **values: Any) -> None:
        with arguments.output.open("a") as file:
            file.write(json.dumps({"what": what, **values}) + "\n")
        print(what, values, flush=True)

    tied = pasted("ground", 0.95, arguments.coco, arguments.grounds, tuple(arguments.sizes))
    untied = pasted("ground", 0.5, arguments.coco, arguments.grounds, tuple(arguments.sizes))
    fewer = {} if arguments.epochs is None else {"epochs": arguments.epochs}
    free = Bench("ground-50", untied, arguments.work, fewer)
    for place, task, accuracy in probes(free):
        write("probe", place=place, of=task, accuracy=accuracy)
    for seed in arguments.seeds:
        write("untied", seed=seed, **told(free, free.start("plain", seed), seed))
        for row in itertools.islice(measurements(tied, arguments.work, seed, fewer), arguments.cells):
            write(**row)


def measurements(
    scenes: tuple[Scenes, Scenes], work: Path, seed: int, fewer: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield what is measured on images whose background tells the class, with one seed."""
    tied = Bench(DATA, scenes, work, fewer)
    yield {"what": "untouched", "seed": seed, **told(tied, tied.start("plain", seed), seed)}
    on_gray = Bench(f"{DATA}-gray", (gray(scenes[0]), gray(scenes[1])), work, fewer)
    yield {"what": "cut out", "seed": seed, **told(on_gray, on_gray.start("plain", seed), seed)}
    cells = of_cells(scenes, work, fewer)
    yield {"what": "cells", "seed": seed, **told(cells, cells.start("plain", seed), seed)}
    for number in (10, 50, 200):
        for loss in ("none", "moved"):
            network = moved(tied, seed, number, other=loss == "moved")
            yield {"what": "moved", "number": number, "loss": loss, "seed": seed, **told(tied, network, seed)}
    shallow = Bench(f"{DATA}-stages-3", scenes, work, fewer, Front(stages=3))
    for loss in ("untouched", "none", "kl"):
        yield {"what": "stages", "loss": loss, "seed": seed, **told(shallow, further(shallow, seed, loss), seed)}
    for weight, number, epochs in ((10.0, 200, 4), (30.0, 50, 12), (30.0, 200, 12), (100.0, 200, 12)):
        for loss in ("none", "kl"):
            row = {"what": "more", "weight": weight, "number": number, "epochs": epochs, "loss": loss, "seed": seed}
            yield row | told(tied, further(tied, seed, loss, weight, number, epochs), seed)
    trained = Bench(DATA, scenes, work, fewer, Front(trained=True))
    for loss in ("none", "kl"):
        network = further(trained, seed, loss, begun=tied.start("plain", seed))
        yield {"what": "trained", "loss": loss, "seed": seed, **told(trained, network, seed)}


def told(bench: Bench, network: torch.nn.Module, seed: int) -> dict[str, Any]:
    """Return what is measured of a network that was trained further than the plain one of a seed."""
    return bench.measured(network, bench.start("plain", seed))


def cells_of(scenes: Scenes, size: Any) -> Tensor:
    """Return which cells (N, 1, h, w) are mostly object; the one that is it most always counts."""
    shares = F.adaptive_avg_pool2d(torch.from_numpy(scenes.objects)[:, None].float(), tuple(size))
    most = shares.amax(dim=(2, 3), keepdim=True)
    return (shares >= most.clamp_max(0.5)).float()


def of_cells(scenes: tuple[Scenes, Scenes], work: Path, fewer: dict[str, Any]) -> Bench:
    """Return a bench whose features are 0 outside of the object's cells."""
    bench = Bench(f"{DATA}-cells", scenes, work, fewer)
    bench.seen = bench.seen * cells_of(bench.train, bench.seen.shape[2:])
    bench.inputs = bench.inputs * cells_of(bench.test, bench.inputs.shape[2:])
    split = Features(bench.seen, torch.from_numpy(bench.train.labels))
    bench.data = TrainingData(DATA, bench.labels, bench.data.preprocess, split)
    return bench


def probes(bench: Bench) -> list[tuple[str, str, float]]:
    """Return how well features inside and outside of objects tell object and background, on test images."""
    found = []
    parts = [(bench.train, bench.seen), (bench.test, bench.inputs)]
    for place in ("inside", "outside"):
        means = []
        for scenes, values in parts:
            cells = cells_of(scenes, values.shape[2:])
            if place == "outside":
                shares = F.adaptive_max_pool2d(torch.from_numpy(scenes.objects)[:, None].float(), values.shape[2:])
                cells = 1 - shares
            means.append(((values * cells).sum(dim=(2, 3)) / cells.sum(dim=(2, 3)).clamp_min(1)).numpy())
        for task in ("object", "ground"):
            targets = [scenes.labels if task == "object" else scenes.labels ^ scenes.kinds for scenes, _ in parts]
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)).fit(means[0], targets[0])
            found.append((place, task, round(float(probe.score(means[1], targets[1])), 4)))
    return found


def gray(scenes: Scenes) -> Scenes:
    """Return the objects alone, on gray."""
    return replace(scenes, pixels=np.where(scenes.objects[..., None], scenes.pixels, 128).astype(np.uint8))


def further(
    bench: Bench,
    seed: int,
    loss: str,
    weight: float = 10.0,
    number: int = 50,
    epochs: int = 4,
    begun: torch.nn.Module | None = None,
) -> torch.nn.Module:
    """Return the plain network of a seed, trained further on corrections by KL on Grad-CAM, or without marks.

    With another network to begin from, all of it is trained, at a lower rate.
    """
    network = copy.deepcopy(bench.start("plain", seed) if begun is None else begun.requires_grad_(True))
    rate = FURTHER["lr"] if begun is None else 0.01
    if loss == "untouched":
        return network
    marks = {"corrections": str(bench.corrections("plain", seed, number, "random")), "correction_batch": BATCH}
    marks |= {"correction_loss": "kl", "on": "grad-cam", "correction_weight": weight if loss == "kl" else 0.0}
    return bench.fit(network, seed, {**FURTHER, "epochs": epochs, "lr": rate}, marks)


def moved(bench: Bench, seed: int, number: int, other: bool) -> torch.nn.Module:
    """Return the plain network of a seed, trained further with copies of marked objects on other backgrounds.

    The backgrounds are those of the other marked images, whose objects are painted over with the mean color around
    them. ``other`` is whether the objects are moved; otherwise the same images are repeated.
    """
    train, random = bench.train, np.random.default_rng(seed)
    marked = bench.pool(seed)[:number]
    pixels, labels = [], []
    for index in marked * COPIES:
        image, mask = train.pixels[index], train.objects[index][..., None]
        if other:
            place = marked[random.integers(len(marked))]
            hole = train.objects[place]
            ground = train.pixels[place].copy()
            ground[hole] = ground[~hole].mean(axis=0)
            image = np.where(mask, image, ground)
        pixels.append(image)
        labels.append(train.labels[index])
    more = features(bench.front, torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))
    data = bench.data
    targets = torch.from_numpy(np.concatenate([train.labels, np.array(labels)]))
    bench.data = TrainingData(DATA, bench.labels, data.preprocess, Features(torch.cat([bench.seen, more]), targets))
    network = bench.fit(copy.deepcopy(bench.start("plain", seed)), seed, FURTHER)
    bench.data = data
    return network


if __name__ == "__main__":
    main()
