"""Measure the networks that run.py trained: accuracy, where their maps lie, and whether these are the right way up.

    python -m benchmarks.celeba.report --data DATA --runs RUNS --output results.json [--image maps.png]

Everything is on the people of the test split, in the last epoch's networks, and averaged over attributes (macro) and
then over seeds; intervals are of 2,000 draws of people. ``--image`` draws mean maps over mean faces: do not publish
it, the faces are someone else's.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

import xai_abn
from benchmarks._harness import machine, make_parser, write_json
from benchmarks.celeba.people import estimate, means, precisions, resampled, rounded
from benchmarks.celeba.regions import REGIONS
from benchmarks.celeba.run import NETWORKS, RECIPE, SIZE
from xai_abn.explainers import ABN, ABNClass, GradCAM
from xai_abn.explainers.baselines import Center
from xai_abn.metrics import energy_pointing_game, polarity, relevance_rank_accuracy, upsample
from xai_abn.metrics.objects import Objects
from xai_abn.models.folding import FastPredictor
from xai_abn.models.forward_pass import ForwardPass
from xai_abn.training import TrainingSettings
from xai_abn.training.supervised import read_data

matplotlib.use("Agg")
MAPS = {"plain": (GradCAM(),), "shared": (ABN(), ABNClass()), "per-attribute": (ABN(), ABNClass()), "signed": (ABN(),)}
MEASURES = ("energy", "rank", "others", "polarity")
#: Images that have an attribute, at most; the same for all networks.
LIMIT = 150


def main() -> None:
    parser = make_parser(__doc__)
    for name in ("--data", "--runs"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--image", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine()
    table = arguments.data / "faces.csv"
    data = read_data(TrainingSettings(data=f"attributes:{table}", **RECIPE))
    assert data.test is not None
    (batch,) = data.test.load([torch.arange(len(data.test))], torch.device("cpu"), None)
    images, has = batch.images, batch.targets
    with table.open(newline="") as file:
        persons = [row["identity"] for row in csv.DictReader(file) if row["split"] == "test"]
    draws = resampled(np.unique(persons, return_inverse=True)[1])
    shown = [positives(has[:, t]) for t in range(has.shape[1])]
    found: dict[str, list[dict[str, Any]]] = {}
    drawn: dict[str, np.ndarray] = {}
    for name in NETWORKS:
        for folder in sorted(arguments.runs.glob(f"{name}-[0-9]*")):
            if (folder / "result.json").exists():
                model = xai_abn.load_model(folder / "final.safetensors")
                one = measure_network(model, name, images, has, shown, data.labels, drawn)
                one["cost"] = json.loads((folder / "result.json").read_text())
                found.setdefault(name, []).append(one)
                print(folder.name, one["cost"]["final"], flush=True)
    results = summary(found, has.numpy(), data.labels, draws)
    results["test"] = {"images": len(has), "people": len(set(persons))}
    write_json(arguments.output, rounded(results))
    if arguments.image:
        draw(arguments.image, drawn, images, has, data.labels)


def positives(has: torch.Tensor) -> torch.Tensor:
    """Return the indices of at most LIMIT images that have an attribute, evenly over all."""
    there = has.nonzero().flatten()
    return there[torch.linspace(0, len(there) - 1, min(LIMIT, len(there))).long()]


def measure_network(
    model: xai_abn.ModelAdapter,
    name: str,
    images: torch.Tensor,
    has: torch.Tensor,
    shown: list[torch.Tensor],
    labels: tuple[str, ...],
    drawn: dict[str, np.ndarray],
) -> dict[str, Any]:
    """Return probabilities (N, T), and of each kind of map the measures (N, T), NaN where there is none."""
    predict = FastPredictor(model)
    scores = torch.cat([predict(part) for part in images.split(200)])
    swapped = through_other_maps(model.module, images, has) if name in ("per-attribute", "signed") else None
    methods = {f"{name}: {m.name}": m for m in MAPS[name]} | {f"{name}: center": Center()}
    maps = {method: {k: np.full(has.shape, np.nan) for k in MEASURES} for method in methods}
    for t, (label, there) in enumerate(zip(labels, shown, strict=True)):
        inputs, region = images[there], [REGIONS.get(label)] * len(there)
        layers = [model.target_layer] if name == "plain" else []
        shared = ForwardPass(model, inputs, layers, gradients=bool(layers))
        for method, explainer in methods.items():
            large = [
                upsample(explainer.explain(shared, torch.full((len(there),), u)), (SIZE, SIZE))
                for u in range(len(labels))
            ]
            values = maps[method]
            values["polarity"][there, t] = polarity(predict, inputs, large[t], torch.full_like(there, t))
            drawn.setdefault(method, np.zeros((len(labels), SIZE, SIZE)))[t] = large[t].mean(dim=0)
            if label not in REGIONS:
                continue
            objects = [Objects.from_boxes(torch.tensor(region[0]) * SIZE, (SIZE, SIZE))] * len(there)
            values["energy"][there, t] = energy_pointing_game(large[t], objects)
            values["rank"][there, t] = relevance_rank_accuracy(large[t], objects)
            elsewhere = [u for u, other in enumerate(labels) if REGIONS.get(other, region[0]) != region[0]]
            others = torch.stack([relevance_rank_accuracy(large[u], objects) for u in elsewhere])
            values["others"][there, t] = others.nanmean(dim=0)
    return {"scores": scores.numpy(), "maps": maps, "swapped": swapped}


def through_other_maps(network: torch.nn.Module, images: torch.Tensor, has: torch.Tensor) -> dict[str, float]:
    """Return the accuracy where each attribute is looked at through the previous one's map, and its own map's mean."""
    answers: dict[str, list[torch.Tensor]] = {"previous": [], "flat": []}
    with torch.no_grad():
        for part in images.split(100):
            maps = network(part).attention_map
            flat = maps.mean(dim=(2, 3), keepdim=True).expand_as(maps)
            for name, other in (("previous", maps.roll(1, dims=1)), ("flat", flat)):
                answers[name].append(network(part, attention=other).logits)
    return {k: ((torch.cat(v) > 0) == (has > 0.5)).float().mean().item() for k, v in answers.items()}


def summary(
    found: dict[str, list[dict[str, Any]]], has: np.ndarray, labels: tuple[str, ...], draws: np.ndarray
) -> dict[str, Any]:
    """Return means, and differences with intervals, of everything measured."""
    share = has.mean(axis=0)
    results: dict[str, Any] = {
        "majority": dict(zip(labels, np.maximum(share, 1 - share), strict=True)),
        "networks": {},
        "maps_measured": {},
        "maps_each_seed": {},
    }
    results["prevalence"] = dict(zip(labels, share, strict=True))
    once = np.ones((1, draws.shape[1]))
    stands: dict[str, dict[str, np.ndarray]] = {k: {} for k in ("accuracy", "balanced", "average_precision", *MEASURES)}
    for name, runs in found.items():
        right = np.stack([(run["scores"] > 0) == (has > 0.5) for run in runs]).mean(axis=0)
        sides = [np.where(has > 0.5, right, np.nan), np.where(has > 0.5, np.nan, right)]
        one: dict[str, Callable[[np.ndarray], Any]] = {
            "accuracy": partial(means, right),
            "balanced": partial(balanced, sides),
            "average_precision": partial(mean_precision, [run["scores"] for run in runs], has),
        }
        for kind, function in one.items():
            stands[kind][name] = np.concatenate([function(once), function(draws)])
        costs = [run["cost"] for run in runs]
        results["networks"][name] = {
            "seeds": len(runs),
            "each_seed": [cost["final"]["test_accuracy"] for cost in costs],
            "attention_branch": [c["final"].get("test_attention_accuracy") for c in costs],
            "accuracy_through_other_maps": [run["swapped"] for run in runs],
            **{key: costs[0][key] for key in ("parameters", "epochs")},
            **{key: [cost[key] for cost in costs] for key in ("training_seconds", "images_per_second")},
        }
        for method in runs[0]["maps"]:
            for kind in MEASURES:
                each = [run["maps"][method][kind] for run in runs]
                alone = [float(np.nanmean(means(one_seed, once))) for one_seed in each]
                results["maps_each_seed"].setdefault(method, {})[kind] = alone
                values = np.mean(each, axis=0)
                results["maps_measured"].setdefault(method, {})[kind] = int(np.isfinite(values).sum())
                stands[kind][method] = np.concatenate([means(values, once), means(values, draws)])
    for kind, values in stands.items():
        results[kind] = {n: estimate(v) | {"of": dict(zip(labels, v[0], strict=True))} for n, v in values.items()}
        results[f"{kind}_differences"] = {
            f"{a} - {b}": estimate(values[a] - values[b])
            for a in values
            for b in values
            if a != b and a.startswith(("per-attribute", "shared"))
        }
    return results


def balanced(sides: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Return the mean of the accuracies (B, T) with and without the attribute."""
    return np.asarray(np.mean([means(side, weights) for side in sides], axis=0))


