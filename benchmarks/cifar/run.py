"""Train ABNs, their baselines and their controls on CIFAR-100 with one budget, and compare them.

    python benchmarks/cifar/run.py train --data DIR --runs RUNS [--variants residual baseline ...] [--seeds 0 1 2]
    python benchmarks/cifar/run.py table --data DIR --runs RUNS [--output results.json]
    python benchmarks/cifar/run.py ship --data DIR --runs RUNS --output abn_cifar100.safetensors

``train`` goes on where it was stopped, also by a kill, and passes over what is finished. ``table`` measures the runs
that are finished: each of them used the test set once, and maps are measured on 1,000 of its pictures. ``ship`` writes
the ABN of the first seed, g(1+M), as of its last epoch, with weights of half the size, and tests what it wrote.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from pathlib import Path

import torch

import xai_abn
from xai_abn.data import read_training_data
from xai_abn.metrics.agreement import map_agreement
from xai_abn.metrics.polarity import polarity
from xai_abn.models.checkpoint import read_checkpoint, save_checkpoint
from xai_abn.training import make_config, train

#: What is compared: settings of ``xai-abn train`` beside those all share.
VARIANTS = {
    "baseline": {"mechanism": "none"},
    "residual": {"mechanism": "residual"},
    "product": {"mechanism": "product"},
    "concatenation": {"mechanism": "concatenation"},
    "auxiliary": {"mechanism": "auxiliary"},
    "wide": {"mechanism": "none", "arch": "resnet20-wide"},
    "residual-area": {"mechanism": "residual", "area_weight": 0.5},
}
PICTURES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "table", "ship"])
    parser.add_argument("--data", required=True, help="folder with CIFAR-100; see docs/guide.md")
    parser.add_argument("--runs", required=True, type=Path)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arch", default="resnet20")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.what == "train":
        for seed, name in itertools.product(arguments.seeds, arguments.variants):
            train_one(arguments, name, seed)
    elif arguments.what == "table":
        table(arguments)
    else:
        ship(arguments)


def train_one(arguments: argparse.Namespace, name: str, seed: int) -> None:
    folder = arguments.runs / f"{name}-{seed}"
    if (folder / "result.json").exists():
        print(f"{folder}: finished before")
        return
    shared = {"arch": arguments.arch, "epochs": arguments.epochs, "bf16": True, "workers": 0, "save_minutes": 1.0}
    settings = {**shared, "maps_every": 5, **VARIANTS[name], "seed": seed}
    config = make_config({"data": f"cifar100:{arguments.data}"}, settings)
    flags = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in settings.items() if k not in ("bf16", "workers"))
    command = f"xai-abn train --data cifar100:DIR {flags} --bf16 --output RUN"

    def tell(done: int, total: int, text: str) -> None:
        print(f"\r{folder.name}: step {done} of {total}, {text}   ", end="", flush=True)

    resume = (folder / "state.safetensors").exists()
    result = train(config, folder, resume=resume, overwrite=not resume, progress=tell, command=command)
    print(f"\n{folder.name}: {result['final']['test_accuracy']:.4f} in {result['training_seconds'] / 60:.0f} min")


def table(arguments: argparse.Namespace) -> None:
    test = read_training_data(f"cifar100:{arguments.data}").test
    assert test is not None
    spread_out = torch.linspace(0, len(test) - 1, PICTURES).long()  # the files may be in the order of their classes
    batch = next(iter(test.load([spread_out], torch.device("cpu"), None)))
    rows, maps = {}, {}
    for name in VARIANTS:
        folders = [f for s in arguments.seeds if ((f := arguments.runs / f"{name}-{s}") / "result.json").exists()]
        if not folders:
            continue
        results = [json.loads((f / "result.json").read_text()) for f in folders]
        rows[name] = row(results)
        if results[0]["mechanism"] != "none":
            measured = [measure_maps(f / "final.safetensors", batch.images) for f in folders]
            maps[name] = [m["map"] for m in measured]
            for key in ("polarity", "upright", "polarity_class", "area"):
                rows[name][key] = spread([m[key] for m in measured])
            rows[name]["stability"] = stability([m["map"] for m in measured])
            rows[name]["stability_class"] = stability([m["class_map"] for m in measured])
    show(rows)
    if arguments.output:
        settings = {"arch": arguments.arch, "epochs": arguments.epochs, "map_pictures": PICTURES}
        arguments.output.write_text(json.dumps({"torch": torch.__version__, **settings, "rows": rows}, indent=1) + "\n")


@torch.no_grad()
def ship(arguments: argparse.Namespace) -> None:
    source = arguments.runs / f"residual-{arguments.seeds[0]}" / "final.safetensors"
    config, _ = read_checkpoint(source)
    save_checkpoint(arguments.output, xai_abn.load_model(source).module, config, half=True)
    test = read_training_data(f"cifar100:{arguments.data}").test
    assert test is not None
    network, right = xai_abn.load_model(arguments.output).module, torch.zeros(2)
    for batch in test.load(torch.arange(len(test)).split(500), torch.device("cpu"), None):
        answer = network(batch.images)
        for branch, logits in enumerate((answer.logits, answer.attention_logits)):
            right[branch] += (logits.argmax(dim=1) == batch.targets).sum()
    size = arguments.output.stat().st_size / 1e6
    print(f"{size:.2f} MB; perception, attention branch right: {(right / len(test)).tolist()}")


def row(results: list[dict]) -> dict:
    """Return means and spreads over seeds."""
    final, best = [r["final"] for r in results], [r["best"] for r in results]
    made = {
        "seeds": [r["seed"] for r in results],
        "parameters": results[0]["parameters"],
        "test_last": spread([f["test_accuracy"] for f in final]),
        "test_selected": spread([b["test_accuracy"] for b in best]),
        "epoch_selected": [b["epoch"] for b in best],
        "training_minutes": spread([r["training_seconds"] / 60 for r in results]),
    }
    if "test_attention_accuracy" in final[0]:
        made["test_last_attention"] = spread([f["test_attention_accuracy"] for f in final])
    return made


@torch.no_grad()
def measure_maps(path: Path, images: torch.Tensor) -> dict:
    """Return a network's maps of its own top-1 class, and whether they are the right way up."""
    network = xai_abn.load_model(path).module
    parts = [network(part) for part in images.split(250)]
    top = torch.cat([p.logits for p in parts]).argmax(dim=1)
    attention = torch.cat([p.attention_map for p in parts])[:, 0]
    class_map = torch.cat([p.class_maps for p in parts])[torch.arange(len(top)), top]
    classifier = network.as_classifier()
    of_map = polarity(classifier, images, attention, top)
    return {
        "map": attention,
        "class_map": class_map,
        "area": float(attention.mean()),
        "polarity": float(of_map.nanmean()),
        "upright": float((of_map > 0).float().mean()),
        "polarity_class": float(polarity(classifier, images, class_map, top).nanmean()),
    }


