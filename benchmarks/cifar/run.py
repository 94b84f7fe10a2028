"""Train ABNs, their baselines and their controls on CIFAR-100 with one budget, and compare them.

    python -m benchmarks.cifar.run train --data DIR --runs RUNS [--variants residual baseline ...] [--seeds 0 1 2]
    python -m benchmarks.cifar.run table --data DIR --runs RUNS [--output results.json]
    python -m benchmarks.cifar.run ship --data DIR --runs RUNS --output abn_cifar100.safetensors

``train`` goes on where it was stopped, also by a kill, and passes over what is finished. ``table`` measures the runs
that are finished: each of them used the test set once, and maps are measured on 1,000 of its images; the speeds are
the CPU's. A folder holds runs of one architecture and as many epochs. ``ship`` writes
the ABN of the first seed, g(1+M), as of its last epoch, with weights of half the size, and tests what it wrote.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

import xai_abn
from benchmarks._harness import machine, make_parser, time_in_turns, write_json
from xai_abn.datasets import TrainingData, read_training_data
from xai_abn.datasets.batches import Batch, DataSplit
from xai_abn.metrics.faithfulness import polarity
from xai_abn.metrics.similarity import map_agreement
from xai_abn.networks.checkpoint import read_checkpoint, save_checkpoint
from xai_abn.training import make_training_settings, train
from xai_abn.training.loop import TrainingLoop
from xai_abn.training.supervised import SupervisedObjective, build_network

#: What is compared: settings of ``xai-abn train`` beside those all share; "wide" has an architecture of its own, too.
VARIANTS: dict[str, dict[str, Any]] = {
    "baseline": {"mechanism": "none"},
    "residual": {"mechanism": "residual"},
    "product": {"mechanism": "product"},
    "concatenation": {"mechanism": "concatenation"},
    "auxiliary": {"mechanism": "auxiliary"},
    "wide": {"mechanism": "none"},
    "residual-area": {"mechanism": "residual", "area_weight": 0.5},
}
IMAGES = 1000


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("what", choices=["train", "table", "ship"])
    parser.add_argument("--data", required=True, help="folder with CIFAR-100; see docs/how-to/training-data.md")
    parser.add_argument("--runs", required=True, type=Path)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arch", default="resnet20", help="to train")
    parser.add_argument("--epochs", type=int, default=30, help="to train")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    facts = machine()
    if arguments.what == "train":
        for seed, name in itertools.product(arguments.seeds, arguments.variants):
            train_one(arguments, name, seed)
    elif arguments.what == "table":
        table(arguments, facts)
    else:
        ship(arguments)


def train_one(arguments: argparse.Namespace, name: str, seed: int) -> None:
    folder = arguments.runs / f"{name}-{seed}"
    settings = settings_of(arguments.arch, arguments.epochs, name, seed)
    if (folder / "result.json").exists():
        finished = json.loads((folder / "result.json").read_text())
        if any(finished[what] != settings[what] for what in ("arch", "epochs")):
            raise SystemExit(f"{folder}: {finished['arch']}, {finished['epochs']} epochs; give another --runs")
        print(f"{folder}: finished before")
        return
    config = make_training_settings({"data": f"cifar100:{arguments.data}"}, settings)

    def report_progress(done: int, total: int, text: str) -> None:
        print(f"\r{folder.name}: step {done} of {total}, {text}   ", end="", flush=True)

    resume = (folder / "state.safetensors").exists()
    result = train(config, folder, resume=resume, overwrite=not resume, progress=report_progress)
    print(f"\n{folder.name}: {result['final']['test_accuracy']:.4f} in {result['training_seconds'] / 60:.0f} min")


def settings_of(arch: str, epochs: int, name: str, seed: int) -> dict[str, Any]:
    shared = {"arch": f"{arch}-wide" if name == "wide" else arch, "epochs": epochs, "bf16": True, "workers": 0}
    return {**shared, "save_minutes": 1.0, "maps_every": 5, **VARIANTS[name], "seed": seed}


def table(arguments: argparse.Namespace, facts: dict[str, Any]) -> None:
    data = read_training_data(f"cifar100:{arguments.data}")
    assert data.test is not None
    spread_out = torch.linspace(0, len(data.test) - 1, IMAGES).long()  # files may be sorted by class
    batch = next(iter(data.test.load([spread_out], torch.device("cpu"), None)))
    found = finished(arguments)
    arch, epochs = budget([result for results in found.values() for result in results.values()])
    rows: dict[str, dict[str, Any]] = {}
    right: dict[str, dict[int, torch.Tensor]] = {}
    for name, each in found.items():
        folders = {s: arguments.runs / f"{name}-{s}" for s in each}
        results = list(each.values())
        rows[name] = row(results)
        right[name] = {s: answered(f / "final.safetensors", data.test)["perception"] for s, f in folders.items()}
        if "baseline" in right and name != "baseline":
            rows[name]["above_baseline"] = difference(right[name], right["baseline"])
        if results[0]["mechanism"] != "none":
            measured = [measure_maps(f / "final.safetensors", batch) for f in folders.values()]
            # the map of the auxiliary branch is not used, and not trained
            kinds = ("class_map",) if results[0]["mechanism"] == "auxiliary" else ("map", "class_map")
            for kind in kinds:
                for key in (key for key in measured[0] if key.endswith(f" of {kind}")):
                    rows[name][key] = spread([m[key] for m in measured])
                compared = "map" if kind == "map" else "map of the label"
                rows[name][f"stability of {kind}"] = stability([m[compared] for m in measured])
    networks = {name: settings_of(arch, epochs, name, 0) for name in rows}
    for name, speed in speeds(networks, data).items():
        rows[name]["images_per_second"] = speed
    show(rows)
    settings = {"arch": arch, "epochs": epochs, "map_images": IMAGES}
    write_json(arguments.output, {**facts, **settings, "rows": rows})


def finished(arguments: argparse.Namespace) -> dict[str, dict[int, dict[str, Any]]]:
    """Return what the finished runs came to, by variant and seed."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for name, seed in itertools.product(VARIANTS, arguments.seeds):
        file = arguments.runs / f"{name}-{seed}" / "result.json"
        if file.exists():
            found.setdefault(name, {})[seed] = json.loads(file.read_text())
    return found