def mean_precision(scores: list[np.ndarray], has: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return average precisions (B, T), the mean over seeds."""
    return np.asarray(np.mean([precisions(one, has, weights) for one in scores], axis=0))


def draw(
    path: Path, drawn: dict[str, np.ndarray], images: torch.Tensor, has: torch.Tensor, labels: tuple[str, ...]
) -> None:
    from matplotlib import pyplot as plt
    from matplotlib.patches import Rectangle

    figure, axes = plt.subplots(len(drawn) + 1, len(labels), figsize=(1.5 * len(labels), 1.8 * (len(drawn) + 1)))
    for t, label in enumerate(labels):
        face = images[has[:, t] > 0.5].mean(dim=0).permute(1, 2, 0).numpy()
        face = (face - face.min()) / (face.max() - face.min())
        axes[0, t].set_title(label, fontsize=8)
        for row, name in enumerate(["", *drawn]):
            axis = axes[row, t]
            axis.imshow(face)
            if name:
                axis.imshow(drawn[name][t], cmap="jet", alpha=0.5)
            for left, top, right, bottom in REGIONS.get(label, ()) if not row else ():
                box = (left * SIZE, top * SIZE), (right - left) * SIZE, (bottom - top) * SIZE
                axis.add_patch(Rectangle(*box, fill=False, color="red"))
            axis.set(xticks=[], yticks=[])
            if t == 0:
                axis.set_ylabel(name.replace(": ", "\n"), fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