def stability(maps: list[torch.Tensor]) -> dict | None:
    """Return the mean over pictures of the IoU of the top 20 % between each pair of seeds."""
    pairs = [float(map_agreement(a, b, 0.2).nanmean()) for a, b in itertools.combinations(maps, 2)]
    return spread(pairs) if pairs else None


def spread(values: list[float]) -> dict:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": deviation, "values": values}


def show(rows: dict) -> None:
    heads = ["variant", "seeds", "parameters", "test, last", "test, selected", "branch", "minutes"]
    heads += ["polarity M / class", "stability M / class"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for name, r in rows.items():
        cells = [name, str(len(r["seeds"])), f"{r['parameters'] / 1e6:.2f} M", percent(r["test_last"])]
        cells += [percent(r["test_selected"]), percent(r.get("test_last_attention"))]
        cells += [f"{r['training_minutes']['mean']:.0f}"]
        for kind in ("polarity", "stability"):
            pair = [r.get(kind), r.get(f"{kind}_class")]
            cells.append(" / ".join("-" if v is None else f"{v['mean']:.3f}" for v in pair))
        print("| " + " | ".join(cells) + " |")


def percent(value: dict | None) -> str:
    if value is None:
        return "-"
    sd = f" ± {100 * value['sd']:.2f}" if value["sd"] is not None else ""
    return f"{100 * value['mean']:.2f}{sd}"


if __name__ == "__main__":
    main()