def budget(results: list[dict[str, Any]]) -> tuple[str, int]:
    """Return the architecture and the epochs that all runs have."""
    all_of_them = {(result["arch"].removesuffix("-wide"), result["epochs"]) for result in results}
    if len(all_of_them) != 1:
        raise SystemExit(f"need finished runs of one architecture and as many epochs, found {sorted(all_of_them)}")
    return all_of_them.pop()


def ship(arguments: argparse.Namespace) -> None:
    source = arguments.runs / f"residual-{arguments.seeds[0]}" / "final.safetensors"
    config, _ = read_checkpoint(source)
    save_checkpoint(arguments.output, xai_abn.load_model(source).module, config, half=True)
    test = read_training_data(f"cifar100:{arguments.data}").test
    assert test is not None
    size, right = arguments.output.stat().st_size / 1e6, answered(arguments.output, test)
    print(f"{size:.2f} MB; right: " + ", ".join(f"{name} {float(v.mean()):.4f}" for name, v in right.items()))


@torch.no_grad()
def answered(path: Path, test: DataSplit) -> dict[str, torch.Tensor]:
    """Return for each test image whether the branches' answers are right, (N,) each."""
    network, found = xai_abn.load_model(path).module, []
    for batch in test.load(torch.arange(len(test)).split(500), torch.device("cpu"), None):
        answer = network(batch.images)
        logits = {"perception": answer}
        if isinstance(answer, xai_abn.ABNOutput):
            logits = {"perception": answer.logits, "attention": answer.attention_logits}
        found.append({name: values.argmax(dim=1) == batch.targets for name, values in logits.items()})
    return {name: torch.cat([part[name] for part in found]).double() for name in found[0]}


def difference(right: dict[int, torch.Tensor], baseline: dict[int, torch.Tensor]) -> dict[str, Any] | None:
    """Return how much more is right, over the seeds both have, with a 95 % interval over the test images."""
    seeds = sorted(right.keys() & baseline.keys())
    if not seeds:
        return None
    each = torch.stack([right[s] - baseline[s] for s in seeds])
    more = each.mean(dim=0)
    mean, margin = float(more.mean()), 1.96 * float(more.std()) / len(more) ** 0.5
    by_seed = spread(each.mean(dim=1).tolist())
    return {"seeds": seeds, "mean": mean, "low": mean - margin, "high": mean + margin, "by_seed": by_seed}


def speeds(networks: dict[str, dict[str, Any]], data: TrainingData, rounds: int = 7) -> dict[str, float]:
    """Return images per second of training steps on the CPU, medians over rounds."""
    accelerator = Accelerator(cpu=True)
    loops = {}
    for name, values in networks.items():
        settings = make_training_settings({"data": "cifar100:"}, values, {"lr": 0.01})
        network = build_network(settings, data).train()
        objective = SupervisedObjective(settings, data, network, accelerator, Path())
        loops[name] = TrainingLoop(objective, accelerator)
    batch = next(iter(data.train.load([torch.arange(128)], torch.device("cpu"), 0)))
    times = time_in_turns({name: partial(loop.train_step, batch) for name, loop in loops.items()}, rounds)
    return {name: len(batch.images) / statistics.median(values) for name, values in times.items()}


def row(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means and spreads over seeds."""
    final, best = [r["final"] for r in results], [r["best"] for r in results]
    made = {
        "seeds": [r["seed"] for r in results],
        "parameters": results[0]["parameters"],
        "test_last": spread([f["test_accuracy"] for f in final]),
        "test_selected": spread([b["test_accuracy"] for b in best]),
        "epoch_selected": [b["epoch"] for b in best],
    }
    if "test_attention_accuracy" in final[0]:
        made["test_last_attention"] = spread([f["test_attention_accuracy"] for f in final])
    return made


@torch.no_grad()
def measure_maps(path: Path, batch: Batch) -> dict[str, Any]:
    """Return a network's maps, of its own top-1 class and of the true one, and whether the first are upright."""
    network, images = xai_abn.load_model(path).module, batch.images
    assert isinstance(network, xai_abn.AttentionBranchNetwork)
    parts = [network(part) for part in images.split(250)]
    top = torch.cat([p.logits for p in parts]).argmax(dim=1)
    attention = torch.cat([p.attention_map for p in parts])[:, 0]
    class_maps, each = torch.cat([p.class_maps for p in parts]), torch.arange(len(top))
    classifier = network.as_classifier()
    found: dict[str, Any] = {
        "map": attention,
        "class_map": class_maps[each, top],
        "map of the label": class_maps[each, batch.targets],
    }
    found["area of map"] = float(attention.mean())
    for kind in ("map", "class_map"):
        values = polarity(classifier, images, found[kind], top)
        values = values[~values.isnan()]  # of flat maps
        found[f"polarity of {kind}"] = float(values.mean())
        found[f"upright of {kind}"] = float((values > 0).float().mean())
    return found


def stability(maps: list[torch.Tensor]) -> dict[str, Any] | None:
    """Return the mean over images of the IoU of the top 20 % between each pair of seeds."""
    pairs = [float(map_agreement(a, b, 0.2).nanmean()) for a, b in itertools.combinations(maps, 2)]
    return spread(pairs) if pairs else None


def spread(values: list[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": deviation, "values": values}


def show(rows: dict[str, Any]) -> None:
    heads = [
        "variant",
        "seeds",
        "parameters",
        "images/s",
        "test, last",
        "test, selected",
        "branch",
        "above the baseline",
    ]
    heads += ["polarity: M, class", "above 0", "stability: M, class"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for name, r in rows.items():
        cells = [name, str(len(r["seeds"])), f"{r['parameters'] / 1e6:.2f} M", f"{r['images_per_second']:.0f}"]
        cells += [percent(r["test_last"]), percent(r["test_selected"]), percent(r.get("test_last_attention"))]
        more = r.get("above_baseline")
        cells.append(
            "-"
            if more is None
            else f"{100 * more['mean']:+.2f} ({100 * more['low']:+.2f} to {100 * more['high']:+.2f})"
        )
        for what in ("polarity", "upright", "stability"):
            pair = [r.get(f"{what} of {kind}") for kind in ("map", "class_map")]
            cells.append(", ".join("-" if v is None else f"{v['mean']:.2f}" for v in pair))
        print("| " + " | ".join(cells) + " |")


def percent(value: dict[str, Any] | None) -> str:
    if value is None:
        return "-"
    sd = f" ± {100 * value['sd']:.2f}" if value["sd"] is not None else ""
    return f"{100 * value['mean']:.2f}{sd}"


if __name__ == "__main__":
    main()
